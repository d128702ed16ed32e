"""Every command on a terminal, with hostile text in every log, name and answer: a terminal obeys nothing of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster_remote.cli.app import every_command
from tests.cli.ailing import on_a_terminal
from tests.remote.testbed import Testbed, make_testbed
from tests.security.stranger import commit
from tests.support.environment import Environment
from tests.support.slow import only_in_all

# A title, a colour, the same by C1 controls in both encodings, turned text, sounds and steps back.
CONTROLS = ("\x1b]0;", "\x1b[31m", "\x9b31m", "\udc9b31m", "\u202e", "\x07", "\x08")
MARK = "PWNED"
EVIL = "".join(control + MARK for control in CONTROLS)
NAME = f"disk{EVIL}"
# git-annex takes no other bytes than UTF-8 in an argument.
FILE = f"file{EVIL}".replace(f"\udc9b31m{MARK}", "")
UNKNOWN = "99999999-2222-4333-8444-555555555555"
SHARED = "77777777-2222-4333-8444-555555555555"

PEERS = {
    "answers with errors": """\
#!/bin/sh
printf 'stderr %b\\n' '{text}' >&2
[ $# -ge 5 ] && uuid=$5 || uuid={uuid}
echo "AUTH-SUCCESS $uuid"
while read -r line; do
  case $line in VERSION*) echo VERSION 4;; *) printf 'ERROR %b\\n' '{text}';; esac
