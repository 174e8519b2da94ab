"""The simulated world: time, a network, and hosts that run the same Replica class as servers.

Everything random comes from one seed, and nothing depends on the order of sets or on real time. So a seed names a run:
the same seed gives the same history.

The network delays, loses, duplicates and reorders requests, and delays and loses replies. A cut is one-way: ``(from,
to)`` in ``cuts`` drops what is sent in that direction. A host may be down (its process was killed and its memory is
lost) or paused (it processes nothing until it resumes). Its wall clock may be wrong and may jump.

As in a server, a replica handles a message in several steps (a *conversation*). Each step is an event of its own, and
other events come in between.

If replicas *discover* each other, none of them knows an address at its start. Each process has one of a few IP
addresses besides its name, as a pod does, and looks up those of the others (name_service.py).

A host may be in a *camp*: it and the hosts that are in no camp, or in another one, refuse each other, as replicas do
whose cluster secrets or protocol versions differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from inspect import GEN_CREATED, getgeneratorstate
from random import Random
from typing import TypeVar

from replication.errors import BadMessage, refusal_of, refusal_stated
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from replication.refusals import Refusal, RefusalKind
from replication.replica import Conversation, Replica
from replication.settings import ReplicationSettings
from store.clock import Clock, Instant
from store.settings import StoreSettings
from tools.simulation.name_service import NameService
from tools.simulation.scheduler import Scheduler

Result = TypeVar("Result")

EPOCH_US = 1_700_000_000_000_000
"""Wall time at the start of every run, microseconds: any moment, the same in all runs."""

TICK_S = 0.25
"""Time between two ticks of a replica."""

TIMEOUT_S = 0.9
"""How long a sender waits for a reply."""

STEP_DELAY_S = 0.05
"""Longest time between two steps of one conversation: a busy server's lock may be taken for so long."""

SETTLE_S = 30.0
"""How long clients may take to finish after the planned end, and replicas to settle after the last fault."""

REACTION_S = 0.0005
"""How long a thread takes to wake up."""


@dataclass(slots=True)
class Conditions:
    """The quality of the network: times in seconds, and probabilities per message."""

    delay_s: float = 0.004
    slow: float = 0.02
    slow_delay_s: float = 0.3
    loss: float = 0.01
    duplication: float = 0.01


@dataclass(frozen=True, slots=True)
class RequestOutcome:
    """What a replica answered: when, why it refused (empty: it accepted), and whether it served clients."""

    at_s: float
    kind: str
    is_serving: bool


@dataclass(slots=True)
class Host:
    """One machine. ``skew_us``: the error of its wall clock. ``boots``: how many processes it has started.

    ``camp``: why others refuse it, and it them, and the name of its camp; None while it is in no camp.
    ``outcomes``: what its process was told: address -> the outcome of the last request there.
    ``known``: number of a process here -> the addresses that it can have heard of, its own included.
    ``was_serving``: whether its process has been seen to serve. ``was_trusted``: whether a replica has accepted a
    message of this process and agreed with its wall clock, since it last had no other member in its table.

    ``last_reading``: what ``World.now`` returned last. ``retries``: called after every event at this host, for requests
    that wait. ``completing``: the serials of requests whose reply is being applied.
    """

    address: str
    seeds: tuple[str, ...]
    ip: str = ""
    replica: Replica | None = None
    skew_us: int = 0
    boots: int = 0
    paused_until_s: float = 0.0
    wake_at_s: float = float("inf")
    pump_scheduled: bool = False
    last_reading: Instant = field(default_factory=lambda: Instant(0.0, 0))
    retries: list[Callable[[], None]] = field(default_factory=list)
    completing: set[int] = field(default_factory=set)
    camp: tuple[RefusalKind, str] | None = None
    outcomes: dict[str, RequestOutcome] = field(default_factory=dict)
    known: dict[int, set[str]] = field(default_factory=dict)
    was_serving: bool = False
    was_trusted: bool = False


