"""Steps in a world, and the invariants after each.

A step is a word and a number, from which all that it does is derived; so any list of steps can be run again, and a
part of it, which is how a failure is made small.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.proof.world import REMOTE, TIMEOUT, Look, Place, World, content
from tests.support.processes import Process, end_group, wait_until
from tests.support.repositories import locked

HANG = 60.0
"""Seconds after which a command counts as hung."""
SETTLE = 15.0
"""Seconds that a command's children may outlast it after something was killed."""

REMOVES = {"drop", "drop --from", "move --to", "move --from"}

Pair = tuple[str, str]


@dataclass(frozen=True)
class Step:
    """A kind of step, and a number that determines its details."""

    kind: str
    number: int

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}"


@dataclass
class Outcome:
    """The outcome of a command.

    Attributes:
        verb: as in COMMANDS.
        actor: the client.
        key: the key that it was about; None where it was about all files.
        remote: its --to or --from; empty where it had none.
        checked: how many copies it had to leave; 0 where it was forced to leave none.
        success: what it reported for the key; None where it said nothing, so that nothing was done.
        text: what it wrote.
        code: its exit code.
        disturbed: whether something was killed or stopped meanwhile.
        killed: whether that was the command itself or its special remote, so that nobody was left to record.
        fast: whether git-annex is not to ask whether the content is there already.
    """

    verb: str
    actor: Place
    key: str | None
    remote: str
    checked: int
    success: bool | None = None
    text: str = ""
    code: int = 0
    disturbed: bool = False
    killed: bool = False
    fast: bool = False

    def __str__(self) -> str:
        key = "" if self.key is None else f" {self.key[:24]}"
        force = " --force" if self.checked == 0 else f" --numcopies={self.checked}"
        said = {True: "ok", False: "failed", None: "nothing"}[self.success]
        return f"{self.actor.name}: {self.verb} {self.remote}{key}{force} -> {said}"


@dataclass
class Deed:
    """What a step did.

    Attributes:
        words: for the reader of the trail.
        taken: copies that were touched behind git-annex's back.
        outcomes: of its commands.
        spread: whether the clients exchanged their logs.
        faults: what is wrong already.
        before: what was true before what is to be judged, where that began in the middle of the step.
    """

    words: list[str] = field(default_factory=list)
    taken: set[Pair] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)
    spread: bool = False
    faults: list[str] = field(default_factory=list)
    before: Look | None = None


