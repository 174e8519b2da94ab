"""Scenarios as text: the interpreter of ``tests/replication/scenarios/*.txt``.

A file is prose (lines that start with ``#``), and blocks of commands with the output that is expected of them below
``----``. A blank line ends a block. Replicas are driven by hand over a wire  nothing moves but by a
command. ``pytest tests/replication/test_scenarios.py --rewrite-scenarios`` writes the actual output into the files.

Names: ``r3`` is the address, and the first incarnation there; ``r3'`` is the second one, ``r3''`` the third.
A dot is ``r3':4``. Clients are named by those who use them; what they carry is their metadata.

Before the start:

    set log 9 | piece 2 | batch 3 | snapshots 1     limits in updates, keys, updates, receivers

Processes and time:

    replicas r1 r2 r3               start them, knowing each other, and let them find each other
    start r4 [asking r1 …] [clock -3600] [as r1]    an empty process; ``as``: the address that it is told
    crash r2                        its memory is gone
    tick 1.0                        time passes, nobody talks
    flow 1.0                        time passes, everything happens that is due
    cut r1 r2 | isolate r3 | heal   what the network lets through
    alias a1 is r1                  requests to a1 reach r1

Messages:

    exchange r1 r2 [losing request | losing reply]      one round trip: whatever r1 has to ask r2 next
    pull r2 r1                      the next piece of the snapshot that r1 has offered r2
    deliver r2:1 … to r3                                updates, alone
    keep snapshot of r1 as old | join old at r2         a snapshot, alone

Clients (``at`` a replica, ``by`` a client):

    put x=1 [ttl 5] | delete x | get x | siblings x | list | transact read x y write x=1 delete z
    bob hears from ann              bob now depends on all that ann has seen

People and looking:

    add r3 at r1 | remove r3 at r1 | leave r3 | view at r1 | show r1 … | log at r1 | markers at r1 | acks of r1:1 at r1
    unshared at r3 | stopped
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from store.clock import Clock, Dot, Instant, address_of, join
from store.delivery import PendingUpdate
from store.errors import DependenciesMissing, NotServing
from store.log import ENTRY_OVERHEAD_BYTES
from store.snapshot import Snapshot
from store.versions import Change, Update, Version, Write, encode_update
from tests.support.updates import logged_updates
from tests.support.wire import Loss, Wire, address

FIRST = Update("r1:80@0123456789abcdef", 1, 10**15, {}, (Write("x", b"1"),))
UPDATE_BYTES = len(encode_update(FIRST)) + ENTRY_OVERHEAD_BYTES
"""What an update costs in the log that writes a new key; one that replaces something costs more."""


@dataclass
class Block:
    """Lines of prose and commands, and what is expected of them (None: nothing is said). ``line``: where it starts."""

    line: int
    text: list[str]
    expected: list[str] | None = None

    @property
    def commands(self) -> list[str]:
        return [line for line in self.text if line.strip() and not line.startswith("#")]


def read_blocks(path: Path) -> list[Block]:
    """Return the blocks of a scenario file. Raises ValueError for commands without a place for their output."""
    blocks: list[Block] = []
    block = Block(1, [])
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if block.expected is None:
            if line == "----":
                block.expected = []
            else:
                block.text.append(line)
        elif line:
            block.expected.append(line)
        else:
            blocks.append(block)
            block = Block(number + 1, [])
    if block.text or block.expected is not None:
        blocks.append(block)
    for block in blocks:
        if block.commands and block.expected is None:
            raise ValueError(f"{path.name}:{block.line}: commands without ----")
    return blocks


def format_blocks(blocks: Iterable[Block]) -> str:
    """Return the text of a scenario file."""
    texts = []
    for block in blocks:
        lines = block.text if block.expected is None else [*block.text, "----", *block.expected]
        texts.append("\n".join(lines).rstrip("\n"))
    return "\n\n".join(texts) + "\n"


class Names:
    """Short names for replica ids, in the order in which the incarnations of an address appear."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}

    def meet(self, replica: str) -> None:
        ids = self._ids.setdefault(address_of(replica), [])
        if replica not in ids:
            ids.append(replica)

    def short(self, replica: str) -> str:
        self.meet(replica)
        at = address_of(replica)
        return at.removesuffix(":80") + "'" * self._ids[at].index(replica)

    def full(self, short: str) -> str:
        name = short.rstrip("'")
        return self._ids[address(name)][len(short) - len(name)]

    def dot(self, dot: Dot) -> str:
        return f"{self.short(dot[0])}:{dot[1]}"

    def dots(self, dots: Iterable[Dot]) -> str:
        return " ".join(self.dot(dot) for dot in dots) or "nothing"

    def clock(self, clock: Mapping[str, int]) -> str:
        return "{" + " ".join(sorted(self.dot(dot) for dot in clock.items())) + "}"

    def read_dot(self, text: str) -> Dot:
        replica, _, counter = text.rpartition(":")
        return self.full(replica), int(counter)


