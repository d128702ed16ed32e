"""Programs that stand in for git-annex-shell on the PATH of an environment."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from .environment import Environment

# Only the first line can be rewritten safely: later ones may be part of a DATA body.
LIMITED_SHELL = '''\
"""git-annex-shell limited to version {version} of the P2P protocol, like that of an older git-annex."""
import os, subprocess, sys, threading

if "p2pstdio" not in sys.argv:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])

VERSION = {version}
real = subprocess.Popen([{real!r}, *sys.argv[1:]], stdin=-1, stdout=-1 if VERSION == 0 else None)
real_in = real.stdin.fileno()
greeted = threading.Event()


def write(descriptor, data):
    while data:
        data = data[os.write(descriptor, data):]


def forward():
    """Pass the input on: the first line rewritten, everything after it unchanged."""
    line = b""
    while not line.endswith(b"\\n"):
        byte = os.read(0, 1)
        if not byte:
            break
        line += byte
    words = line.split()
    if len(words) == 2 and words[0] == b"VERSION" and words[1].isdigit():
        if VERSION == 0:
            greeted.wait()
            write(1, b"ERROR unknown command\\n")
            line = b""
        else:
            line = b"VERSION %d\\n" % min(VERSION, int(words[1]))
    try:
        write(real_in, line)
        while chunk := os.read(0, 1 << 18):
            write(real_in, chunk)
    except BrokenPipeError:
        pass  # it has ended; so shall we, with its exit status
    real.stdin.close()


threading.Thread(target=forward, daemon=True).start()
if VERSION == 0:
    real_out = real.stdout.fileno()
    while chunk := os.read(real_out, 1 << 18):
        write(1, chunk)
        if b"\\n" in chunk:
            greeted.set()
os._exit(real.wait())
'''


def limit_version(environment: Environment, version: int) -> Path:
    """Make git-annex-shell in an environment speak no later version of the P2P protocol than this.

    It is the real one, which is asked for less: `VERSION n` is rewritten on the way (1 to 3), or answered with ERROR
    and kept from it (0), as programs answered that did not know VERSION yet. Everything else passes unchanged.

    Returns the shim's path; remove it, or call this again, to change the limit.
    """
    if version not in (0, 1, 2, 3):
        raise ValueError(f"there is no limit to version {version}")
    real = str(environment.which("git-annex-shell"))
    return _install(environment, LIMITED_SHELL.format(real=real, version=version))


# The peer is ended by the test; the shim follows in either direction.
SCRIPTED_SHELL = '''\
"""git-annex-shell whose p2pstdio connects to a unix socket."""
import os, socket, sys, threading

if "p2pstdio" not in sys.argv:
    os.execv({real!r}, [{real!r}, *sys.argv[1:]])

peer = socket.socket(socket.AF_UNIX)
peer.connect({path!r})


def forward():
    try:
        while chunk := os.read(0, 1 << 18):
            peer.sendall(chunk)
        peer.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # the peer has closed, which the other direction notices too


threading.Thread(target=forward, daemon=True).start()
try:
    while chunk := peer.recv(1 << 18):
        while chunk:
            chunk = chunk[os.write(1, chunk):]
except OSError:
    os._exit(1)
os._exit(0)
'''


def scripted_shell(environment: Environment, path: Path) -> Path:
    """Make `git-annex-shell p2pstdio` connect to a unix socket, whatever its arguments.

    With a scripted peer there, a child process or the far end of ssh stalls or talks nonsense. The peer greets
    first. Other commands of git-annex-shell are the real ones.

    Returns the shim's path; remove it to have the real program back.
    """
    real = str(environment.which("git-annex-shell"))
    return _install(environment, SCRIPTED_SHELL.format(real=real, path=str(path)))


def _install(environment: Environment, source: str) -> Path:
    """Put Python source on PATH as git-annex-shell, in an interpreter that starts quickly."""
    file = environment.home / "git-annex-shell.py"
    file.write_text(source)
    command = shlex.join([sys.executable, "-ISs", str(file)])
    return environment.program("git-annex-shell", f'#!/bin/sh\nexec {command} "$@"\n')