class Machine:
    """A world, what is known of it, and what was done to it behind its back.

    Attributes:
        taken: copies that logs may name though they are not there, or not whole: somebody touched them.
        stale: lines that a repository cannot know to be wrong: (whose log, UUID, key).
        trail: what was done, in words.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = world.look()
        self.taken: set[Pair] = set()
        self.stale: set[tuple[str, str, str]] = set()
        self.trail: list[str] = []
        assert not self._untrue(self.now), "the log is not true at the beginning"

    def take(self, step: Step) -> list[str]:
        """Take a step; return what is wrong afterwards, in words."""
        deed = Deed()
        choose = random.Random(step.number)
        before = self.now
        begun = time.monotonic()
        STEPS[step.kind](self, deed, choose)
        disturbed = any(outcome.disturbed for outcome in deed.outcomes)
        if not wait_until(lambda: not self.world.busy(), SETTLE if disturbed else 5.0):
            deed.faults.append("left running: " + "; ".join(map(str, self.world.busy())))
            for process in self.world.busy():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        if self.world.restart_if_killed():
            deed.words.append("gateway started again")
        self.now = self.world.look()
        before = deed.before or before
        self._learn(before, deed)
        words = "; ".join([*deed.words, *map(str, deed.outcomes)])
        self.trail.append(f"{step} ({time.monotonic() - begun:.1f} s) {words}")
        faults = [*deed.faults, *self._judge(before, deed), *self._untrue(self.now)]
        self._forget()
        if faults:
            faults += [f"  {outcome}: {outcome.text.strip()[-1500:]}" for outcome in deed.outcomes]
        return faults

    # What must be true

    def _learn(self, before: Look, deed: Deed) -> None:
        """Record which log lines may be wrong from now on."""
        self.taken |= deed.taken
        self.taken |= {pair for pair in self.now.damaged - before.objects if self._from_one_node(*pair)}
        gone = before.objects - self.now.objects - deed.taken
        for outcome in deed.outcomes:
            for uuid, key in gone:
                if outcome.key == key and outcome.verb in REMOVES and uuid in self._reach(outcome):
                    if outcome.killed or (outcome.disturbed and not outcome.success):
                        # Done, but nobody was left to write it down.
                        self.taken.add((uuid, key))
                    recorders = {outcome.actor.uuid}
                    # git-annex's own gateway writes nothing down where one of its nodes could not be asked.
                    writes = self.world.way == "served" or (self.world.way == "native" and outcome.success)
                    if writes and uuid != outcome.actor.uuid:
                        recorders.add(self.world.gateway.uuid)
                    self.stale |= {(o.uuid, uuid, key) for o in self.world.observers if o.uuid not in recorders}
        if deed.spread:
            self.stale |= {(o.uuid, uuid, key) for o in self.world.observers for _, uuid, key in tuple(self.stale)}

    def _forget(self) -> None:
        """Forget excuses for what is true again."""
        self.taken -= self.now.whole
        self.stale = {
            (observer, uuid, key)
            for observer, uuid, key in self.stale
            if (observer, uuid, key) in self.now.lines and (uuid, key) not in self.now.whole
        }

    def _untrue(self, now: Look) -> list[str]:
        return [
            f"the log of {self._name(observer)} says {self._name(uuid)} has {key[:24]}, which it has not"
            for observer, uuid, key in sorted(now.lines)
            if (uuid, key) not in now.whole
            and (uuid, key) not in self.taken
            and (observer, uuid, key) not in self.stale
        ]

    def _judge(self, before: Look, deed: Deed) -> list[str]:
        faults: list[str] = []
        now, outcomes = self.now, deed.outcomes
        for uuid, key in sorted(before.whole - now.whole - deed.taken):
            asked = [o for o in outcomes if o.key == key and o.verb in REMOVES and uuid in self._reach(o)]
            what = f"the good copy of {key[:24]} on {self._name(uuid)}"
            if (uuid, key) in now.damaged:
                faults.append(f"{what} is damaged now")
            elif not asked:
                faults.append(f"{what} is gone, and nobody asked for that")
            elif not any(o.success or o.disturbed or self._named(uuid, o) for o in asked):
                faults.append(f"{what} is gone, and the command that took it away does not say so")
        for uuid, key in sorted(now.damaged - before.objects - deed.taken):
            if not self._from_one_node(uuid, key):
                faults.append(f"{self._name(uuid)} was given a wrong {key[:24]}")
        for outcome in outcomes:
            faults += self._judge_one(before, outcome, alone=len(outcomes) == 1)
        return faults

    def _judge_one(self, before: Look, outcome: Outcome, *, alone: bool) -> list[str]:
        faults: list[str] = []
        now, key = self.now, outcome.key
        for word in ("Traceback", "internal error"):
            if word in outcome.text:
                faults.append(f"{word} in the output of {outcome}")
        if key is None or not outcome.success or not alone:
            return faults
        here = (outcome.actor.uuid, key)
        reach = self.world.remotes.get(outcome.remote, frozenset())
        there = {(uuid, key) for uuid in reach}
        match outcome.verb:
            case "drop --from" | "move --from" if left := there & now.objects:
                faults += [f"{outcome} succeeded, and left {key[:24]} on {self._name(uuid)}" for uuid, _ in left]
            case "drop" | "move --to" if here in now.objects:
                faults.append(f"{outcome} succeeded, and left it here")
        if outcome.verb in ("copy --to", "move --to") and not there & now.objects:
            faults.append(f"{outcome} succeeded, and no node has it")
        if outcome.verb in ("get", "move --from") and here not in now.objects:
            faults.append(f"{outcome} succeeded, and it is not here")
        # Copies that git-annex may count: an object may be damaged without anybody knowing.
        had = sum(k == key for _, k in before.objects)
        have = sum(k == key for _, k in now.objects)
        if have < had and outcome.verb in REMOVES:
            needed = outcome.checked
            if outcome.verb == "move --from":
                # git-annex lets a move take all copies of a cluster where there was none here.
                needed = min(needed, have) if here not in before.objects else min(needed, had)
            elif outcome.verb == "move --to":
                needed = min(needed, had)
            if have < needed:
                faults.append(f"{outcome} left {have} of {had} copies, with numcopies {needed}")
        return faults

    def _from_one_node(self, uuid: str, key: str) -> bool:
        """Return whether wrong content without a checksum is at least a whole content of one node."""
        path = self.world.object_file(self.world.places[uuid], key)
        return path is not None and path.read_bytes() in self.world.garbage.get(key, ())

    def _reach(self, outcome: Outcome) -> frozenset[str]:
        """Return where a command may remove."""
        if outcome.verb in ("drop", "move --to"):
            return frozenset({outcome.actor.uuid})
        return self.world.remotes.get(outcome.remote, frozenset())

    def _named(self, uuid: str, outcome: Outcome) -> bool:
        """Return whether a failed command reports that it removed a copy."""
        place = self.world.places[uuid]
        return any(word in outcome.text for word in (uuid, place.name, self.world.descriptions.get(uuid, uuid)))

    def _name(self, uuid: str) -> str:
        return self.world.places[uuid].name

    # Commands

    def begin(self, outcome: Outcome) -> Running:
        """Start a command of git-annex, or of ours."""
        return Running(self.world, outcome)

    def finish(self, running: Running, deed: Deed) -> None:
        """Wait until it ends."""
        if not running.finish():
            deed.faults.append(f"{running.outcome} had not ended after {HANG:.0f} s")
        deed.outcomes.append(running.outcome)

    def command(self, choose: random.Random, verbs: Sequence[str], key: str | None = None) -> Outcome:
        """A command about one key."""
        for _ in range(8):
            verb = choose.choice(verbs)
            remote = choose.choice([REMOTE, REMOTE, REMOTE, "node1", "node2", "node3"])
            if verb == "drop" or (verb == "get" and choose.random() < 0.5):
                remote = ""
            elif verb == "fsck --from":
                remote = REMOTE
            checked = choose.choice([1, 1, 2, 2, 3, 0] if "drop" in verb else [1, 2, 2, 3])
            client = choose.choice([*self.world.clients, self.world.clients[0]])
            outcome = Outcome(verb, client, key or choose.choice(self.world.keys), remote, checked)
            if self.has_something_to_do(outcome):
                break
        return outcome

    def has_something_to_do(self, outcome: Outcome) -> bool:
        """Return whether a command does more than read the log."""
        here = (outcome.actor.uuid, outcome.key) in self.now.objects
        remote = self.world.remotes[outcome.remote or REMOTE]
        there = sum((uuid, outcome.key) in self.now.objects for uuid in remote)
        match outcome.verb:
            case "copy --to" | "move --to":
                return here and there < len(remote)
            case "get":
                return there > 0 and not here
            case "drop":
                return here
            case _:
                return there > 0


class Running:
    """A command that has been started."""

    def __init__(self, world: World, outcome: Outcome) -> None:
        self.world = world
        self.outcome = outcome
        self._log = world.environment.directory / f"out-{outcome.actor.name}-{time.monotonic_ns()}"
        with self._log.open("wb") as out:
            self.process = world.environment.popen(
                *arguments(outcome),
                cwd=outcome.actor.repository.path,
                stdin=subprocess.DEVNULL,
                stdout=out.fileno(),
                stderr=out.fileno(),
            )

    def finish(self) -> bool:
        """Wait, and read its output; return whether it ended in time."""
        ended = True
        try:
            self.process.wait(HANG)
        except subprocess.TimeoutExpired:
            ended = False
            end_group(self.process.pid)
            self.process.wait(HANG)
        self.outcome.text = self._log.read_text(errors="replace")
        self._log.unlink()
        self.outcome.code = self.process.returncode
        self.outcome.success = self._success()
        return ended

    def _success(self) -> bool | None:
        if self.outcome.verb.startswith("cluster-remote") or self.outcome.key is None:
            return self.process.returncode == 0
        said = None
        for line in self.outcome.text.splitlines():
            if line.startswith("{"):
                with contextlib.suppress(ValueError):
                    said = json.loads(line).get("success", said)
        return said


def arguments(outcome: Outcome) -> list[str]:
    """The command line."""
    if outcome.verb.startswith(("cluster-remote", "git-annex")):
        return [*outcome.verb.split(" "), *([outcome.remote] if outcome.remote else [])]
    verb, _, direction = outcome.verb.partition(" ")
    argv = ["git-annex", verb, "--json", "--json-error-messages"]
    argv += ["--fast"] if outcome.fast else []
    argv += ["--force"] if outcome.checked == 0 else [f"--numcopies={outcome.checked}"]
    if outcome.remote:
        argv += [direction or "--from", outcome.remote]
    assert outcome.key is not None
    return [*argv, "--key", outcome.key]


# Steps

STEPS: dict[str, Callable[[Machine, Deed, random.Random], None]] = {}
WEIGHTS: dict[str, int] = {}


def step(kind: str, weight: int) -> Callable[[Callable[[Machine, Deed, random.Random], None]], None]:
    """Register a kind of step; how often it is taken is in proportion to its weight."""

    def register(function: Callable[[Machine, Deed, random.Random], None]) -> None:
        STEPS[kind] = function
        WEIGHTS[kind] = weight

    return register


def steps(seed: object) -> Iterator[Step]:
    """Generate endless steps, the same for the same seed."""
    choose = random.Random(f"{seed}")
    kinds, weights = list(WEIGHTS), list(WEIGHTS.values())
    while True:
        yield Step(choose.choices(kinds, weights)[0], choose.randrange(10**9))


def _simple(kind: str, weight: int) -> None:
    @step(kind, weight)
    def run(machine: Machine, deed: Deed, choose: random.Random) -> None:
        machine.finish(machine.begin(machine.command(choose, [kind])), deed)


for _kind, _weight in (
    ("copy --to", 16),
    ("move --to", 8),
    ("drop", 8),
    ("get", 10),
    ("drop --from", 8),
    ("move --from", 5),
    ("fsck --from", 6),
):
    _simple(_kind, _weight)


@step("ask", 5)
def _ask(machine: Machine, deed: Deed, choose: random.Random) -> None:
    """Check presence: 0 is yes, 1 is no, anything else unknown."""
    world = machine.world
    about = machine.command(choose, ["fsck --from"])
    about.remote = choose.choice([REMOTE, REMOTE, "node1", "node2", "node3"])
    asked = Outcome(f"git-annex checkpresentkey {about.key} {about.remote}", about.actor, None, "", 1)
    machine.finish(machine.begin(asked), deed)
    reach = world.remotes[about.remote]
    holders = {uuid for uuid in reach if (uuid, about.key) in machine.now.objects and not world.places[uuid].away}
    # git-annex's gateway asks one node that its log names; then we ask those that ours names.
    log = world.gateway if world.way == "served" else about.actor
    if about.remote == REMOTE:
        logged = {uuid for uuid in holders if (log.uuid, uuid, about.key) in machine.now.lines}
    else:
        logged = holders
    if asked.code == 0 and not any((uuid, about.key) in machine.now.objects for uuid in reach):
        deed.faults.append(f"{about.key} is said to be present, and no node has it")
    if asked.code == 1 and logged:
        deed.faults.append(f"{about.key} is said to be absent, and {len(logged)} nodes have it")


@step("repair", 3)
def _repair(machine: Machine, deed: Deed, choose: random.Random) -> None:
    client = choose.choice(machine.world.clients)
    machine.finish(machine.begin(Outcome(f"cluster-remote repair {REMOTE}", client, None, "", 1)), deed)


@step("check", 3)
def _check(machine: Machine, deed: Deed, choose: random.Random) -> None:
    client = choose.choice(machine.world.clients)
    fix = choose.choice(["", " --fix", " --fix"])
    machine.finish(machine.begin(Outcome(f"cluster-remote check {REMOTE}{fix}", client, None, "", 1)), deed)


@step("sync", 1)
def _sync(machine: Machine, deed: Deed, choose: random.Random) -> None:
    deed.spread = True
    client = choose.choice(machine.world.clients)
    verb = choose.choice(["git-annex sync --content", "git-annex sync --no-content"])
    machine.finish(machine.begin(Outcome(verb, client, None, "", 1)), deed)


@step("away", 4)
def _away(machine: Machine, deed: Deed, choose: random.Random) -> None:
    node = choose.choice(machine.world.nodes)
    if not node.away:
        node.repository.path.rename(node.elsewhere)
        deed.words.append(f"{node.name} goes away")


@step("back", 6)
def _back(machine: Machine, deed: Deed, choose: random.Random) -> None:
    for node in machine.world.nodes:
        if node.away and choose.random() < 0.8:
            node.elsewhere.rename(node.repository.path)
            deed.words.append(f"{node.name} comes back")


@step("take", 6)
def _take(machine: Machine, deed: Deed, choose: random.Random) -> None:
    """A copy vanishes, or all of a node's; often a command notices at once."""
    world = machine.world
    node, key = _held(machine, choose)
    for each in list(world.contents) if choose.random() < 0.25 else [key]:
        path = world.object_file(node, each)
        if path is not None:
            path.parent.chmod(0o755)
            path.unlink()
            path.parent.rmdir()
            deed.taken.add((node.uuid, each))
    deed.words.append(f"{node.name} loses {len(deed.taken)} copies behind our back")
    _come_across(machine, deed, choose, key)


