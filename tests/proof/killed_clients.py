"""`python -m tests.proof.killed_clients --clients 50 --minutes 5`: native clients over HTTP, of which half are killed.

The others have to go on without an error, and in the end the gateway has to be as it was: no descriptors, children or
places are left to those that are gone, and it has not grown.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import subprocess
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster_remote.p2p.server import Mode
from tests.gateway.test_web import Web, cloned, web_of
from tests.support.environment import temporary_environment
from tests.support.processes import descendants, end_group, wait_until
from tests.support.repositories import Repository, make_cluster, templates

SIZE = 2_000_000
"""Bytes of a content: enough for a client to be killed in the middle of it."""
_ROUTINE = re.compile(r"\d+ requests? \(|gave way|serving|more rejected")
# Seconds after which idle sessions of the gateway are closed, and then some.
_SETTLED = 75.0


@dataclass
class Account:
    """What happened; `before` and `after` are the gateway's descriptors, children and resident kilobytes.

    `said` is what the gateway's log has beside the ends of connections.
    """

    done: Counter[str] = field(default_factory=Counter)
    killed: int = 0
    failures: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    before: tuple[int, int, int] = (0, 0, 0)
    after: tuple[int, int, int] = (0, 0, 0)

    def __str__(self) -> str:
        requests = ", ".join(f"{count} {name}" for name, count in sorted(self.done.items()))
        return (
            f"done: {requests}; killed: {self.killed}; failed: {len(self.failures)}\n"
            f"descriptors, children, resident kB before {self.before}, after {self.after}"
        )


def usage(pid: int) -> tuple[int, int, int]:
    """Descriptors, children and resident kilobytes of a process."""
    status = Path(f"/proc/{pid}/status").read_text()
    resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return len(list(Path(f"/proc/{pid}/fd").iterdir())), len(descendants(pid)), resident


def copies(first: Repository, number: int) -> Iterator[Repository]:
    """Copy a clone, each time with a UUID of its own."""
    for each in range(number):
        path = first.path.with_name(f"client{each}")
        shutil.copytree(first.path, path, symlinks=True)
        repository = Repository(path, first.environment)
        repository.git("config", "annex.uuid", str(uuid.uuid4()))
        yield repository


def steady(client: Repository, name: str, until: float, account: Account) -> None:
    """Store, fetch and remove until the time is over."""
    number = 0
    while time.monotonic() < until and not account.failures:
        number += 1
        file = f"{name}-{number}"
        content = os.urandom(SIZE)
        client.add(file, content)
        for step in (
            ("copy", "--to", "origin-mycluster"),
            ("drop",),
            ("get", "--from", "origin-mycluster"),
            ("drop", "--from", "origin-mycluster"),
        ):
            run = client.annex(step[0], *step[1:], file, check=False, timeout=300)
            if run.returncode != 0:
                account.failures.append(f"{name}: {' '.join(step)}: {run.stdout.decode()}{run.stderr.decode()}")
                return
            account.done[" ".join(step[:2])] += 1


def victim(client: Repository, name: str, until: float, account: Account, chance: random.Random) -> None:
    """Start transfers and kill them, again and again."""
    number = 0
    while time.monotonic() < until:
        number += 1
        file = f"{name}-{number}"
        # What the last one that was killed has left.
        (client.path / ".git/index.lock").unlink(missing_ok=True)
        client.add(file, os.urandom(SIZE))
        for step in (("copy", "--to"), ("get", "--from"), ("move", "--to")):
            process = client.environment.popen(
                *("git", "annex", step[0], step[1], "origin-mycluster", file),
                cwd=client.path,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            try:
                process.wait(chance.uniform(0.1, 4))
            except subprocess.TimeoutExpired:
                account.killed += 1
            end_group(process.pid)
            process.wait(30)


@contextmanager
def _gateway() -> Iterator[Web]:
    with (
        temporary_environment(30) as environment,
        web_of(make_cluster(environment, environment.directory), forked=False) as web,
    ):
        yield web


def run(clients: int, seconds: float, seed: int = 1) -> Account:
    """Run so many clients for so long."""
    account = Account()
    with _gateway() as web:
        first = cloned(web, Mode.READ_WRITE, "first")
        made = list(copies(first, clients))
        # What the gateway has opened for good.
        first.add("warm", os.urandom(SIZE))
        first.annex("copy", "--quiet", "--to", "origin-mycluster", "warm")
        time.sleep(1)
        account.before = usage(web.process.pid)
        until = time.monotonic() + seconds
        threads = []
        for number, client in enumerate(made):
            arguments = (client, f"c{number}", until, account)
            if number % 2:
                chance = random.Random(f"{seed} {number}")
                threads.append(threading.Thread(target=victim, args=(*arguments, chance)))
            else:
                threads.append(threading.Thread(target=steady, args=arguments))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        descriptors, children, _ = account.before
        wait_until(lambda: _no_more(usage(web.process.pid), descriptors, children), _SETTLED)
        account.after = usage(web.process.pid)
        first.add("last", os.urandom(SIZE))
        first.annex("copy", "--quiet", "--to", "origin-mycluster", "last")
        account.said = [line for line in web.log.read_text().splitlines() if not _ROUTINE.search(line)]
    return account


def _no_more(now: tuple[int, int, int], descriptors: int, children: int) -> bool:
    return now[0] <= descriptors and now[1] <= children


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    try:
        account = run(options.clients, options.minutes * 60, options.seed)
    finally:
        templates.close()
    print(account)
    for failure in account.failures:
        print("**", failure)
    for line in account.said:
        print("gateway:", line)
    raise SystemExit(1 if account.failures else 0)


if __name__ == "__main__":
    main()
