"""Replicas on a wire that a test drives by hand, as h11's tests drive a ConnectionPair: nothing moves by itself.

Every message goes through its wire form. Time stands still unless a test says otherwise; each process counts its
monotonic seconds from somewhere else, and may have a wall clock that is off.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple, TypeVar

from replication.errors import DuplicateAddress
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest, decode, encode
from replication.replica import Conversation, Outgoing, Replica
from replication.settings import ReplicationSettings
from store.causal import CausalStore, ReadResult, WriteResult
from store.clock import Clock, Dot, Instant, address_of
from store.settings import StoreSettings
from store.versions import Change, Update

EPOCH_US = 1_700_000_000_000_000
NOW = Instant(1000.0, EPOCH_US)

Result = TypeVar("Result")
Loss = Literal["", "request", "reply"]

SMALL_LOG = StoreSettings(max_log_bytes=800)
"""Holds a few updates."""

SMALL_PIECES = ReplicationSettings(pace_s=0.0, snapshot_piece_bytes=1_500)
"""About three keys a piece."""


def address(name: str) -> str:
    return f"{name}:80"


def write(store: CausalStore, key: str, value: bytes | None, past: Clock | None = None, now: Instant = NOW) -> Update:
    """Write or delete one key and return the update that was issued."""
    update = store.put(Change(key, value), past or {}, now).update
    assert update is not None
    return update


def shown(store: CausalStore, key: str) -> list[bytes]:
    """Return the values of ``key``, the winner first."""
    return [version.value for version in store.table.get(key)]


class Trip(NamedTuple):
    """One round trip: what went out and what came back (None: nothing did)."""

    request: Exchange | SnapshotRequest
    reply: Exchange | SnapshotPiece | None


@dataclass
class Process:
    """A replica with clocks of its own: ``offset_s`` shifts its monotonic clock, ``skew_s`` its wall clock."""

    name: str
    replica: Replica
    offset_s: float
    skew_s: float


@dataclass
class Wire:
    """Processes by name, the cuts between them (one-way), and the time, which is the test's."""

    settings: ReplicationSettings = field(default_factory=lambda: ReplicationSettings(pace_s=0.0))
    store_settings: StoreSettings = field(default_factory=StoreSettings)
    now_s: float = 0.0
    rng: Random = field(default_factory=lambda: Random(1))
    processes: dict[str, Process] = field(default_factory=dict)
    cuts: set[tuple[str, str]] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    starts: int = 0
    trips: int = 0
    traffic: Counter[tuple[str, str]] = field(default_factory=Counter)

    # -- processes -------------------------------------------------------------------------------------

    def start(self, name: str, *seeds: str, skew_s: float = 0.0, at: str = "", discovers: bool = False) -> Replica:
        """Start an empty process; ``seeds`` are names. ``at``: the address that it is told, where not its own."""
        assert name not in self.processes
        self.starts += 1
        offset_s = 1000.0 * self.starts
        replica = Replica(
            at or address(name),
            [address(seed) for seed in seeds],
            now=self._instant(offset_s, skew_s),
            rng=self.rng,
            settings=self.settings,
            store_settings=self.store_settings,
            discovers=discovers,
        )
        self.processes[name] = Process(name, replica, offset_s, skew_s)
        return replica

    def cluster(self, *names: str) -> list[Replica]:
        """Start processes that know each other, and let them find each other."""
        replicas = [self.start(name, *names) for name in names]
        self.flow(0.3)
        assert {replica.state for replica in replicas} == {"serving"}
        return replicas

    def crash(self, name: str) -> None:
        """Kill a process: its memory is gone."""
        del self.processes[name]

    def now(self, name: str) -> Instant:
        """Return what the clocks of a process say."""
        process = self.processes[name]
        return self._instant(process.offset_s, process.skew_s)

    def _instant(self, offset_s: float, skew_s: float) -> Instant:
        return Instant(self.now_s + offset_s, EPOCH_US + round((self.now_s + skew_s) * 1e6))

    def __getitem__(self, name: str) -> Replica:
        return self.processes[name].replica

    def state(self, name: str) -> str:
        return self[name].state

    # -- clients ---------------------------------------------------------------------------------------

    def put(self, name: str, key: str, value: bytes | None, past: Clock | None = None) -> WriteResult:
        """Write (None: delete) one key at a replica."""
        return self[name].store.put(Change(key, value), past or {}, self.now(name))

    def issue(self, name: str, key: str, value: bytes | None, past: Clock | None = None) -> Update:
        """Like ``put``, for writes that do issue an update; return it."""
        return write(self[name].store, key, value, past, self.now(name))

    def get(self, name: str, key: str, past: Clock | None = None) -> ReadResult:
        return self[name].store.get(key, past or {}, self.now(name))

    def values(self, name: str, key: str) -> list[bytes]:
        """Return the values of a key at a replica, the winner first, served or not."""
        return shown(self[name].store, key)

    def has(self, name: str, dot: Dot) -> bool:
        return self[name].store.clock.get(dot[0], 0) >= dot[1]

    # -- messages --------------------------------------------------------------------------------------

    def cut(self, *names: str) -> None:
        """Let nothing pass between any two of ``names``."""
        self.cuts |= {(one, other) for one in names for other in names if one != other}

    def isolate(self, name: str) -> None:
        """Let nothing pass between ``name`` and anybody."""
        self.cuts |= {pair for other in self.processes for pair in ((name, other), (other, name)) if other != name}

    def heal(self) -> None:
        self.cuts.clear()

    def begin(self, sender: str, receiver: str) -> Outgoing:
        """Let ``sender`` begin an exchange with ``receiver`` now, as if its timer said so."""
        replica, now = self[sender], self.now(sender)
        replica.peers.at(address(receiver)).schedule.next_sync_s = now.mono_s
        outgoing = replica.begin(address(receiver), now)
        assert outgoing is not None
        return outgoing

    def exchange(self, sender: str, receiver: str, lose: Loss = "") -> Trip:
        """Let one round trip happen, whatever is next between the two: an exchange or a piece of a snapshot."""
        return self.carry(sender, self.begin(sender, receiver), lose)

    def talk(self, sender: str, receiver: str) -> tuple[Exchange, Exchange]:
        """Let one exchange happen and return both its halves."""
        request, reply = self.exchange(sender, receiver)
        assert isinstance(request, Exchange)
        assert isinstance(reply, Exchange)
        return request, reply

    def pull(self, sender: str, receiver: str) -> tuple[SnapshotRequest, SnapshotPiece | None]:
        """Let one piece of a snapshot be asked for, past an exchange that may be due before it."""
        for _ in range(2):
            request, reply = self.exchange(sender, receiver)
            if isinstance(request, SnapshotRequest):
                assert reply is None or isinstance(reply, SnapshotPiece)
                return request, reply
        raise AssertionError(f"{sender} asks {receiver} for no snapshot")

    def carry(self, sender: str, outgoing: Outgoing, lose: Loss = "") -> Trip:
        """Bring a request to whoever listens, and the reply back."""
        self.trips += 1
        self.traffic[sender, outgoing.to.rpartition(":")[0]] += 1
        process = self.processes[sender]
        listener = self._listener(outgoing.to)
        reply = None
        if listener is not None and lose != "request" and (sender, listener.name) not in self.cuts:
            reply = self.answer(listener.name, outgoing.message)
            if (listener.name, sender) in self.cuts or lose == "reply":
                reply = None
        if self.processes.get(sender) is process:
            self.land(sender, outgoing, reply)
        return Trip(outgoing.message, reply)

    def answer(self, name: str, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece | None:
        """Let a replica answer a request; None when it stops because its address is taken."""
        replica, now = self[name], self.now(name)
        body = encode(message)
        try:
            if isinstance(message, Exchange):
                return decode(encode(run(replica.receive(decode(body, Exchange), now), now)), Exchange)
            return decode(encode(run(replica.receive(decode(body, SnapshotRequest), now), now)), SnapshotPiece)
        except DuplicateAddress as exc:
            self._stop(name, exc)
            return None

    def land(self, name: str, outgoing: Outgoing, reply: Exchange | SnapshotPiece | None) -> None:
        """Let the outcome of a request arrive at its sender: a reply, or that there is none."""
        try:
            if reply is None:
                self[name].failed(outgoing.to, outgoing.serial, self.now(name))
            else:
                now = self.now(name)
                run(self[name].complete(outgoing.to, outgoing.serial, reply, now), now)
        except DuplicateAddress as exc:
            self._stop(name, exc)

    def _listener(self, at: str) -> Process | None:
        name = self.aliases.get(at, address_of(at).rpartition(":")[0])
        return self.processes.get(name)

    def _stop(self, name: str, why: DuplicateAddress) -> None:
        self.stopped[name] = str(why)
        self.crash(name)

    # -- time ------------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Let time pass; replicas notice, but nobody talks."""
        self.now_s = round(self.now_s + seconds, 6)
        for name in list(self.processes):
            self[name].tick(self.now(name))

    def flow(self, seconds: float = 0.0, step_s: float = 0.1) -> None:
        """Let time pass and everything happen that is due, over a network without delay."""
        until_s = self.now_s + seconds
        self._talk()
        while self.now_s < until_s - 1e-9:
            self.tick(min(step_s, until_s - self.now_s))
            self._talk()

    def _talk(self) -> None:
        for _ in range(1000):
            due = [outgoing for name in list(self.processes) for outgoing in self._due(name)]
            if not due:
                return
        raise AssertionError("the replicas never come to rest at one moment")

    def _due(self, name: str) -> list[Outgoing]:
        sent = []
        for target in self[name].targets(self.now(name)):
            process = self.processes.get(name)
            outgoing = process.replica.begin(target, self.now(name)) if process is not None else None
            if outgoing is not None:
                self.carry(name, outgoing)
                sent.append(outgoing)
        return sent


def run(conversation: Conversation[Result], now: Instant) -> Result:
    """Make all steps of a conversation at one moment, with nothing in between, and return its result."""
    try:
        next(conversation)
        while True:
            conversation.send(now)
    except StopIteration as end:
        result: Result = end.value
        return result


def three(wire: Wire) -> tuple[Replica, Replica, Replica]:
    """Return a cluster of r1, r2 and r3."""
    r1, r2, r3 = wire.cluster("r1", "r2", "r3")
    return r1, r2, r3
