"""A simulated network of replicas. The test decides when each message is sent and when time passes.

Every message is encoded and decoded. Time stands still until the test advances it. Each process has a monotonic clock
with an offset of its own, and may have a wrong wall clock.

The idea is that of h11's tests, which drive a ``ConnectionPair`` by hand.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Literal, NamedTuple, TypeVar

from replication.errors import BadMessage, DuplicateAddress, refusal_of, refusal_stated
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest, decode, encode
from replication.refusals import Refusal
from replication.replica import Conversation, Outgoing, Replica
from replication.settings import ReplicationSettings
from store.causal import CausalStore
from store.clock import Clock, Dot, Instant, address_of
from store.results import ReadResult, WriteResult
from store.settings import StoreSettings
from store.versions import Change, Update

EPOCH_US = 1_700_000_000_000_000
NOW = Instant(1000.0, EPOCH_US)

Result = TypeVar("Result")
Loss = Literal["", "request", "reply"]

SMALL_LOG = StoreSettings(max_log_bytes=800)
"""A log with room for a few updates."""

SMALL_PIECES = ReplicationSettings(pace_s=0.0, snapshot_piece_bytes=1_500)
"""Snapshot pieces of about three keys."""


def address(name: str) -> str:
    """Return the address of the process ``name``."""
    return f"{name}:80"


def write(store: CausalStore, key: str, value: bytes | None, past: Clock | None = None, now: Instant = NOW) -> Update:
    """Write one key, or delete it if ``value`` is None. Return the update that was issued."""
    update = store.put(Change(key, value), past or {}, now).update
    assert update is not None
    return update


def values_of(store: CausalStore, key: str) -> list[bytes]:
    """Return the values of ``key`` in ``store``, the winner first."""
    return [version.value for version in store.table.get(key)]


class RoundTrip(NamedTuple):
    """A request and its reply; the reply is None if none arrived."""

    request: Exchange | SnapshotRequest
    reply: Exchange | SnapshotPiece | None


@dataclass
class Process:
    """A replica and its clocks: ``offset_s`` shifts its monotonic clock, ``skew_s`` its wall clock."""

    name: str
    replica: Replica
    offset_s: float
    skew_s: float


@dataclass
class Wire:
    """The processes by name, the state of the network, and the time.

    ``cuts``: pairs (sender, receiver) between which no message passes. ``aliases``: address -> name of the process that
    listens there too. ``stopped``: name -> error, for each process that stopped because of a duplicate address.
    ``secrets``: name -> cluster secret; all others have the secret "".
    ``rejected``: the errors of rejected messages; None: a rejected message fails the test.
    ``starts``: how many processes were started. ``round_trips``: how many requests were sent. ``traffic``: the same for
    each (sender, receiver).
    """

    settings: ReplicationSettings = field(default_factory=lambda: ReplicationSettings(pace_s=0.0))
    store_settings: StoreSettings = field(default_factory=StoreSettings)
    now_s: float = 0.0
    rng: Random = field(default_factory=lambda: Random(1))
    processes: dict[str, Process] = field(default_factory=dict)
    cuts: set[tuple[str, str]] = field(default_factory=set)
    aliases: dict[str, str] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)
    rejected: list[str] | None = None
    starts: int = 0
    round_trips: int = 0
    traffic: Counter[tuple[str, str]] = field(default_factory=Counter)

    # -- processes -------------------------------------------------------------------------------------

    def start(self, name: str, *seeds: str, skew_s: float = 0.0, at: str = "", discovers: bool = False) -> Replica:
        """Start an empty process. ``seeds`` are names. ``at``: its address, if it is not the address of its name."""
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
        """Start processes that have each other as seeds, and let them join."""
        replicas = [self.start(name, *names) for name in names]
        self.flow(0.3)
        assert {replica.state for replica in replicas} == {"serving"}
        return replicas

    def crash(self, name: str) -> None:
        """Kill a process. It loses its memory."""
        del self.processes[name]

    def now(self, name: str) -> Instant:
        """Return the present reading of the clocks of a process."""
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
        """Write one key at a replica, or delete it if ``value`` is None."""
        return self[name].store.put(Change(key, value), past or {}, self.now(name))

    def issue(self, name: str, key: str, value: bytes | None, past: Clock | None = None) -> Update:
        """Like ``put``, for a write that issues an update. Return the update."""
        return write(self[name].store, key, value, past, self.now(name))

    def get(self, name: str, key: str, past: Clock | None = None) -> ReadResult:
        return self[name].store.get(key, past or {}, self.now(name))

    def values(self, name: str, key: str) -> list[bytes]:
        """Return the values of a key at a replica, the winner first, even if the replica serves no clients."""
        return values_of(self[name].store, key)

    def has(self, name: str, dot: Dot) -> bool:
        return self[name].store.clock.get(dot[0], 0) >= dot[1]

    # -- messages --------------------------------------------------------------------------------------

    def cut(self, *names: str) -> None:
        """Drop every message between any two of ``names``."""
        self.cuts |= {(one, other) for one in names for other in names if one != other}

    def isolate(self, name: str) -> None:
        """Drop every message between ``name`` and every other process."""
        self.cuts |= {pair for other in self.processes for pair in ((name, other), (other, name)) if other != name}

    def heal(self) -> None:
        """Remove all cuts."""
        self.cuts.clear()

    def begin(self, sender: str, receiver: str) -> Outgoing:
        """Let ``sender`` begin an exchange with ``receiver`` now, as if its timer had expired."""
        replica, now = self[sender], self.now(sender)
        replica.peers.at(address(receiver)).schedule.next_sync_s = now.mono_s
        outgoing = replica.begin(address(receiver), now)
        assert outgoing is not None
        return outgoing

    def round_trip(self, sender: str, receiver: str, lose: Loss = "") -> RoundTrip:
        """Make the next round trip of ``sender`` to ``receiver``: an exchange, or a request for a snapshot piece."""
        return self.send(sender, self.begin(sender, receiver), lose)

    def exchange(self, sender: str, receiver: str) -> tuple[Exchange, Exchange]:
        """Make one exchange, and return its request and its reply."""
        request, reply = self.round_trip(sender, receiver)
        assert isinstance(request, Exchange)
        assert isinstance(reply, Exchange)
        return request, reply

    def pull(self, sender: str, receiver: str) -> tuple[SnapshotRequest, SnapshotPiece | None]:
        """Make round trips until one requests a snapshot piece: an exchange may be due before it."""
        for _ in range(2):
            request, reply = self.round_trip(sender, receiver)
            if isinstance(request, SnapshotRequest):
                assert reply is None or isinstance(reply, SnapshotPiece)
                return request, reply
        raise AssertionError(f"{sender} requests no snapshot from {receiver}")

    def send(self, sender: str, outgoing: Outgoing, lose: Loss = "") -> RoundTrip:
        """Deliver a request to the process that listens at its address, and the reply to the sender."""
        self.round_trips += 1
        self.traffic[sender, outgoing.to.rpartition(":")[0]] += 1
        process = self.processes[sender]
        listener = self._listener(outgoing.to)
        reply = refusal = None
        if listener is not None and lose != "request" and (sender, listener.name) not in self.cuts:
            try:
                if self.secrets.get(sender, "") != self.secrets.get(listener.name, ""):
                    refusal = Refusal("secret", listener.replica.state == "serving")
                else:
                    reply = self.answer(listener.name, outgoing.message)
            except BadMessage as exc:
                if self.rejected is None:
                    raise
                self.rejected.append(str(exc))
                refusal = refusal_stated(exc, is_serving=listener.replica.state == "serving")
            if (listener.name, sender) in self.cuts or lose == "reply":
                reply = refusal = None
        if self.processes.get(sender) is process:
            self.complete(sender, outgoing, reply, refusal)
        return RoundTrip(outgoing.message, reply)

    def answer(self, name: str, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece | None:
        """Return the reply of a replica to a request."""
        replica, now = self[name], self.now(name)
        body = encode(message)
        if isinstance(message, Exchange):
            return decode(encode(run(replica.receive(decode(body, Exchange), now), now)), Exchange)
        return decode(encode(run(replica.receive(decode(body, SnapshotRequest), now), now)), SnapshotPiece)

    def complete(
        self,
        name: str,
        outgoing: Outgoing,
        reply: Exchange | SnapshotPiece | None,
        refusal: Refusal | None = None,
    ) -> None:
        """Complete a request at its sender ``name``: with its reply, or as failed if ``reply`` is None."""
        try:
            if reply is None:
                self[name].failed(outgoing.to, outgoing.serial, self.now(name), refusal)
            else:
                now = self.now(name)
                run(self[name].complete(outgoing.to, outgoing.serial, reply, now), now)
        except DuplicateAddress as exc:
            self._stop(name, exc)
        except BadMessage as exc:
            if self.rejected is None:
                raise
            self.rejected.append(str(exc))
            self[name].failed(outgoing.to, outgoing.serial, self.now(name), refusal_of(exc))

    def _listener(self, at: str) -> Process | None:
        name = self.aliases.get(at, address_of(at).rpartition(":")[0])
        return self.processes.get(name)

    def _stop(self, name: str, error: DuplicateAddress) -> None:
        """Let a process stop as the server does: it leaves, and its last messages are sent."""
        self.stopped[name] = str(error)
        self[name].leave(self.now(name))
        self._send_due(name)
        self.crash(name)

    # -- time ------------------------------------------------------------------------------------------

    def tick(self, seconds: float) -> None:
        """Let time pass at every replica, without sending any message."""
        self.now_s = round(self.now_s + seconds, 6)
        for name in list(self.processes):
            self[name].tick(self.now(name))

    def flow(self, seconds: float = 0.0, step_s: float = 0.1) -> None:
        """Let time pass, and send every message when it is due. The network has no delay."""
        until_s = self.now_s + seconds
        self._exchange_until_idle()
        while self.now_s < until_s - 1e-9:
            self.tick(min(step_s, until_s - self.now_s))
            self._exchange_until_idle()

    def _exchange_until_idle(self) -> None:
        for _ in range(1000):
            sent = [outgoing for name in list(self.processes) for outgoing in self._send_due(name)]
            if not sent:
                return
        raise AssertionError("the replicas exchange messages for ever without time passing")

    def _send_due(self, name: str) -> list[Outgoing]:
        sent = []
        for target in self[name].targets(self.now(name)):
            process = self.processes.get(name)
            outgoing = process.replica.begin(target, self.now(name)) if process is not None else None
            if outgoing is not None:
                self.send(name, outgoing)
                sent.append(outgoing)
        return sent


def run(conversation: Conversation[Result], now: Instant) -> Result:
    """Make all steps of a conversation at once, with nothing in between, and return its result."""
    try:
        next(conversation)
        while True:
            conversation.send(now)
    except StopIteration as end:
        result: Result = end.value
        return result


def start_three(wire: Wire) -> tuple[Replica, Replica, Replica]:
    """Start a cluster of r1, r2 and r3."""
    r1, r2, r3 = wire.cluster("r1", "r2", "r3")
    return r1, r2, r3