class World(Scheduler):
    """Hosts, network and time. ``at_crash``: called with the host of every process that dies, just before it does.

    ``at_serving``: called with the host of every process that begins to serve clients.
    """

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
        super().__init__()
        self.rng = rng
        self.step_delay_s = step_delay_s
        self.discovers = discovers
        self.had_many_wrong_clocks = False
        """Whether the clocks of several hosts have been wrong at the same time."""
        self.latest_wall_us = 0
        """The latest time that the wall clock of any host has shown."""
        self.conditions = conditions or Conditions()
        self.settings = settings or ReplicationSettings()
        self.store_settings = store_settings or StoreSettings()
        self.cuts: set[tuple[str, str]] = set()
        self.counts: Counter[str] = Counter()
        self.removed: dict[str, int] = {}
        """Address -> the number of the process that was removed there by command while it served, if it was neither
        added back nor started again since."""
        self.commanded: set[str] = set()
        """Addresses that a command has removed."""
        self.at_crash: Callable[[Host], None] = lambda host: None
        self.at_serving: Callable[[Host], None] = lambda host: None
        addresses = tuple(addresses)
        self.hosts = {address: Host(address, addresses) for address in addresses}
        self.name_service = NameService(self, rng, len(self.hosts))

    # -- time ------------------------------------------------------------------------------------------

    def now(self, host: Host) -> Instant:
        """Read the clocks of ``host``."""
        wall_us = EPOCH_US + int(self.now_s * 1e6) + host.skew_us
        if host.last_reading.mono_s != self.now_s or host.last_reading.wall_us != wall_us:
            host.last_reading = Instant(self.now_s, wall_us)
            self.latest_wall_us = max(self.latest_wall_us, wall_us)
        return host.last_reading

    # -- processes -------------------------------------------------------------------------------------

    def start(self, address: str, seeds: Iterable[str] | None = None) -> Replica:
        """Start an empty process at ``address``."""
        host = self.hosts[address]
        assert host.replica is None
        host.boots += 1
        host.outcomes = {}
        host.known[host.boots] = {address}
        host.was_serving = host.was_trusted = False
        self.removed.pop(address, None)
        if self.discovers:
            seeds = ()
            host.ip = self.name_service.assign(host.address)
            self.at(self.now_s + REACTION_S, self._look_up, host, host.boots)
        host.replica = Replica(
            address,
            host.seeds if seeds is None else seeds,
            now=self.now(host),
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
        """Kill the process at ``address``: its memory is lost."""
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
            self.name_service.release(host.ip)
        self._wake_requests(host)

    def pause(self, address: str, seconds: float) -> None:
        """Pause the process at ``address`` for a while, as SIGSTOP does; it does not notice."""
        self.hosts[address].paused_until_s = self.now_s + seconds
        self.counts["pauses"] += 1

    def live(self) -> list[Host]:
        """Return the hosts that have a process."""
        return [host for host in self.hosts.values() if host.replica is not None]

    # -- time within a process -------------------------------------------------------------------------

    def _tick(self, host: Host, boot: int) -> None:
        if host.replica is None or host.boots != boot:
            return
        if self.now_s >= host.paused_until_s:
            host.replica.tick(self.now(host))
            if not host.replica.membership.table.others:
                host.was_trusted = False  # All others are removed. It follows its wall clock, whatever that shows.
            self._watch_state(host)
            self._wake_requests(host)
            self.pump(host)
        self.at(self.now_s + TICK_S, self._tick, host, boot)

    def _look_up(self, host: Host, boot: int) -> None:
        if host.replica is None or host.boots != boot:
            return
        if self.now_s >= host.paused_until_s and (found := self.name_service.look_up()):
            self.counts["lookups"] += 1
            host.replica.discovered(found, self.now(host))
            self._wake_requests(host)
            self.pump(host)
        self.at(self.now_s + self.settings.sync_interval_s, self._look_up, host, boot)

    def pump(self, host: Host) -> None:
        """Send the requests that are due at ``host``, and schedule the next wake-up."""
        replica = host.replica
        if replica is None or self.now_s < host.paused_until_s:
            return
        now = self.now(host)
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

    def schedule_pump(self, host: Host) -> None:
        """Schedule ``pump`` shortly: a request may have become due at ``host``."""
        if not host.pump_scheduled:
            host.pump_scheduled = True
            self.at(self.now_s + REACTION_S, self._pump_as_scheduled, host)

    def _pump_as_scheduled(self, host: Host) -> None:
        host.pump_scheduled = False
        self.pump(host)

    def _wake(self, host: Host, due_s: float) -> None:
        if host.wake_at_s == due_s:
            host.wake_at_s = float("inf")
            self.pump(host)

    def _watch_state(self, host: Host) -> None:
        """Report a process that has begun to serve."""
        is_serving = host.replica is not None and host.replica.state == "serving"
        if is_serving and not host.was_serving:
            self.at_serving(host)
        host.was_serving = is_serving

    def _wake_requests(self, host: Host) -> None:
        """Let the waiting requests at ``host`` check again, after an event there."""
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
            if self._is_delivered(host.address, to):
                self.at(self.now_s + self._delay(), self._arrive, host, boot, to, serial, message)

    def _arrive(self, host: Host, boot: int, to: str, serial: int, message: Exchange | SnapshotRequest) -> None:
        receiver = self.hosts.get(self.name_service.resolve(to))
        if receiver is None or receiver.replica is None:
            # Connection refused: the sender learns it at once, if the answer gets through.
            if self._is_delivered(to, host.address):
                self.at(self.now_s + self._delay(), self._give_up, host, boot, to, serial)
            return
        if self.now_s < receiver.paused_until_s:
            self.at(receiver.paused_until_s, self._arrive, host, boot, to, serial, message)
            return
        if isinstance(message, SnapshotRequest):
            self.counts["pieces"] += 1
        is_serving = receiver.replica.state == "serving"
        kind = self._camp_between(host, receiver)
        if kind is not None:
            self._refuse(receiver, host, boot, to, serial, Refusal(kind, is_serving))
            return

        receiver.known[receiver.boots] |= host.known[boot]

        def answer(reply: Exchange | SnapshotPiece) -> None:
            if isinstance(message, Exchange) and isinstance(reply, Exchange):
                self.counts["updates_sent"] += len(message.updates) + len(reply.updates)
            if self._is_delivered(receiver.address, host.address):
                host.known[boot] |= receiver.known[receiver.boots]
                self.at(self.now_s + self._delay(), self._reply, host, boot, to, serial, reply)

        def reject(exc: BadMessage) -> None:
            self._refuse(receiver, host, boot, to, serial, refusal_stated(exc, is_serving=is_serving))

        try:
            conversation = receiver.replica.receive(message, self.now(receiver))
        except BadMessage as exc:
            reject(exc)
            return
        self._step(receiver, receiver.boots, conversation, answer, reject)

    @staticmethod
    def _camp_between(one: Host, other: Host) -> RefusalKind | None:
        """Return why two hosts refuse each other; None if they do not."""
        camps = [host.camp for host in (one, other) if host.camp is not None]
        return camps[0][0] if camps and one.camp != other.camp else None

    def _refuse(self, receiver: Host, host: Host, boot: int, to: str, serial: int, refusal: Refusal) -> None:
        if self._is_delivered(receiver.address, host.address):
            self.at(self.now_s + self._delay(), self._give_up, host, boot, to, serial, refusal)

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
            if isinstance(reply, Exchange) and to != host.address:
                self._note_acceptance(host, to, reply)

        def reject(exc: BadMessage) -> None:
            host.completing.discard(serial)
            self._give_up(host, boot, to, serial, refusal_of(exc))

        self._step(host, boot, host.replica.complete(to, serial, reply, self.now(host)), done, reject)

    def _note_acceptance(self, host: Host, to: str, reply: Exchange) -> None:
        ahead_s = abs(reply.wall - self.now(host).wall_us) / 1e6
        last = host.outcomes.get(to)
        if reply.wall:
            kind = "clock" if ahead_s > self.settings.max_clock_lead_s else ""
            host.was_trusted = host.was_trusted or not kind
        elif last is not None and last.kind == "clock" and self.now_s - last.at_s < self.settings.silent_after_s:
            return
        else:
            kind = ""
        host.outcomes[to] = RequestOutcome(self.now_s, kind, reply.state == "serving")

    def receive_forged(self, host: Host, message: Exchange) -> None:
        """Let ``host`` take a request that no replica has sent."""
        if host.replica is None or self.now_s < host.paused_until_s:
            return
        try:
            conversation = host.replica.receive(message, self.now(host))
        except BadMessage:
            self.counts["rejected"] += 1
            return
        self._step(host, host.boots, conversation, lambda reply: None, lambda exc: self.counts.update(["rejected"]))

    def _step(
        self,
        host: Host,
        boot: int,
        conversation: Conversation[Result],
        done: Callable[[Result], None],
        rejected: Callable[[BadMessage], None],
    ) -> None:
        """Make one step of a conversation at ``host``; the next one is an event of its own, at a random time.

        So other messages, requests, ticks and a crash come in between, as they do between two turns of a server's lock.
        ``done``: called with the result of the conversation; ``rejected``: if the message is rejected.
        """
        if host.replica is None or host.boots != boot:
            return  # The process died between two steps.
        if self.now_s < host.paused_until_s:
            self.at(host.paused_until_s, self._step, host, boot, conversation, done, rejected)
            return
        try:
            if getgeneratorstate(conversation) == GEN_CREATED:
                next(conversation)
            else:
                conversation.send(self.now(host))
        except StopIteration as end:
            result: Result = end.value
        except BadMessage as exc:
            self.counts["rejected"] += 1
            self.schedule_pump(host)
            rejected(exc)
            return
        else:
            self.counts["interleavings"] += 1
            self._wake_requests(host)
            self.schedule_pump(host)
            later_s = self.now_s + self.rng.random() * self.step_delay_s
            self.at(later_s, self._step, host, boot, conversation, done, rejected)
            return
        self._wake_requests(host)
        self.schedule_pump(host)
        done(result)
        self._watch_state(host)

    def _give_up(self, host: Host, boot: int, to: str, serial: int, refusal: Refusal | None = None) -> None:
        if host.replica is None or host.boots != boot or serial in host.completing:
            return
        peer = host.replica.peers.find(to)
        if peer is None or peer.in_flight != serial:
            return
        if refusal is None:
            self.counts["timeouts"] += 1
        else:
            self.counts[f"refused_{refusal.kind}"] += 1
            host.outcomes[to] = RequestOutcome(self.now_s, refusal.kind, refusal.is_serving)
        host.replica.failed(to, serial, self.now(host), refusal)
        self.pump(host)

    def _is_delivered(self, sender: str, receiver: str) -> bool:
        """Draw whether one message arrives. If its link is cut, it does not, and no random number is used."""
        receiver = self.name_service.resolve(receiver)
        if (sender, receiver) in self.cuts:
            return False
        return self.rng.random() >= self.conditions.loss

    def _delay(self) -> float:
        if self.rng.random() < self.conditions.slow:
            return self.rng.random() * self.conditions.slow_delay_s
        return self.rng.random() * self.conditions.delay_s

    # -- the end ---------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Repair the network and resume paused processes."""
        self.cuts.clear()
        self.conditions.loss = self.conditions.duplication = self.name_service.lookup_loss = 0.0
        for host in self.hosts.values():
            host.paused_until_s = min(host.paused_until_s, self.now_s)
            host.camp = None

    def unsettled(self) -> str | None:
        """Return why the live replicas have not settled yet, None if they have."""
        live = [host.replica for host in self.live() if host.replica is not None]
        inside = [replica for replica in live if replica.membership.table.belongs(replica.address)]
        clock: Clock | None = None
        for replica in inside:
            if replica.recovery.not_ready_reason:
                return f"{replica.id} is {replica.state}: {replica.recovery.not_ready_reason}"
            if len(replica.store.pending):
                return f"{replica.id} has {len(replica.store.pending)} pending updates"
            if clock is None:
                clock = replica.store.clock
            elif clock != replica.store.clock:
                return f"{replica.id} and {inside[0].id} have different clocks"
            if (different := self._different_memberships(replica, inside)) is not None:
                return different
        for replica in live:
            if replica not in inside and inside and replica.acks.unreplicated():
                return (
                    f"{replica.id} is removed and still holds {replica.acks.unreplicated()} updates that no member has"
                )
        return None

    def _different_memberships(self, replica: Replica, inside: list[Replica]) -> str | None:
        live = replica.membership.live(self.now_s)
        if live != sorted(other.address for other in inside):
            return f"{replica.id} sees the view {live}"
        table, first = replica.membership.table, inside[0].membership.table
        if (table.entries, table.horizon) != (first.entries, first.horizon):
            return f"{replica.id} and {inside[0].id} have different membership tables"
        return None