@step("damage", 6)
def _damage(machine: Machine, deed: Deed, choose: random.Random) -> None:
    """A copy is damaged; often a command notices at once."""
    node, key = _held(machine, choose)
    path = machine.world.object_file(node, key)
    if path is None:
        return
    data = bytearray(path.read_bytes())
    how = choose.choice(["flip", "flip", "short", "long"])
    if how == "flip" and data:
        data[choose.randrange(len(data))] ^= 0x55
    elif how == "short":
        del data[len(data) // 2 :]
    else:
        data += b"more"
    path.parent.chmod(0o755)
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o444)
    path.parent.chmod(0o555)
    machine.world.garbage.setdefault(key, set()).add(bytes(data))
    deed.taken.add((node.uuid, key))
    deed.words.append(f"{node.name}'s copy of {key[:24]} is damaged ({how})")
    _come_across(machine, deed, choose, key)


def _held(machine: Machine, choose: random.Random) -> tuple[Place, str]:
    """Choose a node and a key that it has, if there is any."""
    world = machine.world
    held = [(node, key) for node in world.nodes for key in world.keys if (node.uuid, key) in machine.now.whole]
    return choose.choice(held or [(world.nodes[0], world.keys[0])])


def _come_across(machine: Machine, deed: Deed, choose: random.Random, key: str) -> None:
    if choose.random() < 0.7:
        verbs = ["fsck --from", "fsck --from", "get", "copy --to", "move --to", "drop", "drop --from", "move --from"]
        machine.finish(machine.begin(machine.command(choose, verbs, key)), deed)


