"""The simulated world: time, a network, and hosts that run the very Replica that servers run.

Everything that is random comes from one seed, and nothing depends on the order of sets or on the real time,
so a seed names a run: same seed, same history.

The network delays, loses, duplicates and reorders requests; replies are delayed and lost. A cut is one-way:
``(from, to)`` in ``cuts`` swallows what goes that way. A host may be down (its process was killed and all its
memory is gone), paused (nothing is processed until it goes on), and its wall clock may be off and may jump.

Where replicas *discover* each other, none is told an address at its start. Each process gets one of a few IP addresses
besides its name, as a pod does, and lookups of a name service tell those of all. What it says is late, both ways, so it
names addresses where nobody is or where somebody else is by now; and at times it does not answer.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from inspect import GEN_CREATED, getgeneratorstate
from random import Random
from typing import Any, TypeVar

from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from replication.replica import Conversation, Replica
from replication.settings import ReplicationSettings
from store.clock import Clock, Instant
from store.settings import StoreSettings

Result = TypeVar("Result")

EPOCH_US = 1_700_000_000_000_000
"""Wall time at the start of every run, microseconds: any moment will do, as long as it is the same."""

TICK_S = 0.25
TIMEOUT_S = 0.9
PUBLISHED_WITHIN_S = 2.0
"""What the name service says of a start or an end is right after so long at most."""

STEP_DELAY_S = 0.05
"""Longest time between two steps of one conversation: a busy server's lock may be taken for so long."""

REACTION_S = 0.0005
"""What a thread needs to wake up."""


@dataclass(slots=True)
class Conditions:
    """How bad the network is. Times are seconds; the others probabilities of a message."""

    delay_s: float = 0.004
    slow: float = 0.02
    slow_delay_s: float = 0.3
    loss: float = 0.01
    duplication: float = 0.01


@dataclass(slots=True)
class Host:
    """One machine. ``skew_us``: what its wall clock is off; ``boots``: how many processes it has run.

    ``retries``: called after everything that happens here, for the requests that wait. ``completing``: serials of the
    requests whose reply is being taken in.
    """

    address: str
    seeds: tuple[str, ...]
    ip: str = ""
    replica: Replica | None = None
    skew_us: int = 0
    boots: int = 0
    paused_until_s: float = 0.0
    wake_at_s: float = float("inf")
    poked: bool = False
    clocks: Instant = field(default_factory=lambda: Instant(0.0, 0))
    retries: list[Callable[[], None]] = field(default_factory=list)
    completing: set[int] = field(default_factory=set)


