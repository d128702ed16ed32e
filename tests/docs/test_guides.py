"""The tutorial and the how-to guides: their commands are run as printed, and print what the page shows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.docs.guide import Command, Shell, commands, matches
from tests.support.environment import Environment
from tests.support.slow import only_in_all
from tests.support.sockets import free_port
from tests.support.ssh import SshServer

DOCS = Path(__file__).parents[2] / "docs"

GUIDES = sorted(
    str(path.relative_to(DOCS))
    for path in (DOCS / "tutorial.md", *(DOCS / "how-to").glob("*.md"))
    if commands(path.read_text("utf-8"))
)

NAS = "On the NAS"
"""The title of blocks that run on a machine which others reach as `nas`, by ssh."""


@pytest.fixture
def shell(environment: Environment, ssh_server: SshServer) -> Iterator[Callable[[str], Shell]]:
    """The shell of a title: on the NAS, or else on a laptop that reaches the NAS."""
    config = environment.directory / "ssh" / "config"
    with config.open("a") as out:
        out.write(f"Host nas\n\tHostName 127.0.0.1\n\tPort {ssh_server.port}\n")
    environment.program("ssh", f'#!/bin/sh\nexec {environment.which("ssh")} -F {config} "$@"\n')
    laptop = environment.directory / "laptop"
    laptop.mkdir()
    homes = {"": laptop, NAS: environment.home}
    shells: dict[str, Shell] = {}
    with contextlib.ExitStack() as stack:

        def of(title: str) -> Shell:
            if title not in shells:
                shells[title] = stack.enter_context(Shell(environment, homes[title], {"NO_COLOR": "1"}))
            return shells[title]

        yield of
    if (laptop / ".gnupg").exists():
        # gpg leaves an agent running for as long as its home is there.
        environment.run("gpgconf", "--kill", "all", env={"HOME": str(laptop)})


@pytest.mark.parametrize("page", ["tutorial.md", *only_in_all(*(each for each in GUIDES if each != "tutorial.md"))])
def test_every_command_of_a_guide_does_what_the_guide_shows(page: str, shell: Callable[[str], Shell]) -> None:
    # Other tests may listen on the printed port.
    text = (DOCS / page).read_text("utf-8").replace("9420", str(free_port()))
    for command in commands(text):
        code, printed = shell(command.shell).run(command)
        where = f"docs/{page}, line {command.line}: {command.text}"
        assert (code != 0) is command.fails, f"{where}\nended with {code}:\n{printed}"
        assert not command.output or matches(command.output, printed), (
            f"{where}\nis to print\n{command.output}\nand printed\n{printed}"
        )


def test_there_is_a_tutorial_and_a_guide_for_every_way_to_a_cluster() -> None:
    guides = ("disks-and-nas", "gateway-ssh", "gateway-socket", "gateway-tls")
    assert {"tutorial.md", *(f"how-to/{each}.md" for each in guides)} <= set(GUIDES)


PAGE = """\
Some words.

```console
$ echo one; echo two
one
…
$ cd /
```

<!-- the last command fails -->

```console title="On the NAS"
$ printf '%s' \\
    three
$ false
```
"""


def test_a_page_is_parsed_into_its_commands_and_output() -> None:
    assert commands(PAGE) == [
        Command(4, "", "echo one; echo two", "one\n…", False),
        Command(7, "", "cd /", "", False),
        Command(13, "On the NAS", "printf '%s' \\\n    three", "", False),
        Command(15, "On the NAS", "false", "", True),
    ]


@pytest.mark.parametrize(
    ("shown", "printed"),
    [
        ("copy f (to x...) ok", "copy f (to x...) \n5%  1 KiB\r100%  2 KiB\r      ok\n(recording state in git...)\n"),
        ("a\n…\nd", "a\nb\nc\nd\n"),
        ("a … d", "a d"),
        ("3 MB in … ms", "3 MB in 12 ms"),
        ("f\n  …one\n  …two\n  g\nok", "f \n\t1 -- two\n\t2 -- one\n\n  g\nok\n"),
    ],
)
def test_output_is_compared_as_a_terminal_leaves_it(shown: str, printed: str) -> None:
    assert matches(shown, printed)


@pytest.mark.parametrize(("shown", "printed"), [("ok", "failed"), ("a …", "b a"), ("a", "a b"), ("a.b", "axb")])
def test_different_output_is_detected(shown: str, printed: str) -> None:
    assert not matches(shown, printed)


def test_a_command_runs_to_its_end_and_its_exit_code_is_checked(environment: Environment) -> None:
    with Shell(environment, environment.home, {}) as shell:
        assert shell.run(Command(1, "", "cd /tmp; export X=there", "", False)) == (0, "")
        assert shell.run(Command(2, "", 'echo "$X $PWD"; printf unended; (exit 3)', "", False)) == (
            3,
            "there /tmp\nunended",
        )
        stays = Command(3, "", "{ sleep 0.1; echo begun; exec sleep 1000; } &", "begun", False)
        assert shell.run(stays) == (0, "begun\n")
