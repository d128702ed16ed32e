"""Refusals of INITREMOTE: each says what is wrong and suggests a correct command."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.remote.testbed import Testbed, initremote, text, whereis
from tests.support.environment import Environment, temporary_environment
from tests.support.repositories import Cluster, Repository, make_cluster, make_repository
from tests.support.slow import only_in_all
from tests.support.sockets import free_port, serve_p2p

TOKEN = "CLUSTER_REMOTE_TOKEN"
SECRET = "Sesame4711open"


@dataclass(frozen=True)
class Place:
    """A cluster, a client that knows it, and a repository that does not. None of them has a remote of ours yet."""

    cluster: Cluster
    client: Repository
    stranger: Repository

    @property
    def url(self) -> str:
        return f"url={self.cluster.gateway.path}"


@pytest.fixture(scope="module")
def place() -> Iterator[Place]:
    """One for all tests of this file; each uses a remote name of its own."""
    with temporary_environment() as environment:
        cluster = make_cluster(environment, environment.directory)
        yield Place(cluster, cluster.clone(), make_repository(environment, environment.directory / "other", "other"))


_numbers = itertools.count()


@pytest.fixture
def name() -> str:
    """A remote name that no other test uses."""
    return f"remote{next(_numbers)}"


def refused(client: Repository, name: str, *parameters: str, **options: object) -> str:
    """Return the output of an `initremote` that must fail without any shared change."""
    before = client.descriptions()
    done = initremote(client, name, *parameters, check=False, **options)  # type: ignore[arg-type]  # handed on
    assert done.returncode != 0
    assert client.descriptions() == before
    assert client.config(f"remote.{name}.annex-uuid") is None
    said = text(done)
    assert "Traceback" not in said
    assert "internal error" not in said
    return said


def failure(place: Place, **config: str) -> str:
    """Return why the program refuses a configuration; `refused` shows what git-annex makes of such an answer."""
    with Testbed(place.cluster, place.client).driver(None, None, **config) as annex:
        answer = annex.ask("INITREMOTE")
    assert answer.startswith("INITREMOTE-FAILURE ")
    return answer


def corrected(said: str) -> str:
    """Return the one `git annex initremote` command in a message."""
    [command] = re.findall(r"git annex initremote [^\n]*", said)
    assert isinstance(command, str)
    return command


def obey(client: Repository, command: str) -> None:
    """Run a command as it was printed."""
    client.environment.run("sh", "-c", command, cwd=client.path)


def reaches(client: Repository, name: str, uuid: str) -> bool:
    """Return whether a remote has the UUID of a repository or cluster."""
    return client.config(f"remote.{name}.annex-uuid") == uuid


def test_initremote_without_sameas_is_refused_for_a_cluster(place: Place, name: str) -> None:
    said = refused(place.client, name, place.url, "timeout=17")
    assert "must be the same as the cluster that it reaches (at gateway (hall))" in said
    obey(place.client, corrected(said))
    assert reaches(place.client, name, place.cluster.uuid)
    # What else was said is kept.
    assert "timeout=17" in corrected(said)
    assert "--private" in corrected(said)
    key = place.client.add(name, b"stored as told")
    place.client.annex("copy", "--to", name, name)
    assert place.cluster.holders(key) == [True] * 3
    assert place.cluster.uuid in whereis(place.client, name)


def test_the_suggested_command_is_private_only_if_the_first_was(place: Place, name: str) -> None:
    assert "--private" not in corrected(refused(place.client, name, place.url, private=False))


@pytest.mark.parametrize("whose", ["cluster", "node"])
def test_initremote_with_anothers_uuid_is_refused(place: Place, name: str, whose: str) -> None:
    uuid = place.cluster.uuid if whose == "cluster" else place.cluster.nodes[1].uuid
    said = refused(place.client, name, place.url, f"uuid={uuid}")
    assert "destroy its description for everyone; use --sameas" in said
    obey(place.client, corrected(said))
    assert reaches(place.client, name, uuid)


def test_initremote_with_a_uuid_the_server_lacks_is_refused(place: Place, name: str) -> None:
    said = refused(place.client, name, place.url, sameas=place.client.uuid)
    assert f"at {place.cluster.gateway.path} is gateway (hall), not client (desk)" in said
    obey(place.client, corrected(said))
    assert reaches(place.client, name, place.cluster.uuid)


def test_initremote_of_a_cluster_at_a_nodes_address_is_refused(place: Place, name: str) -> None:
    node = place.cluster.nodes[2]
    said = refused(place.client, name, f"url={node.path}", sameas=place.cluster.uuid)
    assert f"at {node.path} is NAS: shelf 3, not cluster mycluster" in said
    obey(place.client, corrected(said))
    assert reaches(place.client, name, node.uuid)


@pytest.mark.parametrize("by", ["uuid=", "nothing"])
def test_initremote_of_an_unknown_cluster_is_refused(environment: Environment, by: str) -> None:
    cluster = make_cluster(environment, environment.directory / "far away")
    stranger = make_repository(environment, environment.directory / "stranger", "stranger")
    parameters = [f"uuid={cluster.uuid}"] if by == "uuid=" else []
    said = refused(stranger, "mycl", f"url={cluster.gateway.path}", *parameters)
    assert f"does not know {cluster.gateway.uuid}" in said
    fetch = re.search(r": (git remote add .* && git annex merge); then (git annex initremote .*?)(\. Or| \()", said)
    assert fetch is not None
    obey(stranger, fetch[1])
    if by == "nothing":
        # Only now can it be known which cluster is there.
        again = stranger.environment.run("sh", "-c", fetch[2], cwd=stranger.path, check=False)
        obey(stranger, corrected(text(again)))
    else:
        obey(stranger, fetch[2])
    assert reaches(stranger, "mycl", cluster.uuid)
    key = stranger.add("f", b"from afar")
    stranger.annex("copy", "--to", "mycl", "f")
    assert cluster.holders(key) == [True] * 3
    assert stranger.locations(key) == {stranger.uuid, *(node.uuid for node in cluster.nodes)}


def test_initremote_of_an_unknown_cluster_is_allowed_with_counts_as_one_copy(environment: Environment) -> None:
    cluster = make_cluster(environment, environment.directory / "far")
    stranger = make_repository(environment, environment.directory / "stranger", "stranger")
    said = refused(stranger, "vault", f"url={cluster.gateway.path}", f"uuid={cluster.uuid}")
    found = re.search(r"count all of them as one copy: (git annex initremote .*)", said)
    assert found is not None
    obey(stranger, found[1])
    key = stranger.add("f", b"one copy")
    stranger.annex("copy", "--to", "vault", "f")
    assert cluster.holders(key) == [True] * 3
    own = stranger.config("remote.vault.annex-uuid")
    assert own is not None
    assert stranger.locations(key) == {stranger.uuid, own}
    assert cluster.uuid not in {own, *stranger.descriptions()}


@pytest.mark.parametrize("tracking", [(), ("tracking=nodes",)], ids=["sameas", "nodes"])
def test_encryption_with_sameas_is_refused(place: Place, name: str, tracking: tuple[str, ...]) -> None:
    sameas = None if tracking else place.cluster.uuid
    said = refused(place.client, name, place.url, "encryption=shared", "chunk=1MiB", *tracking, sameas=sameas)
    assert "with encryption=shared the nodes hold other keys than this repository" in said
    obey(place.client, corrected(said))
    key = place.client.add(name, name.encode())
    place.client.annex("copy", "--to", name, name)
    own = place.client.config(f"remote.{name}.annex-uuid")
    assert own is not None
    assert place.client.locations(key) == {place.client.uuid, own}
    # It is there, but as something else.
    assert place.cluster.holders(key) == [False] * 3
    place.client.annex("fsck", "--from", name, name)
    # The content went to the cluster that was meant, not to its gateway's own repository.
    assert f"cluster={place.cluster.uuid}" in corrected(said)


@pytest.mark.parametrize("tracking", [(), ("tracking=nodes",)], ids=["sameas", "nodes"])
def test_chunking_with_sameas_is_refused(place: Place, name: str, tracking: tuple[str, ...]) -> None:
    sameas = None if tracking else place.cluster.uuid
    said = refused(place.client, name, place.url, "chunk=1MiB", *tracking, sameas=sameas)
    assert "with chunks the nodes hold other keys than this repository" in said
    obey(place.client, corrected(said))
    assert reaches(place.client, name, place.cluster.uuid)


@pytest.mark.parametrize("chunks", [(), ("chunk=1MiB",)], ids=["whole", "chunks"])
@pytest.mark.parametrize("cluster", ["named", *only_in_all("by UUID", "not named")])
def test_an_unencrypted_remote_with_its_own_uuid_is_refused(
    place: Place, name: str, cluster: str, chunks: tuple[str, ...]
) -> None:
    named = {"named": [f"cluster={place.cluster.name}"], "by UUID": [f"cluster={place.cluster.uuid}"], "not named": []}
    said = refused(place.client, name, place.url, "tracking=remote", *chunks, *named[cluster])
    assert "; the same content would be counted twice" in said
    obey(place.client, corrected(said))
    assert reaches(place.client, name, place.cluster.uuid)


def test_a_sameas_remote_cannot_have_its_own_uuid(place: Place, name: str) -> None:
    node = place.cluster.nodes[0]
    said = refused(place.client, name, place.url, "tracking=remote", sameas=node.uuid)
    assert "with tracking=remote the remote has a UUID of its own" in said
    obey(place.client, corrected(said))
    assert reaches(place.client, name, node.uuid)


def test_initremote_of_an_unknown_cluster_name_is_refused(place: Place, name: str) -> None:
    for client in (place.client, place.stranger):
        said = refused(client, name, place.url, "encryption=shared", "cluster=elsewhere")
        assert "cluster=elsewhere: this repository knows no cluster of that name" in said
        assert "git config annex.cluster.elsewhere" in said


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("relative/dir", "'relative/dir' is not an address; it can be /dir, "),
        ("http://example.com/x", "urls of the form http:// are not supported; the url can be /dir, "),
        ("ssh://-oProxyCommand=true/dir", "does not have a valid host name"),
        (f"tcp://{SECRET}@host:1", "a url cannot contain a token, because others can read it"),
        *only_in_all(
            ("-oProxyCommand=true:dir", "does not have a valid host name"),
            ("ssh://host", "does not say which directory on the host is the repository"),
            ("host:", "does not say which directory on the host is the repository"),
            ("tcp://host", "a TCP address is tcp://host:port"),
            ("tcp://host:99999", "99999 is not a port"),
            ("unix:relative", "a unix socket is unix:/path, absolute"),
            ("unix:/path?node=everything", "after ?node= comes a repository's UUID"),
        ),
    ],
)
def test_an_invalid_url_is_refused(place: Place, url: str, complaint: str) -> None:
    said = failure(place, url=url)
    assert complaint in said
    assert SECRET not in said


@pytest.mark.parametrize("timeout", ["soon", "0", "-1", "nan", "inf", "1e9"])
def test_an_invalid_timeout_is_refused(place: Place, timeout: str) -> None:
    said = failure(place, timeout=timeout)
    assert f"timeout={timeout}: it is a number of seconds, such as timeout=60" in said


def test_an_invalid_tracking_is_refused(place: Place) -> None:
    assert "tracking=both: it can be tracking=nodes or tracking=remote" in failure(place, tracking="both")


@pytest.mark.slow
def test_a_socket_needs_a_valid_token(environment: Environment) -> None:
    cluster = make_cluster(environment, environment.directory, nodes=1)
    client, node = cluster.clone(), cluster.nodes[0]
    with serve_p2p(node) as (path, token):
        said = refused(client, "it", f"url=unix:{path}", sameas=node.uuid)
        assert "wants a token: put it into the environment variable CLUSTER_REMOTE_TOKEN" in said
        said = refused(client, "it", f"url=unix:{path}", sameas=node.uuid, env={TOKEN: SECRET})
        assert "the server did not accept the token: CLUSTER_REMOTE_TOKEN=… git annex initremote it " in said
        assert SECRET not in said
        said = refused(client, "it", f"url=unix:{path}", sameas=node.uuid, env={TOKEN: f"{SECRET} and more"})
        assert "contains characters that no token has" in said
        assert SECRET not in said
        # No wrong token was kept.
        assert not list((client.path / ".git/annex").glob("creds/*"))
        obey(client, f"{TOKEN}={token} {corrected(said)}")
        assert [file.stat().st_mode & 0o77 for file in (client.path / ".git/annex/creds").iterdir()] == [0]
        key = client.add("f", b"with a token")
        client.annex("copy", "--to", "it", "f")
        assert node.object_bytes(key) == b"with a token"
        # When the token is no longer good, the way to give another is said.
        for file in (client.path / ".git/annex/creds").iterdir():
            file.write_text(f"token\n{SECRET}\n")
        said = text(client.annex("fsck", "--from", "it", "f", check=False))
        assert "the server did not accept the token; set the right one: " in said
        command = re.search(r"CLUSTER_REMOTE_TOKEN=… (git annex enableremote it encryption=none)", said)
        assert command is not None
        obey(client, f"{TOKEN}={token} {command[1]}")
        client.annex("fsck", "--from", "it", "f")
        assert SECRET not in said
        assert token not in said


@pytest.mark.slow
def test_initremote_of_an_unreachable_address_fails(place: Place, name: str) -> None:
    environment, cluster = place.client.environment, place.cluster
    nobody = free_port()
    for url, complaint in {
        "/no/such/directory": "git-annex-shell: ",
        str(environment.home): "git-annex-shell: ",
        f"ssh://127.0.0.1:{nobody}/dir": "Connection refused",
        f"tcp://127.0.0.1:{nobody}": "Connection refused",
        "unix:/no/such/socket": "No such file or directory",
    }.items():
        said = refused(place.client, name, f"url={url}", sameas=cluster.uuid, env={TOKEN: SECRET})
        assert f"{url.removeprefix('file://')}: connecting: " in said
        assert complaint in said
        assert SECRET not in said
        assert f"url={url}" in corrected(said)


def test_a_failed_initremote_succeeds_once_the_address_is_reachable(environment: Environment) -> None:
    cluster = make_cluster(environment, environment.directory, nodes=1)
    client = cluster.clone()
    with cluster.gateway.unplugged():
        said = refused(client, "mycl", f"url={cluster.gateway.path}", sameas=cluster.uuid)
    obey(client, corrected(said))
    assert reaches(client, "mycl", cluster.uuid)


def test_enableremote_of_an_address_with_another_repository_is_refused(environment: Environment) -> None:
    cluster = make_cluster(environment, environment.directory, nodes=1)
    client = cluster.clone()
    initremote(client, "mycl", f"url={cluster.gateway.path}", sameas=cluster.uuid, private=False)
    elsewhere = f"url={cluster.nodes[0].path}"
    done = client.annex("enableremote", "mycl", elsewhere, "encryption=none", check=False)
    assert done.returncode != 0
    assert "is first disk (attic), not cluster mycluster; give its url: git annex enableremote mycl" in text(done)
    key = client.add("f", b"as before")
    client.annex("copy", "--to", "mycl", "f")
    assert cluster.holders(key) == [True]