class World:
    """Hosts, network and time. ``at_crash`` is told of every process that dies, just before it does."""

    def __init__(
        self,
        rng: Random,
        addresses: Iterable[str],
        *,
        conditions: Conditions | None = None,
        settings: ReplicationSettings | None = None,
        store_settings: StoreSettings | None = None,
        discovers: bool = False,
        step_delay_s: float = STEP_DELAY_S,
    ) -> None:
        self.rng = rng
        self.step_delay_s = step_delay_s
        self.discovers = discovers
        self.lookup_loss = 0.2
        self.published: set[str] = set()
        """The addresses that lookups tell."""
        self.now_s = 1000.0
        self.latest_wall_us = 0
        """The latest time that the wall clock of any host has shown."""
        self.conditions = conditions or Conditions()
        self.settings = settings or ReplicationSettings()
        self.store_settings = store_settings or StoreSettings()
        self.cuts: set[tuple[str, str]] = set()
        self.aliases: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.removed: dict[str, str] = {}
        """Address -> the id that was put out there by command and has neither been put in nor started again."""
        self.at_crash: Callable[[Host], None] = lambda host: None
        addresses = tuple(addresses)
        self.hosts = {address: Host(address, addresses) for address in addresses}
        self._events: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0

    # -- time ------------------------------------------------------------------------------------------

    def at(self, time_s: float, action: Callable[..., object], *args: Any) -> None:
        """Let ``action`` happen at ``time_s`` (simulated seconds)."""
        self._sequence += 1
        heapq.heappush(self._events, (time_s, self._sequence, action, args))

    def run_until(self, time_s: float) -> None:
        """Let everything happen that is due before ``time_s``."""
        events = self._events
        while events and events[0][0] < time_s:
            self.now_s, _, action, args = heapq.heappop(events)
            action(*args)
        self.now_s = time_s

    def clocks(self, host: Host) -> Instant:
        """Return what the clocks of ``host`` say now."""
        wall_us = EPOCH_US + int(self.now_s * 1e6) + host.skew_us
        if host.clocks.mono_s != self.now_s or host.clocks.wall_us != wall_us:
            host.clocks = Instant(self.now_s, wall_us)
            self.latest_wall_us = max(self.latest_wall_us, wall_us)
        return host.clocks

    # -- processes -------------------------------------------------------------------------------------

    def start(self, address: str, seeds: Iterable[str] | None = None) -> Replica:
        """Start a process at ``address``, empty."""
        host = self.hosts[address]
        assert host.replica is None
        host.boots += 1
        self.removed.pop(address, None)
        if self.discovers:
            seeds = ()
            self._move_in(host)
        host.replica = Replica(
            address,
            host.seeds if seeds is None else seeds,
            now=self.clocks(host),
            rng=self.rng,
            settings=self.settings,
            store_settings=self.store_settings,
            discovers=self.discovers,
        )
        self.counts["starts"] += 1
        self.at(self.now_s + TICK_S, self._tick, host, host.boots)
        self.pump(host)
        return host.replica

    def crash(self, address: str) -> None:
        """Kill the process at ``address``: its memory is gone."""
        host = self.hosts[address]
        if host.replica is None:
            return
        self.at_crash(host)
        host.replica = None
        host.paused_until_s = 0.0
        host.wake_at_s = float("inf")
        host.completing.clear()
        self.counts["crashes"] += 1
        if self.discovers:
            del self.aliases[host.ip]
            self.at(self.now_s + self.rng.random() * PUBLISHED_WITHIN_S, self._publish, host.ip)
        self._settle(host)

    def pause(self, address: str, seconds: float) -> None:
        """Let the process at ``address`` do nothing for a while (SIGSTOP); it notices nothing."""
        self.hosts[address].paused_until_s = self.now_s + seconds
        self.counts["pauses"] += 1

    def live(self) -> list[Host]:
        """Return the hosts that have a process."""
        return [host for host in self.hosts.values() if host.replica is not None]

    # -- discovery -------------------------------------------------------------------------------------

    def _move_in(self, host: Host) -> None:
        """Give a process that starts an IP address that nobody has now; often one that somebody had before."""
        pool = [f"ip{n}:1" for n in range(len(self.hosts) + 2)]
        host.ip = self.rng.choice([ip for ip in pool if ip not in self.aliases])
        self.aliases[host.ip] = host.address
        self.at(self.now_s + self.rng.random() * PUBLISHED_WITHIN_S, self._publish, host.ip)
        self.at(self.now_s + REACTION_S, self._look_up, host, host.boots)

    def _publish(self, ip: str) -> None:
        """Let lookups tell whether somebody is at ``ip``."""
        if ip in self.aliases:
            self.published.add(ip)
        else:
            self.published.discard(ip)

    def _look_up(self, host: Host, boot: int) -> None:
        if host.replica is None or host.boots != boot:
            return
        if self.now_s >= host.paused_until_s and self.published and self.rng.random() >= self.lookup_loss:
            self.counts["lookups"] += 1
            host.replica.discovered(sorted(self.published), self.clocks(host))
            self._settle(host)
            self.pump(host)
        self.at(self.now_s + self.settings.sync_interval_s, self._look_up, host, boot)

    # -- time within a process -------------------------------------------------------------------------

    def _tick(self, host: Host, boot: int) -> None:
        if host.replica is None or host.boots != boot:
            return
        if self.now_s >= host.paused_until_s:
            host.replica.tick(self.clocks(host))
            self._settle(host)
            self.pump(host)
        self.at(self.now_s + TICK_S, self._tick, host, boot)

    def pump(self, host: Host) -> None:
        """Send what is due at ``host``, and wake again when more will be."""
        replica = host.replica
        if replica is None or self.now_s < host.paused_until_s:
            return
        now = self.clocks(host)
        wake_at_s = float("inf")
        for address in replica.targets(now):
            due_s = replica.due_at(address, now)
            if due_s > now.mono_s:
                wake_at_s = min(wake_at_s, due_s)
            elif (outgoing := replica.begin(address, now)) is not None:
                self._send(host, address, outgoing.serial, outgoing.message)
        if wake_at_s < host.wake_at_s:
            host.wake_at_s = wake_at_s
            self.at(wake_at_s, self._wake, host, wake_at_s)

    def poke(self, host: Host) -> None:
        """Something may be due at ``host``: send it in a moment, with what else comes until then."""
        if not host.poked:
            host.poked = True
            self.at(self.now_s + REACTION_S, self._poked, host)

    def _poked(self, host: Host) -> None:
        host.poked = False
        self.pump(host)

    def _wake(self, host: Host, due_s: float) -> None:
        if host.wake_at_s == due_s:
            host.wake_at_s = float("inf")
            self.pump(host)

    def _settle(self, host: Host) -> None:
        """Something happened at ``host``: let its waiting requests look again."""
        if host.retries:
            retries, host.retries = host.retries, []
            for retry in retries:
                retry()

    # -- messages --------------------------------------------------------------------------------------

    def _send(self, host: Host, to: str, serial: int, message: Exchange | SnapshotRequest) -> None:
        boot = host.boots
        self.at(self.now_s + TIMEOUT_S, self._give_up, host, boot, to, serial)
        self.counts["messages"] += 1
        copies = 2 if self.rng.random() < self.conditions.duplication else 1
        for _ in range(copies):
            if self._passes(host.address, to):
                self.at(self.now_s + self._delay(), self._arrive, host, boot, to, serial, message)

    def _arrive(self, host: Host, boot: int, to: str, serial: int, message: Exchange | SnapshotRequest) -> None:
        receiver = self.hosts.get(self.aliases.get(to, to))
        if receiver is None or receiver.replica is None:
            # Connection refused: the sender learns it at once, if the answer gets through.
            if self._passes(to, host.address):
                self.at(self.now_s + self._delay(), self._give_up, host, boot, to, serial)
            return
        if self.now_s < receiver.paused_until_s:
            self.at(receiver.paused_until_s, self._arrive, host, boot, to, serial, message)
            return
        if isinstance(message, SnapshotRequest):
            self.counts["pieces"] += 1

        def answer(reply: Exchange | SnapshotPiece) -> None:
            if isinstance(message, Exchange) and isinstance(reply, Exchange):
                self.counts["updates_sent"] += len(message.updates) + len(reply.updates)
            if self._passes(receiver.address, host.address):
                self.at(self.now_s + self._delay(), self._reply, host, boot, to, serial, reply)

        self._step(receiver, receiver.boots, receiver.replica.receive(message, self.clocks(receiver)), answer)

    def _reply(self, host: Host, boot: int, to: str, serial: int, reply: Exchange | SnapshotPiece) -> None:
        if host.replica is None or host.boots != boot:
            return
        if self.now_s < host.paused_until_s:
            self.at(host.paused_until_s, self._reply, host, boot, to, serial, reply)
            return
        peer = host.replica.peers.find(to)
        if peer is None or peer.in_flight != serial or serial in host.completing:
            return  # The sender has given up: the connection is closed, and nobody reads the reply.
        host.completing.add(serial)

        def done(_: None) -> None:
            host.completing.discard(serial)

        self._step(host, boot, host.replica.complete(to, serial, reply, self.clocks(host)), done)

    def _step(self, host: Host, boot: int, conversation: Conversation[Result], done: Callable[[Result], None]) -> None:
        """Make one step of a conversation at ``host``; the next one is an event of its own, at a random time.

        So other messages, requests, ticks and a crash come in between, as they do between two turns of a server's lock.
        ``done``: called with the result of the conversation.
        """
        if host.replica is None or host.boots != boot:
            return  # The process died between two steps.
        if self.now_s < host.paused_until_s:
            self.at(host.paused_until_s, self._step, host, boot, conversation, done)
            return
        try:
            if getgeneratorstate(conversation) == GEN_CREATED:
                next(conversation)
            else:
                conversation.send(self.clocks(host))
        except StopIteration as end:
            result: Result = end.value
        else:
            self.counts["interleavings"] += 1
            self._settle(host)
            self.poke(host)
            self.at(self.now_s + self.rng.random() * self.step_delay_s, self._step, host, boot, conversation, done)
            return
        self._settle(host)
        self.poke(host)
        done(result)

    def _give_up(self, host: Host, boot: int, to: str, serial: int) -> None:
        if host.replica is None or host.boots != boot or serial in host.completing:
            return
        peer = host.replica.peers.find(to)
        if peer is None or peer.in_flight != serial:
            return
        self.counts["timeouts"] += 1
        host.replica.failed(to, serial, self.clocks(host))
        self.pump(host)

    def _passes(self, sender: str, receiver: str) -> bool:
        receiver = self.aliases.get(receiver, receiver)
        if (sender, receiver) in self.cuts:
            return False
        return self.rng.random() >= self.conditions.loss

    def _delay(self) -> float:
        if self.rng.random() < self.conditions.slow:
            return self.rng.random() * self.conditions.slow_delay_s
        return self.rng.random() * self.conditions.delay_s

    # -- the end ---------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Mend the network and let paused processes go on."""
        self.cuts.clear()
        self.conditions.loss = self.conditions.duplication = self.lookup_loss = 0.0
        for host in self.hosts.values():
            host.paused_until_s = min(host.paused_until_s, self.now_s)

    def unsettled(self) -> str | None:
        """Return why the live replicas have not come to rest yet; None when they have."""
        live = [host.replica for host in self.live() if host.replica is not None]
        inside = [replica for replica in live if replica.membership.table.belongs(replica.address)]
        clock: Clock | None = None
        for replica in inside:
            if replica.state != "serving":
                return f"{replica.id} is {replica.state}"
            if len(replica.store.pending):
                return f"{replica.id} has {len(replica.store.pending)} pending updates"
            if clock is None:
                clock = replica.store.clock
            elif clock != replica.store.clock:
                return f"{replica.id} has another clock than {inside[0].id}"
            if replica.membership.live(self.now_s) != [
                other.address for other in sorted(inside, key=lambda r: r.address)
            ]:
                return f"{replica.id} sees the view {replica.membership.live(self.now_s)}"
        for replica in live:
            if replica not in inside and inside and replica.acks.unreplicated():
                return f"{replica.id} is out and still holds {replica.acks.unreplicated()} updates that nobody has"
        return None
