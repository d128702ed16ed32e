"""Generate pictures of terminals, docs/pictures/*.svg: `python docs/make_pictures.py`.

The commands run on a pseudo-terminal, in a small cluster of real repositories in a temporary directory, with a few
faults. The pictures show their unedited output, do not reveal the machine that they were made on, and load nothing from
elsewhere.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

COLUMNS = 100
# The name of the temporary directory in the pictures.
SHOWN_AS = "/home/tess"
NODES = {"attic": "disk in the attic", "nas": "nas in the hall", "usb": "usb stick"}
GIT_CONFIG = "[user]\n\tname = Tess\n\temail = tess@example.com\n[init]\n\tdefaultBranch = main\n[gc]\n\tauto = 0\n"

# rich erases its last output like this: the cursor's line, if any, and the lines above it.
_ERASED = re.compile(r"\r(?:\x1b\[2K|(?=\x1b\[1A))(?:\x1b\[1A\x1b\[2K)*")
_CURSOR = re.compile(r"\x1b\[\?25[lh]")
_COUNTS = re.compile(r"(\d+)/(\d+)")
# The viewer's own monospaced font, instead of one from the network.
_FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, DejaVu Sans Mono"
_TEMPLATE = re.sub(r"@font-face \{\{.*?\}\}\s*|<!--.*?-->\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
_TEMPLATE = _TEMPLATE.replace("Fira Code", _FONTS)


class Stage:
    """Repositories below one directory, with a HOME and a git configuration of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / ".gitconfig").write_text(GIT_CONFIG)
        self.env = {
            "HOME": str(directory),
            "PATH": os.environ["PATH"],
            "GIT_CONFIG_NOSYSTEM": "1",
            "LC_ALL": "C.UTF-8",
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "COLUMNS": str(COLUMNS),
        }

    def run(self, where: str, *command: str, input: bytes = b"") -> str:
        """Run a command without showing it; return its output."""
        cwd = self.directory / where
        done = subprocess.run(
            command, cwd=cwd, env=self.env, input=input, capture_output=True, timeout=120, check=False
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} exited with code {done.returncode}: {done.stderr.decode()}")
        return done.stdout.decode()

    def on_terminal(self, where: str, *command: str) -> str:
        """Return everything that a command writes to a terminal."""
        ours, its = pty.openpty()
        written = io.BytesIO()
        with subprocess.Popen(command, cwd=self.directory / where, env=self.env, stdin=its, stdout=its, stderr=its):
            os.close(its)
            try:
                while chunk := os.read(ours, 1 << 16):
                    written.write(chunk)
            except OSError:
                # The other end of the pseudo-terminal was closed.
                pass
            finally:
                os.close(ours)
        text = written.getvalue().decode().replace("\r\n", "\n").replace(str(self.directory), SHOWN_AS)
        # git-annex's messages contain the machine's name.
        return _CURSOR.sub("", text.replace(f" in {socket.gethostname()} on ", " in desk on "))


@contextmanager
def stage() -> Iterator[Stage]:
    """Yield a stage in a temporary directory, and delete it at the end."""
    directory = Path(tempfile.mkdtemp(prefix="cluster-remote-pictures-")).resolve()
    try:
        yield Stage(directory)
    finally:
        # git-annex write-protects its objects.
        for folder, _folders, _files in os.walk(directory):
            Path(folder).chmod(0o700)
        shutil.rmtree(directory)


def build(made: Stage, files: int) -> None:
    """Create `photos` with the cluster `everywhere`, whose three nodes have the content of all `files` files."""
    made.run(".", "git", "init", "--quiet", "photos")
    made.run("photos", "git", "annex", "init", "--quiet", "desk")
    for number in range(files):
        (made.directory / "photos" / f"photo-{number + 1:03}.jpg").write_bytes(f"photo {number}\n".encode() * 50_000)
    made.run("photos", "git", "annex", "add", "--quiet", ".")
    made.run("photos", "git", "commit", "--quiet", "--message", "photos")
    for name, description in NODES.items():
        made.run(".", "git", "clone", "--quiet", "photos", name)
        made.run(name, "git", "annex", "init", "--quiet", description)
        made.run("photos", "git", "remote", "add", name, str(made.directory / name))
    made.run("photos", "git", "fetch", "--quiet", "--all")
    made.run("photos", "git", "annex", "info", "--fast")
    made.run("photos", "cluster-remote", "setup", "everywhere", *(word for name in NODES for word in ("--node", name)))
    made.run("photos", "git", "annex", "copy", "--quiet", "--to", "everywhere", ".")