Command = Callable[..., "list[str]"]
COMMANDS: list[tuple[re.Pattern[str], Command]] = []


def command(pattern: str) -> Callable[[Command], Command]:
    """Let a method do the commands that match ``pattern``; its groups are the arguments."""

    def register(method: Command) -> Command:
        COMMANDS.append((re.compile(pattern), method))
        return method

    return register


@dataclass
class Client:
    """``past``: the metadata that it carries; ``tokens``: replica -> token of the request that waits there."""

    past: Clock = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


AT_BY = r" at (\S+) by (\w+)"


class Scenario:
    """One run of a scenario."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.names = Names()
        self.clients: dict[str, Client] = {}
        self.updates: dict[Dot, Update] = {}
        self.snapshots: dict[str, Snapshot] = {}

    def run(self, line: str) -> list[str]:
        """Do one command and return the lines that it says."""
        for pattern, method in COMMANDS:
            match = pattern.fullmatch(line.strip())
            if match is not None:
                said = method(self, *match.groups())
                self._look_around()
                return said
        raise ValueError(f"no such command: {line}")

    def _look_around(self) -> None:
        """Name the ids and remember the updates that are new since the last command."""
        for process in self.wire.processes.values():
            self.names.meet(process.replica.id)
            log = process.replica.store.log
            for origin in log.origins():
                for update in logged_updates(log, origin):
                    self.updates.setdefault(update.dot, update)

    def now(self, at: str) -> Instant:
        return self.wire.now(at)

    # -- processes and time ----------------------------------------------------------------------------

    @command(r"set (log|piece|batch|snapshots) (\d+)")
    def set_limit(self, what: str, text: str) -> list[str]:
        wire, number = self.wire, int(text)
        if what == "log":
            wire.store_settings = replace(wire.store_settings, max_log_bytes=number * UPDATE_BYTES)
        elif what == "piece":
            wire.settings = replace(wire.settings, snapshot_piece_bytes=(number - 1) * 421 + 1)
        elif what == "batch":
            wire.settings = replace(wire.settings, batch_updates=number)
        else:
            wire.settings = replace(wire.settings, max_snapshots=number)
        return []

    @command(r"replicas (.+)")
    def replicas(self, names: str) -> list[str]:
        self.wire.cluster(*names.split())
        return []

    @command(r"start (\w+)(?: asking ([\w ]+?))?(?: clock (-?\d+))?(?: as (\w+))?")
    def start(self, name: str, seeds: str | None, skew_s: str | None, at: str | None) -> list[str]:
        self.wire.start(name, *(seeds or "").split(), skew_s=float(skew_s or 0), at=address(at) if at else "")
        return []

    @command(r"crash (\w+)")
    def crash(self, name: str) -> list[str]:
        self.wire.crash(name)
        return []

    @command(r"tick ([\d.]+)")
    def tick(self, seconds: str) -> list[str]:
        self.wire.tick(float(seconds))
        return []

    @command(r"flow ([\d.]+)")
    def flow(self, seconds: str) -> list[str]:
        self.wire.flow(float(seconds))
        return []

    @command(r"cut (.+)")
    def cut(self, names: str) -> list[str]:
        self.wire.cut(*names.split())
        return []

    @command(r"isolate (\w+)")
    def isolate(self, name: str) -> list[str]:
        self.wire.isolate(name)
        return []

    @command(r"heal")
    def heal(self) -> list[str]:
        self.wire.heal()
        return []

    @command(r"alias (\w+) is (\w+)")
    def alias(self, alias: str, name: str) -> list[str]:
        self.wire.aliases[address(alias)] = name
        return []

    # -- messages --------------------------------------------------------------------------------------

    @command(r"exchange (\w+) (\w+)(?: losing (request|reply))?")
    def exchange(self, sender: str, receiver: str, lose: Loss | None) -> list[str]:
        request, reply = self.wire.round_trip(sender, receiver, lose or "")
        said = [f"{sender} -> {receiver} {self._message(request)}"]
        said.append(f"{receiver} -> {sender} {self._message(reply)}" if reply else f"{receiver} does not answer")
        return said

    def _message(self, message: Exchange | SnapshotRequest | SnapshotPiece) -> str:
        if isinstance(message, SnapshotRequest):
            return f"asks for piece {message.piece} of a snapshot"
        if isinstance(message, SnapshotPiece):
            if not message.snapshot:
                return "not now"
            keys = " ".join(key for key, _ in message.items) or "nothing"
            return f"piece {message.piece}{', the last' if message.last else ''}: {keys}"
        said = self.names.dots(update.dot for update in message.updates)
        if message.truncated:
            said += ", and the log does not reach back"
        if message.more:
            said += ", more to come"
        return said if message.accepted else "your incarnation is over"

    @command(r"pull (\w+) (\w+)")
    def pull(self, receiver: str, giver: str) -> list[str]:
        _, piece = self.wire.pull(receiver, giver)
        return [f"{giver} -> {receiver} {self._message(piece)}" if piece else f"{giver} does not answer"]

    @command(r"deliver (.+) to (\w+)")
    def deliver(self, dots: str, at: str) -> list[str]:
        store = self.wire[at].store
        before, waiting = dict(store.clock), {item.update.dot for item in store.pending}
        updates = [self.updates[self.names.read_dot(dot)] for dot in dots.split()]
        store.receive(updates, self.now(at))
        applied = [
            (origin, counter)
            for origin, last in store.clock.items()
            for counter in range(before.get(origin, 0) + 1, last + 1)
        ]
        said = [f"{at} applies {self.names.dots(sorted(applied))}"] if applied else []
        said += [f"{at} {self._pending(item)}" for item in store.pending if item.update.dot not in waiting]
        return said or [f"{at} has it already"]

    @command(r"keep snapshot of (\w+) as (\w+)")
    def keep(self, at: str, name: str) -> list[str]:
        self.snapshots[name] = self.wire[at].store.snapshot(self.now(at))
        return []

    @command(r"join (\w+) at (\w+)")
    def join(self, name: str, at: str) -> list[str]:
        self.wire[at].store.join(self.snapshots[name], self.now(at))
        return []

    # -- clients ---------------------------------------------------------------------------------------

    @command(r"put (\w+)=(\S+)(?: ttl (\d+))?" + AT_BY)
    def put(self, key: str, value: str, ttl: str | None, at: str, who: str) -> list[str]:
        change = Change(key, value.encode(), int(ttl) * 1_000_000 if ttl else None)
        return self._write(change, at, who)

    @command(r"delete (\w+)" + AT_BY)
    def delete(self, key: str, at: str, who: str) -> list[str]:
        return self._write(Change(key, None), at, who)

    def _write(self, change: Change, at: str, who: str) -> list[str]:
        def do(client: Client) -> tuple[str, Clock]:
            wrote = self.wire[at].store.put(change, client.past, self.now(at))
            if wrote.update is None:
                return f"{change.key} is absent", wrote.metadata
            self.updates[wrote.update.dot] = wrote.update
            did = "deletes" if change.value is None else "writes"
            return f"{self.names.dot(wrote.update.dot)} {did} {change.key}", wrote.metadata

        return self._serve(do, at, who)

    @command(r"(get|siblings) (\w+)" + AT_BY)
    def get(self, how: str, key: str, at: str, who: str) -> list[str]:
        def do(client: Client) -> tuple[str, Clock]:
            found = self.wire[at].store.get(key, client.past, self.now(at), all_siblings=how == "siblings")
            return self._shown(key, found.versions), found.metadata

        return self._serve(do, at, who)

    @command(r"list" + AT_BY)
    def list_keys(self, at: str, who: str) -> list[str]:
        def do(client: Client) -> tuple[str, Clock]:
            listed = self.wire[at].store.list_keys("", client.past, self.now(at), limit=1000)
            items = [f"{key}={value.decode()}" for key, value in listed.items.items()]
            return f"lists {' '.join(items) or 'nothing'}", listed.metadata

        return self._serve(do, at, who)

    @command(r"transact(?: read ([\w ]+?))?(?: write (\S+=\S+(?: \S+=\S+)*))?(?: delete ([\w ]+?))?" + AT_BY)
    def transact(self, reads: str | None, writes: str | None, deletes: str | None, at: str, who: str) -> list[str]:
        pairs = [pair.partition("=") for pair in (writes or "").split()]
        changes = [Change(key, value.encode()) for key, _, value in pairs]
        changes += [Change(key, None) for key in (deletes or "").split()]

        def do(client: Client) -> tuple[str, Clock]:
            done = self.wire[at].store.transact((reads or "").split(), changes, client.past, self.now(at))
            said = [f"{key} = {value.decode()}" for key, value in done.values.items()]
            said += [f"{key} is absent" for key in done.missing_keys]
            if done.update is not None:
                self.updates[done.update.dot] = done.update
                said.append(f"{self.names.dot(done.update.dot)} writes {' '.join(w.key for w in done.update.writes)}")
            return ", ".join(said), done.metadata

        return self._serve(do, at, who)

    def _serve(self, operation: Callable[[Client], tuple[str, Clock]], at: str, who: str) -> list[str]:
        """Do what the engine does with a request: admit, defer, drop what is lost."""
        client = self.clients.setdefault(who, Client())
        replica = self.wire[at]
        lost = {}
        if at in client.tokens:
            lost = replica.loss.unrecoverable(client.past, client.tokens[at])
            for id_, (first, _) in lost.items():
                client.past = {**client.past, id_: first - 1}
                client.past = {id_: counter for id_, counter in client.past.items() if counter}
        try:
            said, client.past = operation(client)
        except NotServing as refused:
            return [f"refused: {refused.reason}"]
        except DependenciesMissing as unreached:
            if at not in client.tokens:
                client.tokens[at] = replica.loss.ask(client.past)
            gaps = [f"{self.names.short(id_)}:{need} (has {have})" for id_, (have, need) in unreached.missing.items()]
            return [f"{who} waits at {at} for {' '.join(sorted(gaps))}"]
        client.tokens.pop(at, None)
        said += f"; {who} carries {self.names.clock(client.past)}"
        for id_, (first, last) in lost.items():
            said += f"; lost {self.names.short(id_)}:{first}..{last}"
        return [said]

    @command(r"(\w+) hears from (\w+)")
    def hears(self, listener: str, speaker: str) -> list[str]:
        client = self.clients.setdefault(listener, Client())
        client.past = join(client.past, self.clients[speaker].past)
        return []

    # -- people and looking ----------------------------------------------------------------------------

    @command(r"add (\w+) at (\w+)")
    def add(self, name: str, at: str) -> list[str]:
        return ["added" if self.wire[at].add_replica_from_view(address(name), self.now(at)) else "already present"]

    @command(r"remove (\w+) at (\w+)")
    def remove(self, name: str, at: str) -> list[str]:
        return ["deleted" if self.wire[at].remove_replica_from_view(address(name), self.now(at)) else "no such replica"]

    @command(r"leave (\w+)")
    def leave(self, name: str) -> list[str]:
        self.wire[name].leave(self.now(name))
        return []

    @command(r"view at (\w+)")
    def view(self, at: str) -> list[str]:
        view = self.wire[at].membership
        states = {name: view.state(name, self.now(at).mono_s) for name in view.table.members}
        said = [
            name.removesuffix(":80") + ("" if state == "alive" else f" ({state})") for name, state in states.items()
        ]
        return [" ".join(said) or "nobody"]

    @command(r"show (.+)")
    def show(self, names: str) -> list[str]:
        return [line for name in names.split() for line in self._describe(name)]

    def _describe(self, at: str) -> list[str]:
        replica = self.wire[at]
        state = "serves" if replica.state == "serving" else f"is {replica.state}"
        said = [f"{at} as {self.names.short(replica.id)} {state}, clock {self.names.clock(replica.store.clock)}"]
        said += ["  " + self._shown(key, versions) for key, versions in sorted(replica.store.table.copy().items())]
        said += [f"  {self._pending(item)}" for item in replica.store.pending]
        return said

    def _pending(self, item: PendingUpdate) -> str:
        return f"pending {self.names.dot(item.update.dot)}, waits for {self.names.dot(item.waits_for)}"

    def _shown(self, key: str, versions: tuple[Version, ...]) -> str:
        values = [version.value.decode() for version in versions]
        return f"{key} = {' beside '.join(values)}" if values else f"{key} is absent"

    @command(r"log at (\w+)")
    def log(self, at: str) -> list[str]:
        log = self.wire[at].store.log
        runs = [
            (updates[0], updates[-1]) for origin in sorted(log.origins()) if (updates := logged_updates(log, origin))
        ]
        said = [f"{self.names.dot(first.dot)}..{last.counter}" for first, last in runs]
        return [f"log of {at}: {' '.join(said) or 'empty'}"]

    @command(r"markers at (\w+)")
    def markers(self, at: str) -> list[str]:
        markers = self.wire[at].store.markers
        return [
            f"{self.names.dot((marker.origin, marker.counter))} stands for {self.names.clock(marker.past)}"
            for marker in markers.all()
        ] or ["none"]

    @command(r"acks of (\S+) at (\w+)")
    def acks(self, dot: str, at: str) -> list[str]:
        return [f"{self.wire[at].acks.count(self.names.read_dot(dot))} of {self.wire[at].acks.required('all')}"]

    @command(r"unshared at (\w+)")
    def unreplicated(self, at: str) -> list[str]:
        return [f"{self.wire[at].acks.unreplicated()} updates would die with {at}"]

    @command(r"stopped")
    def stopped(self) -> list[str]:
        said = []
        for name, why in self.wire.stopped.items():
            text = re.sub(r"\w+:80@[0-9a-f]{16}", lambda match: self.names.short(match.group()), why)
            said.append(f"{name}: {text}")
        return said or ["nobody"]


def play(blocks: Iterable[Block]) -> list[Block]:
    """Return the blocks with what really comes out in place of what was expected."""
    scenario = Scenario()
    played = []
    for block in blocks:
        said = [line for text in block.commands for line in scenario.run(text)]
        played.append(replace(block, expected=(said or ["ok"]) if block.commands else block.expected))
    return played