done
""",
    "dies": "#!/bin/sh\nprintf 'stderr %b\\n' '{text}' >&2\nexit 1\n",
}

# What each command is run with; in the gateway's repository if the first word is a star.
ARGUMENTS: dict[str, list[tuple[str, ...]]] = {
    "setup": [
        (),
        ("mycl", "{gateway}"),
        ("fresh", "{gateway}", "--dry-run"),
        (f"new{EVIL}",),
        (f"x{EVIL}", "--node", NAME),
    ],
    "node add": [("*", "mycluster", NAME), ("mycl", NAME)],
    "node remove": [("*", "mycluster", NAME), ("*", "mycluster", UNKNOWN), ("mycl", "node1")],
    "node replace": [("*", "mycluster", UNKNOWN, NAME)],
    "rename": [("mycl", f"x{EVIL}", "--dry-run"), (f"x{EVIL}", "y")],
    "remove": [("mycl", "--dry-run"), ("*", "mycluster", "--cluster", "--dry-run"), (f"x{EVIL}",)],
    "ping": [("mycl",), (f"x{EVIL}",), (f"/nowhere/{EVIL}",)],
    "status": [(), ("mycl",), ("{gateway}",)],
    "check": [("mycl", "--all"), ("mycl", FILE), (f"x{EVIL}",)],
    "repair": [("mycl", FILE, "--dry-run"), ("mycl", FILE)],
    "doctor": [(), ("mycl",)],
    "present": [("mycl", FILE), ("mycl", FILE, "--node", f"x{EVIL}"), ("mycl", FILE, "too", f"many{EVIL}")],
    "put": [("mycl", FILE), ("mycl", FILE, "--node", f"node1{EVIL}")],
    "get": [("mycl", FILE, "--to", f"new{EVIL}"), ("mycl", f"not there{EVIL}")],
    "drop": [("mycl", FILE, "--force")],
    "lock": [("mycl", FILE, "--", "true"), ("n1", FILE, "--", f"no program{EVIL}")],
    "trace": [("--", "cluster-remote", "present", "mycl", FILE), ("--diagram", "--", "cluster-remote", "ping", "mycl")],
    "demo": [(f"x{EVIL}",)],
    "bench": [("mycl", "--case", "small", "--files", "1", "--rounds", "1"), (f"x{EVIL}",)],
    "serve": [("*", "--cluster", f"x{EVIL}", "--listen", "unix:/nowhere/x"), ("*", "--listen", f"unix:/{EVIL}")],
    "token create": [("*", "--note", f"x{EVIL}"), ("*", "--node", f"x{EVIL}")],
    "token list": [("*",)],
    "token revoke": [("*", f"x{EVIL}")],
}
# Without the names and descriptions that git-annex prints itself, where it lets C1 controls and turned text through.
GIT_ANNEX = [
    ("get", "--key", "{key}"),
    ("copy", "--to", "mycl", "--key", "{key}"),
    ("fsck", "--from", "mycl", "--key", "{key}"),
    ("drop", "--force", "--from", "mycl", "--key", "{key}"),
]


@pytest.fixture(scope="module")
def hostile(make_environment: Callable[[], Environment]) -> Testbed:
    """A cluster whose logs and names are all hostile."""
    testbed = make_testbed(make_environment(), node_remotes=True)
    client, gateway = testbed.client, testbed.cluster.gateway
    client.add(FILE, b"content")
    client.git("commit", "-q", "-m", "file")
    client.annex("copy", "--quiet", "--to", "mycl", FILE)
    one, two, three = (node.uuid for node in testbed.cluster.nodes)
    cluster, now = testbed.cluster.uuid, f"{time.time() + 100:.0f}s"
    logs = {
        "uuid.log": [f"{each} {each[:3]}{EVIL} timestamp={now}" for each in (gateway.uuid, one, cluster, UNKNOWN)],
        "proxy.log": [f"{now} {gateway.uuid} {cluster}:mycluster{EVIL} {one}:node1{EVIL} {three}:node3{EVIL}"],
        "cluster.log": [f"{now} {cluster} {one} {two} {three} {UNKNOWN}"],
        "remote.log": [
            f"{two} name=enc{EVIL} encryption=shared type=directory timestamp={now}",
            f"{SHARED} name=new{EVIL} type=external externaltype=cluster encryption=none cluster=x{EVIL} "
            f"url=ssh://evil.example/{EVIL} timestamp={now}",
            f"{SHARED[::-1]} name=newer{EVIL} type=external externaltype=cluster encryption=none timestamp={now}",
        ],
        "group.log": [f"{one} group{EVIL} timestamp={now}"],
        "preferred-content.log": [f"{one} standard{EVIL} timestamp={now}"],
        "required-content.log": [f"{three} anything{EVIL} timestamp={now}"],
        "trust.log": [f"{three} 1{EVIL} timestamp={now}"],
        "numcopies.log": [f"{now} 3{EVIL}"],
    }
    for repository in (client, gateway):
        for log, lines in logs.items():
            commit(repository, log, *lines)
        repository.git("remote", "add", "plain", f"/nowhere/{EVIL}")
        repository.git("config", "--rename-section", "remote.plain", f"remote.{NAME}")
        repository.git("config", f"remote.{NAME}.annex-uuid", UNKNOWN)
    return testbed


def shown(testbed: Testbed) -> dict[str, str]:
    """What every command writes to a terminal, by command; git-annex's with our remote too."""
    outputs: dict[str, str] = {}

    def run(where: Path, *argv: str) -> None:
        variables = {"COLUMNS": "10000"}
        outputs[" ".join(argv)] = on_a_terminal(testbed.environment, where, *argv, env=variables, typed=b"n\n" * 9)

    for name, several in ARGUMENTS.items():
        for arguments in several:
            at_gateway = arguments[:1] == ("*",)
            where = testbed.cluster.gateway if at_gateway else testbed.client
            words = [word.replace("{gateway}", testbed.url) for word in arguments[at_gateway:]]
            run(where.path, "cluster-remote", *name.split(), *words)
    for arguments in GIT_ANNEX:
        key = testbed.client.key(FILE)
        run(testbed.client.path, "git", "annex", *(word.replace("{key}", key) for word in arguments))
    return outputs


def test_every_command_is_tried() -> None:
    assert set(ARGUMENTS) == set(every_command())


@pytest.mark.parametrize("peer", ["answers with errors", *only_in_all("as it is", "dies")])
def test_no_command_sends_a_control_character_of_a_log_or_a_peer_to_the_terminal(hostile: Testbed, peer: str) -> None:
    shim = hostile.environment.bin / "git-annex-shell"
    if peer != "as it is":
        octal = "".join(f"\\0{byte:03o}" for byte in EVIL.encode("utf-8", "surrogateescape"))
        hostile.environment.program(shim.name, PEERS[peer].format(text=octal, uuid=hostile.cluster.uuid))
    try:
        outputs = shown(hostile)
    finally:
        shim.unlink(missing_ok=True)
    marked = [command for command, output in outputs.items() if MARK in output.replace(EVIL, "")]
    assert len(marked) > len(outputs) / 2, "the text is to be seen, or nothing is shown by this"
    for command, output in outputs.items():
        for control in CONTROLS:
            assert control + MARK not in output, (command, output)