@step("partial", 5)
def _partial(machine: Machine, deed: Deed, choose: random.Random) -> None:
    """Leave something where an unfinished transfer would have left it."""
    place, key = choose.choice([*machine.world.nodes, *machine.world.clients]), choose.choice(machine.world.keys)
    data = machine.world.contents[key]
    how = choose.choice(["short", "long", "wrong", "wrong start", "empty"])
    planted = {
        "short": data[: len(data) // 2],
        "long": data + b"too much",
        "wrong": bytes(len(data)),
        "wrong start": bytes(len(data) // 3),
        "empty": b"",
    }[how]
    if key.startswith("WORM"):
        # Nobody can tell that the beginning is wrong where there is no checksum.
        planted, how = data[: len(data) // 2], "short"
    temporary = place.annex / "tmp"
    temporary.mkdir(exist_ok=True)
    (temporary / key).write_bytes(planted)
    deed.words.append(f"{place.name} has a partial {key[:24]} ({how})")


@step("restore", 5)
def _restore(machine: Machine, deed: Deed, choose: random.Random) -> None:
    """A client gets the content again, as from a camera."""
    client, key = choose.choice(machine.world.clients), choose.choice(machine.world.keys)
    client.repository.set_key(key, machine.world.contents[key])
    deed.words.append(f"{client.name} has {key[:24]}")


@contextlib.contextmanager
def slow(machine: Machine, choose: random.Random) -> Iterator[str]:
    """Slow one node down; behind git-annex's own gateway, all of them."""
    native = machine.world.way == "native"
    name = "gateway" if native else choose.choice(["node1", "node2", "node3"])
    flag = machine.world.environment.directory / f"{name}.slow"
    flag.touch()
    try:
        yield name
    finally:
        flag.unlink()


def _victims(machine: Machine, running: Running, who: str) -> list[Process]:
    world = machine.world
    if who == "client":
        return [Process(running.process.pid, 0, "client")]
    if who == "gateway" and world.way == "served":
        pid = world.serving()
        return [] if pid is None else [Process(pid, 0, "gateway")]
    marks = {"remote": "git-annex-remote-cluster", "gateway": f"p2pstdio {world.gateway.repository.path} "}
    mark = marks.get(who, f"p2pstdio {world.environment.directory / who} ")
    return [process for process in world.environment.processes() if mark in process.command]


def _disturb(machine: Machine, deed: Deed, choose: random.Random, signum: signal.Signals) -> None:
    verbs = ["copy --to", "copy --to", "move --to", "get", "drop --from", "move --from", "fsck --from"]
    # The largest ones, which take the longest.
    for key in choose.sample(machine.world.keys[-3:], 3):
        outcome = machine.command(choose, verbs, key)
        if machine.has_something_to_do(outcome):
            break
    if choose.random() < 0.8:
        outcome.remote = REMOTE if outcome.remote else ""
    who = choose.choice(["client", "remote", "gateway", "node1", "node2", "node3"])
    stopped: list[Process] = []
    is_slow = choose.random() < 0.8
    with slow(machine, choose) if is_slow else contextlib.nullcontext():
        running = machine.begin(outcome)
        wait_until(lambda: running.process.poll() is not None or bool(_victims(machine, running, who)), 1.0)
        time.sleep(choose.uniform(0, 0.8 if is_slow else 0.15))
        for process in _victims(machine, running, who):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signum)
                stopped.append(process)
        outcome.disturbed = bool(stopped)
        outcome.killed = outcome.disturbed and who in ("client", "remote")
        if signum == signal.SIGSTOP:
            if who in ("client", "remote"):
                time.sleep(choose.choice([0.2, 1, TIMEOUT + 1]))
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    running.process.wait(choose.choice([0.5, TIMEOUT + 1, HANG]))
            for process in stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGCONT)
        machine.finish(running, deed)
    deed.words.append(f"{signum.name} of {len(stopped)} process(es): {who}")


@step("kill", 8)
def _kill(machine: Machine, deed: Deed, choose: random.Random) -> None:
    _disturb(machine, deed, choose, signal.SIGKILL)


@step("stop", 3)
def _stop(machine: Machine, deed: Deed, choose: random.Random) -> None:
    _disturb(machine, deed, choose, signal.SIGSTOP)


@step("change", 4)
def _change(machine: Machine, deed: Deed, choose: random.Random) -> None:
    """A file is changed, or dropped here, while it is being sent; a node may have had it before."""
    world = machine.world
    client = choose.choice(world.clients).repository
    place = world.places[client.uuid]
    data = content(4_000_000, choose.random())
    client.write("changing", data)
    client.annex("add", "-c", "annex.addunlocked=true", "--quiet", "changing")
    key = client.key("changing")
    world.contents[key] = data
    had = [node for node in world.nodes if not node.away and choose.random() < 0.4]
    for node in had:
        if world.way == "native":
            # By the gateway, which could not tell else that it is not this upload that brings it there. So it would say
            # that it is there, and nothing would be sent.
            other = next(each for each in world.clients if each is not place)
            other.repository.set_key(key, data)
            other.repository.annex("copy", "--quiet", "--key", key, "--to", node.name)
        else:
            node.repository.set_key(key, data)
    deed.before = world.look()
    how = choose.choice(["write", "touch", "drop"])
    outcome = Outcome("copy --to", place, key, choose.choice([REMOTE, REMOTE, "node2"]), 1, disturbed=True)
    outcome.fast = world.way == "native"
    with slow(machine, choose) as name:
        running = machine.begin(outcome)
        under_way = [node.annex / "tmp" / key for node in world.nodes]
        wait_until(lambda: running.process.poll() is not None or any(map(Path.exists, under_way)), 10)
        time.sleep(choose.uniform(0, 0.8))
        # Whatever becomes of it, this copy is not what it was.
        deed.taken.add((place.uuid, key))
        if how == "drop":
            machine.world.environment.run(*("git-annex", "drop", "--force", "--key", key), cwd=client.path, check=False)
        else:
            with (client.path / "changing").open("ab") as file:
                file.write(b"more" if how == "write" else b"")
            os.utime(client.path / "changing")
        machine.finish(running, deed)
    deed.words.append(f"{how} while it is sent, {name} slow, {', '.join(n.name for n in had) or 'no node'} had it")
    with contextlib.suppress(FileNotFoundError):
        (client.path / "changing").unlink()
    client.git("rm", "--cached", "--quiet", "changing", check=False)


@step("two", 8)
def _two(machine: Machine, deed: Deed, choose: random.Random) -> None:
    """Two clients at once, or two commands of one client; often about the same key."""
    verbs = ["copy --to", "copy --to", "move --to", "get", "drop --from", "drop", "move --from", "fsck --from"]
    first = machine.command(choose, verbs)
    second = machine.command(choose, verbs, first.key if choose.random() < 0.7 else None)
    running = machine.begin(first)
    time.sleep(choose.choice([0, 0.05, 0.15, 0.3]))
    other = machine.begin(second)
    machine.finish(running, deed)
    machine.finish(other, deed)


@step("locked", 2)
def _locked(machine: Machine, deed: Deed, choose: random.Random) -> None:
    """A content is held locked in a node while it is to be dropped."""
    outcome = machine.command(choose, ["drop --from", "move --from"])
    assert outcome.key is not None
    holders = [n for n in machine.world.nodes if not n.away and machine.world.object_file(n, outcome.key)]
    if not holders:
        return
    node = choose.choice(holders)
    with locked(node.repository, outcome.key):
        machine.finish(machine.begin(outcome), deed)
    deed.words.append(f"{node.name} has it locked")