def add_keys(made: Stage, keys: int) -> None:
    """Add `keys` contents to every node directly, since copying them through a remote would take long."""
    contents = {}
    for number in range(keys):
        content = f"photo number {number}\n".encode()
        contents[f"SHA256E-s{len(content)}--{hashlib.sha256(content).hexdigest()}.jpg"] = content
    lines = "".join(f"{key}\n" for key in contents).encode()
    folders = made.run("photos", "git", "annex", "examinekey", "--batch", "--format=${hashdirmixed}\n", input=lines)
    located = []
    for name in NODES:
        for (key, content), folder in zip(contents.items(), folders.split("\n"), strict=False):
            directory = made.directory / name / ".git/annex/objects" / folder / key
            directory.mkdir(parents=True)
            (directory / key).write_bytes(content)
            located.append(f"{key} {_uuid(made, name)} 1\n")
    made.run("photos", "git", "annex", "setpresentkey", "--batch", input="".join(located).encode())


def damage(made: Stage) -> None:
    """Make one node unreachable, delete content from another, and delete a line of the third from the log."""
    for file in ("photo-003.jpg", "photo-008.jpg"):
        path = made.directory / "nas" / made.run("nas", "git", "annex", "contentlocation", _key(made, file)).strip()
        path.parent.chmod(0o700)
        path.unlink()
    made.run("photos", "git", "annex", "setpresentkey", _key(made, "photo-005.jpg"), _uuid(made, "attic"), "0")
    (made.directory / "usb").rename(made.directory / "unplugged")


@functools.cache
def _uuid(made: Stage, name: str) -> str:
    return made.run(name, "git", "config", "annex.uuid").strip()


def _key(made: Stage, file: str) -> str:
    return made.run("photos", "git", "annex", "lookupkey", file).strip()


def final_frame(written: str) -> str:
    """Return what is visible when a command has ended."""
    return _ERASED.split(written)[-1]


def middle_frame(written: str) -> str:
    """Return what is visible when a command's progress is closest to one half."""

    def distance(frame: str) -> float:
        done = [int(count) / int(total) for count, total in _COUNTS.findall(frame)]
        return abs(sum(done) / len(done) - 0.5) if len(done) == len(NODES) else 1.0

    return min(_ERASED.split(written), key=distance)


def draw(title: str, shown: str) -> str:
    """Draw a terminal with this text as SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text.from_ansi(shown.strip("\n")), end="")
    drawn = console.export_svg(title=title, code_format=_TEMPLATE, unique_id=re.sub(r"\W", "-", title))
    return "\n".join(line.rstrip() for line in drawn.splitlines()) + "\n"


def pictures(files: int = 40, keys: int = 3000) -> Mapping[str, str]:
    """Return the pictures, by name, of a cluster with `files` files; the one of the progress has `keys` more keys."""
    with stage() as made:

        def typed(*command: str, shown: Callable[[str], str]) -> str:
            written = made.on_terminal("photos", *command)
            line = " ".join(command)
            return draw(" ".join(command[:2]), f"\x1b[1m$ {line}\x1b[0m\n{shown(written)}")

        build(made, files)
        damage(made)
        drawn = {
            "status": typed("cluster-remote", "status", "everywhere", shown=final_frame),
            "check": typed("cluster-remote", "check", "everywhere", shown=final_frame),
        }
        (made.directory / "unplugged").rename(made.directory / "usb")
        add_keys(made, keys)
        drawn["progress"] = typed("cluster-remote", "check", "everywhere", "--all", shown=middle_frame)
    return drawn


if __name__ == "__main__":
    into = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures"
    into.mkdir(exist_ok=True)
    for name, picture in pictures().items():
        (into / f"{name}.svg").write_text(picture, "utf-8")
