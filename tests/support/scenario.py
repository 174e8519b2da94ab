"""Scenarios as text: the interpreter of ``tests/replication/scenarios/*.txt``.

A scenario file consists of blocks, separated by blank lines. A block has prose (lines that start with ``#``), commands,
and, below ``----``, the expected output of the commands. A message is sent, and time passes, only by a command.
``pytest tests/replication/test_scenarios.py --rewrite-scenarios`` writes the actual output into the files.

Names: ``r3`` is a process, its address, and the first incarnation at that address. ``r3'`` is the second incarnation
there, ``r3''`` the third. ``r3':4`` is a dot. Each client sends the metadata that it received last.

Limits, before the first process starts:

    set log 9 | piece 2 | batch 3 | snapshots 1     in updates, keys, updates, receivers

Processes and time:

    replicas r1 r2 r3               start them with each other as seeds, and let them join
    start r4 [seeds r1 …] [clock -3600] [address r1]    start an empty process; ``clock``: seconds of wall clock skew;
                                    ``address``: its address, if it is not that of its name
    crash r2                        kill it; it loses its memory
    tick 1.0                        let time pass without sending any message
    flow 1.0                        let time pass, and send every message when it is due
    cut r1 r2 | isolate r3 | heal   drop the messages between processes; remove all cuts
    alias a1 is r1                  the process r1 also listens at the address a1

Messages:

    send r1 r2 [losing request | losing reply]      the next request of r1 to r2, and the reply
    pull r2 r1                      r2 requests the next piece of a snapshot from r1
    deliver r2:1 … to r3            r3 receives these updates, without a message
    take snapshot of r1 as old | join old at r2     r2 joins a snapshot of r1, without a message

Requests of clients (``at`` a replica, ``by`` a client):

    put x=1 [ttl 5] | delete x | get x | siblings x | list | transact read x y write x=1 delete z

Commands of operators, and looking at a replica:

    add r3 at r1 | remove r3 at r1 | leave r3       PUT and DELETE /view, and a graceful stop
    members at r1                   the members with their states, unless alive
    show r1 …                       state, clock, data, and pending updates
    log at r1 | markers at r1 | acks of r1:1 at r1
    unreplicated at r3              how many updates would be lost with r3
    stopped                         the processes that stopped because of a duplicate address
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from store.clock import Clock, Dot, Instant, address_of
from store.delivery import PendingUpdate
from store.errors import DependenciesMissing, NotServing
from store.log import ENTRY_OVERHEAD_BYTES
from store.snapshot import Snapshot
from store.table import KeyRange
from store.versions import Change, Update, Version, Write, encode_update
from tests.support.updates import logged_updates
from tests.support.wire import Loss, Wire, address

SAMPLE = Update("r1:80@0123456789abcdef", 1, 10**15, {}, (Write("x", b"1"),))
UPDATE_BYTES = len(encode_update(SAMPLE)) + ENTRY_OVERHEAD_BYTES
"""Cost in the log of an update that writes a new key. An update that replaces a version costs more."""


@dataclass
class Block:
    """One block of a scenario file.

    ``line``: the number of its first line. ``text``: its prose and commands. ``expected``: the lines below ``----``,
    None if there is no ``----``.
    """

    line: int
    text: list[str]
    expected: list[str] | None = None

    @property
    def commands(self) -> list[str]:
        """The lines of ``text`` that are not prose."""
        return [line for line in self.text if line.strip() and not line.startswith("#")]


def read_blocks(path: Path) -> list[Block]:
    """Return the blocks of a scenario file. Raises ValueError for commands without ``----``."""
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
    """Short names for replica ids. The incarnations of an address are numbered in the order in which they appear."""

    def __init__(self) -> None:
        self._ids: dict[str, list[str]] = {}

    def add(self, replica: str) -> None:
        """Give the id ``replica`` a name, if it has none."""
        ids = self._ids.setdefault(address_of(replica), [])
        if replica not in ids:
            ids.append(replica)

    def short(self, replica: str) -> str:
        """Return the short name of the id ``replica``."""
        self.add(replica)
        at = address_of(replica)
        return at.removesuffix(":80") + "'" * self._ids[at].index(replica)

    def full(self, short: str) -> str:
        """Return the replica id that has the name ``short``."""
        name = short.rstrip("'")
        return self._ids[address(name)][len(short) - len(name)]

    def dot(self, dot: Dot) -> str:
        return f"{self.short(dot[0])}:{dot[1]}"

    def dots(self, dots: Iterable[Dot]) -> str:
        return " ".join(self.dot(dot) for dot in dots) or "no updates"

    def clock(self, clock: Mapping[str, int]) -> str:
        return "{" + " ".join(sorted(self.dot(dot) for dot in clock.items())) + "}"

    def read_dot(self, text: str) -> Dot:
        replica, _, counter = text.rpartition(":")
        return self.full(replica), int(counter)


Command = Callable[..., "list[str]"]
COMMANDS: list[tuple[re.Pattern[str], Command]] = []


def command(pattern: str) -> Callable[[Command], Command]:
    """Register a method for the commands that match ``pattern``. The groups of the match are its arguments."""

    def register(method: Command) -> Command:
        COMMANDS.append((re.compile(pattern), method))
        return method

    return register


@dataclass
class Client:
    """A client. ``past``: its metadata. ``tokens``: replica -> token of the loss query of a request deferred there."""

    past: Clock = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)


AT_BY = r" at (\S+) by (\w+)"


class Scenario:
    """One run of a scenario. ``updates``: all updates that were in a log. ``snapshots``: those taken, by name."""

    def __init__(self) -> None:
        self.wire = Wire()
        self.names = Names()
        self.clients: dict[str, Client] = {}
        self.updates: dict[Dot, Update] = {}
        self.snapshots: dict[str, Snapshot] = {}

    def run(self, line: str) -> list[str]:
        """Run one command and return its output."""
        for pattern, method in COMMANDS:
            match = pattern.fullmatch(line.strip())
            if match is not None:
                output = method(self, *match.groups())
                self._record_new()
                return output
        raise ValueError(f"no such command: {line}")

    def _record_new(self) -> None:
        """Name the replica ids, and keep the updates, that are new since the last command."""
        for process in self.wire.processes.values():
            self.names.add(process.replica.id)
            log = process.replica.store.log
            for origin in log.origins():
                for update in logged_updates(log, origin):
                    self.updates.setdefault(update.dot, update)

    def now(self, at: str) -> Instant:
        """Return the present reading of the clocks of ``at``."""
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

    @command(r"start (\w+)(?: seeds ([\w ]+?))?(?: clock (-?\d+))?(?: address (\w+))?")
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

    @command(r"send (\w+) (\w+)(?: losing (request|reply))?")
    def send(self, sender: str, receiver: str, lose: Loss | None) -> list[str]:
        request, reply = self.wire.round_trip(sender, receiver, lose or "")
        sent = f"{sender} -> {receiver} {self._message(request)}"
        return [sent, f"{receiver} -> {sender} {self._message(reply)}" if reply else f"no reply from {receiver}"]

    def _message(self, message: Exchange | SnapshotRequest | SnapshotPiece) -> str:
        if isinstance(message, SnapshotRequest):
            return f"requests piece {message.piece} of a snapshot"
        if isinstance(message, SnapshotPiece):
            if not message.snapshot:
                return "no piece"
            keys = " ".join(key for key, _ in message.items) or "no keys"
            return f"piece {message.piece}{' (last)' if message.last else ''}: {keys}"
        if not message.accepted:
            return "rejected: the sender is not the present incarnation"
        text = self.names.dots(update.dot for update in message.updates)
        if message.truncated:
            text += "; log truncated"
        if message.more:
            text += "; more follow"
        return text

    @command(r"pull (\w+) (\w+)")
    def pull(self, receiver: str, sender: str) -> list[str]:
        _, piece = self.wire.pull(receiver, sender)
        return [f"{sender} -> {receiver} {self._message(piece)}" if piece else f"no reply from {sender}"]

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
        output = [f"{at} applies {self.names.dots(sorted(applied))}"] if applied else []
        output += [f"{at} {self._pending(item)}" for item in store.pending if item.update.dot not in waiting]
        return output or [f"{at} has all of them already"]

    @command(r"take snapshot of (\w+) as (\w+)")
    def take_snapshot(self, at: str, name: str) -> list[str]:
        self.snapshots[name] = self.wire[at].store.snapshot(self.now(at))
        return []

    @command(r"join (\w+) at (\w+)")
    def join(self, name: str, at: str) -> list[str]:
        self.wire[at].store.join(self.snapshots[name], self.now(at))
        return []

    # -- clients ---------------------------------------------------------------------------------------

    @command(r"put (\w+)=(\S+)(?: ttl (\d+))?" + AT_BY)
    def put(self, key: str, value: str, ttl: str | None, at: str, by: str) -> list[str]:
        change = Change(key, value.encode(), int(ttl) * 1_000_000 if ttl else None)
        return self._write(change, at, by)

    @command(r"delete (\w+)" + AT_BY)
    def delete(self, key: str, at: str, by: str) -> list[str]:
        return self._write(Change(key, None), at, by)

    def _write(self, change: Change, at: str, by: str) -> list[str]:
        def do(client: Client) -> tuple[str, Clock]:
            wrote = self.wire[at].store.put(change, client.past, self.now(at))
            if wrote.update is None:
                return f"{change.key} is absent", wrote.metadata
            self.updates[wrote.update.dot] = wrote.update
            verb = "deletes" if change.value is None else "writes"
            return f"{self.names.dot(wrote.update.dot)} {verb} {change.key}", wrote.metadata

        return self._serve(do, at, by)

    @command(r"(get|siblings) (\w+)" + AT_BY)
    def get(self, how: str, key: str, at: str, by: str) -> list[str]:
        def do(client: Client) -> tuple[str, Clock]:
            found = self.wire[at].store.get(key, client.past, self.now(at), all_siblings=how == "siblings")
            return self._values(key, found.versions), found.metadata

        return self._serve(do, at, by)

    @command(r"list" + AT_BY)
    def list_keys(self, at: str, by: str) -> list[str]:
        def do(client: Client) -> tuple[str, Clock]:
            listed = self.wire[at].store.list_keys(KeyRange(), client.past, self.now(at), limit=1000)
            items = [f"{key}={value.decode()}" for key, value in listed.items.items()]
            return f"lists {' '.join(items) or 'nothing'}", listed.metadata

        return self._serve(do, at, by)

    @command(r"transact(?: read ([\w ]+?))?(?: write (\S+=\S+(?: \S+=\S+)*))?(?: delete ([\w ]+?))?" + AT_BY)
    def transact(self, reads: str | None, writes: str | None, deletes: str | None, at: str, by: str) -> list[str]:
        pairs = [pair.partition("=") for pair in (writes or "").split()]
        changes = [Change(key, value.encode()) for key, _, value in pairs]
        changes += [Change(key, None) for key in (deletes or "").split()]

        def do(client: Client) -> tuple[str, Clock]:
            done = self.wire[at].store.transact((reads or "").split(), changes, client.past, self.now(at))
            results = [f"{key} = {value.decode()}" for key, value in done.values.items()]
            results += [f"{key} is absent" for key in done.missing_keys]
            if done.update is not None:
                self.updates[done.update.dot] = done.update
                results.append(
                    f"{self.names.dot(done.update.dot)} writes {' '.join(w.key for w in done.update.writes)}"
                )
            return ", ".join(results), done.metadata

        return self._serve(do, at, by)

    def _serve(self, operation: Callable[[Client], tuple[str, Clock]], at: str, by: str) -> list[str]:
        """Serve a request as the engine does: admit it, defer it, or drop its unrecoverable dependencies."""
        client = self.clients.setdefault(by, Client())
        replica = self.wire[at]
        lost = {}
        if at in client.tokens:
            lost = replica.loss.unrecoverable(client.past, client.tokens[at])
            for id_, (first, _) in lost.items():
                client.past = {**client.past, id_: first - 1}
                client.past = {id_: counter for id_, counter in client.past.items() if counter}
        try:
            result, client.past = operation(client)
        except NotServing as exc:
            return [f"rejected: {exc.reason}"]
        except DependenciesMissing as exc:
            if at not in client.tokens:
                client.tokens[at] = replica.loss.fetch(client.past)
            gaps = [f"{self.names.short(id_)}:{need} (has {have})" for id_, (have, need) in exc.missing.items()]
            return [f"{at} defers {by}: it lacks {' '.join(sorted(gaps))}"]
        client.tokens.pop(at, None)
        result += f"; {by}'s metadata {self.names.clock(client.past)}"
        for id_, (first, last) in lost.items():
            result += f"; lost {self.names.short(id_)}:{first}..{last}"
        return [result]

    # -- operators ---------------------------------------------------------------------------------------

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

    @command(r"members at (\w+)")
    def members(self, at: str) -> list[str]:
        membership = self.wire[at].membership
        states = {name: membership.state(name, self.now(at).mono_s) for name in membership.table.members}
        members = [
            name.removesuffix(":80") + ("" if state == "alive" else f" ({state})") for name, state in states.items()
        ]
        return [" ".join(members) or "none"]

    @command(r"show (.+)")
    def show(self, names: str) -> list[str]:
        return [line for name in names.split() for line in self._describe(name)]

    def _describe(self, at: str) -> list[str]:
        replica = self.wire[at]
        id_, clock = self.names.short(replica.id), self.names.clock(replica.store.clock)
        lines = [f"{at} (id {id_}) is {replica.state}, clock {clock}"]
        lines += ["  " + self._values(key, versions) for key, versions in sorted(replica.store.table.copy().items())]
        lines += [f"  {self._pending(item)}" for item in replica.store.pending]
        return lines

    def _pending(self, item: PendingUpdate) -> str:
        return f"keeps {self.names.dot(item.update.dot)} pending: it waits for {self.names.dot(item.waits_for)}"

    def _values(self, key: str, versions: tuple[Version, ...]) -> str:
        if not versions:
            return f"{key} is absent"
        winner, *siblings = [version.value.decode() for version in versions]
        return f"{key} = {winner}" + (f" (siblings: {' '.join(siblings)})" if siblings else "")

    @command(r"log at (\w+)")
    def log(self, at: str) -> list[str]:
        log = self.wire[at].store.log
        runs = [
            (updates[0], updates[-1]) for origin in sorted(log.origins()) if (updates := logged_updates(log, origin))
        ]
        ranges = [f"{self.names.dot(first.dot)}..{last.counter}" for first, last in runs]
        return [f"log of {at}: {' '.join(ranges) or 'empty'}"]

    @command(r"markers at (\w+)")
    def markers(self, at: str) -> list[str]:
        markers = self.wire[at].store.markers
        return [
            f"marker {self.names.dot((marker.origin, marker.counter))}, past {self.names.clock(marker.past)}"
            for marker in markers.all()
        ] or ["none"]

    @command(r"acks of (\S+) at (\w+)")
    def acks(self, dot: str, at: str) -> list[str]:
        return [f"{self.wire[at].acks.count(self.names.read_dot(dot))} of {self.wire[at].acks.required('all')} members"]

    @command(r"unreplicated at (\w+)")
    def unreplicated(self, at: str) -> list[str]:
        return [f"{self.wire[at].acks.unreplicated()} unreplicated updates"]

    @command(r"stopped")
    def stopped(self) -> list[str]:
        lines = []
        for name, error in self.wire.stopped.items():
            text = re.sub(r"\w+:80@[0-9a-f]{16}", lambda match: self.names.short(match.group()), error)
            lines.append(f"{name}: {text}")
        return lines or ["none"]


def play(blocks: Iterable[Block]) -> list[Block]:
    """Run all commands and return the blocks with the actual output in place of the expected one."""
    scenario = Scenario()
    played = []
    for block in blocks:
        output = [line for text in block.commands for line in scenario.run(text)]
        played.append(replace(block, expected=(output or ["ok"]) if block.commands else block.expected))
    return played
