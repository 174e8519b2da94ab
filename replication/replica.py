"""The replica: the whole protocol of one process, as a state machine.

Theory of operation
-------------------
Messages and the time come in, messages to send come out; nothing else does. The same code runs in a server
and in a simulation. A shell drives it:

* ``targets`` says with whom to exchange, ``due_at`` when, ``begin`` builds the request. Its outcome goes to
  ``finish`` (a reply came) or ``failed`` (none did); there is at most one exchange under way with a peer.
* ``receive`` answers a peer's request. For a shell that wants to release its lock in between there are the parts:
  of ``receive``, ``take``, ``deliver`` and ``answer``; of ``finish``, ``take_reply``, ``deliver`` and ``conclude``.
* ``tick`` does what time brings: expiry, trimming, markers, the end of joining, the dropping of what is lost.
* Requests of clients go to ``store``; ``ask``, ``lost`` and ``acks`` are what they need of peers.

**What travels**: in each exchange both sides tell their clock and send what the other lacks, read from the log
from the other's last acknowledged clock on. Updates of third replicas are relayed only once a peer has lacked
them for a sync interval (their origin sends them itself), or when it asks for everything (``want``). So an
update reaches everybody over any connected path, and is sent about once where all can talk.

**Whose messages count**: replicas exchange whatever their state. Only a message of an incarnation that is
over is not taken: it is answered with the register, from which its sender sees why.

Rules with a page of their own: who belongs and who is reachable (view.py), when a joiner may serve
(joining.py), when a dependency is lost (lost.py), snapshots (catchup.py), markers (store/markers.py).

Source: anti-entropy and session guarantees as in Bayou (Petersen et al., SOSP 1997), delivery by vector clocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from replication.errors import BadMessage, DuplicateAddress
from replication.event_log import EventLog
from replication.loss import reports_since, unrecoverable
from replication.loss_queries import LossQueries
from replication.membership import Membership
from replication.messages import PROTOCOL, Exchange, MembershipEntry, SnapshotPiece, SnapshotRequest, State
from replication.pacing import Pacing
from replication.progress import PeerProgress, Report
from replication.recovery import Recovery
from replication.retired import RetiredEntries
from replication.seeds import Seeds
from replication.settings import ReplicationSettings
from replication.snapshots import SnapshotPull, SnapshotSender
from store.causal import CausalStore, LostUpdates
from store.clock import (
    INCARNATION_RANDOM_BITS,
    Clock,
    Dot,
    Instant,
    address_of,
    covers,
    incarnation_of,
    missing,
    replica_id,
)
from store.errors import BadUpdate
from store.log import EMPTY_DELTA, Delta
from store.settings import StoreSettings
from store.versions import Update

CATCHING_UP = "Replica is catching up"
NOT_IN_VIEW = "Replica is not in the view"


class RandomBits(Protocol):
    """The randomness that a replica is handed (``random.Random`` has this form)."""

    def getrandbits(self, k: int, /) -> int: ...


class Outgoing(NamedTuple):
    """A request to hand to the peer at ``to``; ``serial`` comes back with its outcome."""

    to: str
    serial: int
    message: Exchange | SnapshotRequest


class Replica:
    """One replica at ``address`` (host:port). Not thread-safe.

    ``seeds``: addresses to ask at the start. ``discovers``: ``discovered`` will tell further ones.
    """

    def __init__(
        self,
        address: str,
        seeds: Iterable[str],
        *,
        now: Instant,
        rng: RandomBits,
        settings: ReplicationSettings | None = None,
        store_settings: StoreSettings | None = None,
        discovers: bool = False,
    ) -> None:
        self.address = address
        self.settings = settings or ReplicationSettings()
        self.membership = Membership(address, self.settings)
        self.event_log = EventLog()
        self.started_s = now.mono_s
        self.leaving = False
        self._rng = rng
        self._seeds = Seeds(address, seeds, discovers=discovers, now_s=now.mono_s)
        self._aliases: dict[str, str] = {}
        self._peers: dict[str, PeerProgress] = {}
        self._joining: Recovery | None = Recovery(now.mono_s)
        self._snapshot_sender = SnapshotSender(self.settings.max_snapshots, self.settings.snapshot_piece_bytes)
        self._pull: SnapshotPull | None = None
        self.pacing = Pacing(self.settings)
        self._serial = 0
        self._beat = 0
        self._last_marker_s = float("-inf")
        self._waiting_since: dict[Dot, int] = {}
        self._questions = LossQueries()
        self._is_undiscovered = discovers
        self._possible_holders: frozenset[str] = frozenset()
        self._quiet_since: int | None = None
        incarnation = self._new_incarnation(0, now)
        self.store = CausalStore(replica_id(address, incarnation), store_settings)
        self._retired = RetiredEntries(self.store, self.membership)
        self.membership.start(incarnation, now.wall_us)
        self.event_log.record("started", self.id, "", now)
        self._follow_register(now)
        self.tick(now)

    @property
    def id(self) -> str:
        """The replica id: address and incarnation. It changes when a higher incarnation turns out to be known."""
        return self.store.replica_id

    @property
    def seeds(self) -> frozenset[str]:
        """The addresses that were named at the start, without this replica's own."""
        return self._seeds.fixed

    @property
    def state(self) -> State:
        """``joining``, ``serving``, ``removed``, or ``leaving`` (removed by its own wish)."""
        if not self.membership.belongs(self.address):
            return "leaving" if self.leaving else "removed"
        return "joining" if self._joining else "serving"

    # -- driving exchanges -----------------------------------------------------------------------------

    def targets(self, now: Instant) -> Sequence[str]:
        """Return the addresses to exchange with.

        These are the members, down ones too; seeds that never answered; whoever offers a snapshot that is
        wanted, even if it is out (it may be the last that has something); and whoever was put out and does not
        know yet. A replica that is out goes on exchanging as long as it lives: the member that had all that it
        has may die. Where everybody is out, they talk to each other.
        """
        view = self.membership
        others = view.others() if view.members() else view.left()
        wanted = [address for address, peer in self._peers.items() if self._may_have_more(peer)]
        unaware = [address for address in view.left() if self._is_unnotified(address, now)]
        if view.members() and not wanted and not unaware and not self._seeds.unanswered:
            return others
        return sorted({*others, *self._seeds.unanswered, *wanted, *unaware} - {self.address})

    def _may_have_more(self, peer: PeerProgress) -> bool:
        is_giver = self._pull is not None and self._pull.address == peer.address
        if not (peer.offers_snapshot or peer.may_offer or is_giver):
            return False
        return not covers(self.store.clock, peer.known)

    def _is_unnotified(self, address: str, now: Instant) -> bool:
        """Whether the replica at ``address``, which is out, is reachable and has another register."""
        peer = self._peers.get(address)
        if peer is None or not peer.replica or peer.membership_digest == self.membership.digest:
            return False
        return not self.membership.is_superseded(peer.replica) and not self.membership.is_silent(
            peer.replica, float("-inf"), now.mono_s
        )

    def due_at(self, address: str, now: Instant) -> float:
        """Return when the next exchange with ``address`` should begin (monotonic seconds); infinity while one runs."""
        peer = self._peer(address)
        if peer.in_flight:
            return float("inf")
        exchange_due_s = peer.due_at(self._issued(), now.mono_s)
        if not peer.failed and self._wants_piece(peer):
            return min(max(now.mono_s, peer.piece_due_s), exchange_due_s)
        return exchange_due_s

    def has_news_for(self, address: str) -> bool:
        """Return whether updates of this incarnation have come since the last exchange with ``address`` began."""
        return self._issued() > self._peer(address).offered

    def begin(self, address: str, now: Instant) -> Outgoing | None:
        """Return the request to send to ``address`` now, None when none is due."""
        if self.due_at(address, now) > now.mono_s:
            return None
        peer = self._peer(address)
        # Pieces of a snapshot take turns with exchanges that are due, so that neither holds the other up.
        exchange_due = peer.due_at(self._issued(), now.mono_s) <= now.mono_s
        piece_due = self._wants_piece(peer) and (peer.piece_due_s <= now.mono_s or not exchange_due)
        piece_next = piece_due and not (exchange_due and peer.pulling)
        peer.pulling = piece_next
        self._serial += 1
        peer.in_flight = self._serial
        if piece_next:
            self._pull = self._pull or SnapshotPull(address)
            peer.begun_s = now.mono_s
            return Outgoing(address, self._serial, self._pull.request(self.id))
        # Of a peer that has never talked it is not known what it lacks: ask first, send then.
        relay_before_s = now.mono_s - self.settings.sync_interval_s
        delta = self._delta(peer, peer.known, relay_before_s) if peer.replica else EMPTY_DELTA
        message = self._message(peer, delta, now, want_all=peer.urgent or self._joining is not None)
        peer.urgent = peer.more = False
        peer.cut_at = peer.seen() if delta.more else None
        peer.offered = self._issued()
        peer.begun_s = now.mono_s
        peer.paced_until_s = now.mono_s + self.pacing.interval_s(peer.round_trip_s, now.mono_s)
        if now.mono_s >= peer.next_sync_s:
            peer.next_sync_s = now.mono_s + self.settings.sync_interval_s
        return Outgoing(address, self._serial, message)

    def finish(self, address: str, serial: int, reply: Exchange | SnapshotPiece, now: Instant) -> None:
        """Take in the reply to exchange ``serial`` with ``address``. Raises BadMessage, AddressTaken."""
        if isinstance(reply, SnapshotPiece):
            peer = self._peers.get(address)
            if peer is not None:
                self._landed(peer, serial)
                # Whoever gives has clients to serve as well.
                rest_s = self.settings.piece_rest_times * (now.mono_s - peer.begun_s)
                peer.piece_due_s = now.mono_s + min(rest_s, self.settings.max_piece_rest_s)
                self._finish_piece(peer, reply, now)
            return
        peer_thread = self.take_reply(address, serial, reply, now)
        if peer_thread is not None:
            self.conclude(address, serial, peer_thread, reply, self.deliver(reply.updates, now), now)

    def take_reply(self, address: str, serial: int, reply: Exchange, now: Instant) -> PeerProgress | None:
        """Take in all of a reply but its updates. None: nothing of it counts, and there is nothing to conclude."""
        peer = self._peers.get(address)
        if peer is None:
            # Lookups lead there no more (``discovered``), and whatever is there has not told its own address yet.
            return None
        me = self.id
        if peer.in_flight == serial:
            peer.took(now.mono_s)
        self._landed(peer, serial)
        peer_thread = self.take(reply, now)
        # Told that this incarnation is over, and started anew under a higher one: say so at once.
        peer.urgent = peer.urgent or me != self.id
        if address_of(reply.sender) != address:
            self._meet_alias(address, reply.sender, now)
        self._seeds.mark_answered(address, is_own=address_of(reply.sender) == self.address)
        self._look_around(now)
        return peer_thread

    def conclude(
        self, address: str, serial: int, peer_thread: PeerProgress, reply: Exchange, applied: int, now: Instant
    ) -> None:
        """End the exchange that ``take_reply`` began: of the reply's updates ``applied`` were applied."""
        peer_thread.offers_snapshot = reply.truncated
        peer_thread.may_offer = False
        peer_thread.more = (reply.more and applied > 0) or (
            peer_thread.cut_at is not None and peer_thread.seen() > peer_thread.cut_at
        )
        clock = self._retired.whole_clock(reply)
        if clock is not None:
            if peer_thread.report is None or peer_thread.report.serial < serial:
                peer_thread.report = Report(reply.sender, serial, reply.membership_digest, clock, reply.pending)
            if self._joining is not None:
                self._joining.note(address, reply.sender, clock)
                self._joining.note(peer_thread.address, reply.sender, clock)
        self._finish_joining(now)

    def failed(self, address: str, serial: int, now: Instant) -> None:
        """Note that exchange ``serial`` with ``address`` brought no reply. It may have arrived there all the same."""
        peer = self._peers.get(address)
        if peer is None or peer.in_flight != serial:
            return
        self._landed(peer, serial)
        peer.failed = True
        peer.offered = peer.known.get(self.id, 0)
        peer.next_sync_s = max(peer.next_sync_s, now.mono_s)
        if self._pull is not None and self._pull.address == address:
            self._pull = None

    def _landed(self, peer: PeerProgress, serial: int) -> None:
        if peer.in_flight == serial:
            peer.in_flight = 0
            peer.failed = False

    # -- answering -------------------------------------------------------------------------------------

    def receive(self, message: Exchange, now: Instant) -> Exchange:
        """Take in a peer's request and return the reply. Raises BadMessage, AddressTaken."""
        peer = self.take(message, now)
        if peer is not None:
            self.deliver(message.updates, now)
        return self.answer(peer, message, now)

    def take(self, message: Exchange, now: Instant) -> PeerProgress | None:
        """Take in all of a message but its updates; None when its sender is no present incarnation (or its own)."""
        if address_of(message.sender) == self.address:
            self._meet_duplicate(message.sender)
            return None
        if message.clock.get(self.id, 0) > self._issued():
            raise BadMessage("the clock names updates of this replica that it never issued")
        self._look_for_duplicates(message, now)
        if message.membership is not None:
            self._merge(message.membership, now)
        if self.membership.is_superseded(message.sender):
            return None
        if not message.accepted:
            # Not taken there, for what its register says or does not say: tell it ours, once at once.
            teller = self._peer(address_of(message.sender))
            teller.urgent = teller.urgent or teller.membership_digest != 0
            teller.membership_digest = 0
            return None
        if self.membership.present_id(address_of(message.sender)) != message.sender:
            # Whoever starts writes itself in, and tells its register to whoever has another one. Without it, it may
            # be one that died unknown, and this message late: who started there since has a lower incarnation then.
            return None
        peer = self._peer(address_of(message.sender))
        if peer.replica != message.sender:
            if peer.replica:
                self._snapshot_sender.forget(peer.replica)
                self.event_log.record("superseded", peer.replica, f"{message.sender} talks", now)
            peer.become(message.sender, now.mono_s)
        self.store.hybrid_clock.observe(message.time, now)
        self._hear(message, now)
        peer.membership_digest = message.membership_digest
        peer.retired_digest = message.retired_digest
        whole = self._retired.whole_clock(message)
        peer.told_whole = whole is not None
        peer.acknowledge(message.clock if whole is None else whole)
        if not self.membership.belongs(peer.address) or any(
            replica not in self.membership.present for replica in message.heard
        ):
            self._watch_left(now)
        return peer

    def deliver(self, updates: Iterable[Update], now: Instant) -> int:
        """Apply a peer's updates, or let them wait; return how many were applied. Raises BadMessage."""
        try:
            return self.store.receive(updates, now)
        except BadUpdate as exc:
            raise BadMessage(str(exc)) from exc

    def answer(self, peer: PeerProgress | None, request: Exchange, now: Instant) -> Exchange:
        """Return the reply to ``request``; ``peer`` is what ``take`` returned for it."""
        if peer is None:
            return self._message(None, EMPTY_DELTA, now, accepted=False)
        if request.truncated:
            peer.may_offer = peer.urgent = True
        known = peer.known
        if peer.in_flight and not peer.failed and not request.want_all:
            # What an exchange of our own is carrying there right now need not go twice. (Where the last one failed,
            # this one may too, and the reply may be the only way there.)
            known = {**known, self.id: max(known.get(self.id, 0), peer.offered)}
        relay_before_s = float("inf") if request.want_all else now.mono_s - self.settings.sync_interval_s
        return self._message(peer, self._delta(peer, known, relay_before_s), now)

    def give(self, request: SnapshotRequest, now: Instant) -> SnapshotPiece:
        """Answer a request for a piece of a snapshot; an empty name says: not now, or start again."""
        piece = None
        if not request.snapshot and self._snapshot_sender.has_room(request.sender):
            piece = self._snapshot_sender.open(self.id, request.sender, self.store.snapshot(now), now.mono_s)
        elif request.snapshot:
            piece = self._snapshot_sender.piece(request, now.mono_s)
        return piece or SnapshotPiece(self.id, "", request.piece, last=True)

    # -- the parts of a message ------------------------------------------------------------------------

    def _message(
        self, peer: PeerProgress | None, delta: Delta, now: Instant, *, want_all: bool = False, accepted: bool = True
    ) -> Exchange:
        self._beat += 1
        retired = self._retired
        tells = peer is None or now.mono_s - peer.told_s >= self.settings.sync_interval_s / 2
        if peer is not None and tells:
            peer.told_s = now.mono_s
        return Exchange(
            sender=self.id,
            heartbeat=self._beat,
            protocol=PROTOCOL,
            time=self.store.hybrid_clock.read(now),
            membership_digest=self.membership.digest,
            membership=self._table_for(peer),
            clock={id_: n for id_ in self.membership.present_ids if (n := self.store.clock.get(id_, 0))},
            retired_digest=retired.digest,
            retired=None if peer and peer.retired_digest == retired.digest else retired.clock,
            state=self.state,
            heard=self.membership.heard(now.mono_s, self._possible_holders) if tells else {},
            pending=self._orphaned(),
            batch=[msgspec.Raw(encoded) for encoded in delta.batch],
            want_all=want_all,
            truncated=delta.truncated,
            more=delta.more,
            accepted=accepted,
        )

    def _table_for(self, peer: PeerProgress | None) -> dict[str, MembershipEntry] | None:
        """Return the membership table, None where the peer has the same one."""
        if peer is not None and peer.membership_digest == self.membership.digest:
            return None
        return dict(self.membership.table)

    def _delta(self, peer: PeerProgress, known: Mapping[str, int], relay_before_s: float) -> Delta:
        return self.store.log.delta(
            known,
            self._retired.to_look_for(peer),
            own=self.id,
            relay_before_s=relay_before_s,
            limit=self.settings.batch_updates,
            limit_bytes=self.settings.batch_bytes,
        )

    def _orphaned(self) -> dict[str, int]:
        """Return the lowest pending counter of each origin that is no present incarnation."""
        if not self.store.pending:
            return {}
        return {id_: n for id_, n in self.store.pending.lowest_counters().items() if id_ not in self.membership.present}

    def _hear(self, message: Exchange, now: Instant) -> None:
        self.membership.hear(message.sender, message.heartbeat, now.mono_s)
        for replica, heard in message.heard.items():
            if address_of(replica) != self.address:
                self.membership.hear(replica, heard.heartbeat, now.mono_s - heard.age_ms / 1000)

    def _look_for_duplicates(self, message: Exchange, now: Instant) -> None:
        """Stop when another incarnation of this address has talked, and not as a predecessor of this process."""
        for replica, heard in message.heard.items():
            at_s = now.mono_s - heard.age_ms / 1000
            if address_of(replica) == self.address and at_s > self.started_s + self.settings.down_after_s:
                self._meet_duplicate(replica)

    # -- snapshots -------------------------------------------------------------------------------------

    def _wants_piece(self, peer: PeerProgress) -> bool:
        """Whether to ask ``peer`` for a piece: one snapshot is pulled at a time.

        Not by a replica that is out while others are in: nobody asks it for data, and as members trim their logs
        without regard to it, it would pull one snapshot after another.
        """
        if not self.membership.belongs(self.address) and self.membership.members():
            return False
        if self._pull is not None:
            return self._pull.address == peer.address
        return peer.offers_snapshot and not covers(self.store.clock, peer.known)

    def _finish_piece(self, peer: PeerProgress, piece: SnapshotPiece, now: Instant) -> None:
        pull = self._pull
        if pull is None or pull.address != peer.address:
            return
        if not pull.stage(piece):
            # Another incarnation, too many receivers, or given up there: forget it, the next exchange offers anew.
            self._pull = None
            peer.offers_snapshot = False
            return
        if not piece.last:
            return
        snapshot = pull.snapshot()
        self._pull = None
        for other in self._peers.values():
            # Offered to what this replica was before; whoever still has more offers again.
            other.offers_snapshot = other.may_offer = False
        if snapshot.clock.get(self.id, 0) > self._issued():
            raise BadMessage("the snapshot names updates of this replica that it never issued")
        self.store.join(snapshot, now)
        self.event_log.record("snapshot", peer.replica, f"{len(snapshot.table)} keys taken over", now)
        peer.urgent = True
        self._finish_joining(now)

    # -- membership ------------------------------------------------------------------------------------

    def add_replica_from_view(self, replica: str, now: Instant) -> bool:
        """Let the address ``replica`` in (PUT /view); False when it is in already."""
        address = self._aliases.get(replica, replica)
        added = self.membership.add_replica_from_view(address, self.store.hybrid_clock.read(now), now.mono_s)
        if added:
            self._register_changed("added", address, now)
        return added

    def remove_replica_from_view(self, replica: str, now: Instant) -> bool:
        """Put the address ``replica`` out (DELETE /view); False when it is not in."""
        address = self._aliases.get(replica, replica)
        stamp = self.store.hybrid_clock.read(now)
        if self._seeds.remove(address) and not self.membership.belongs(address):
            # A seed that was never reached: from now on it is known to be out, and nothing waits for it.
            self.membership.add_replica_from_view(address, stamp, now.mono_s)
        removed = self.membership.remove_replica_from_view(address, stamp)
        if removed:
            self._register_changed("removed", address, now)
        return removed

    def go(self, now: Instant) -> None:
        """Count the silence of those to ask from now on: a server may take seconds from here to its first exchange."""
        if self._joining is not None:
            self._joining.started_s = now.mono_s

    def discovered(self, addresses: Iterable[str], now: Instant) -> None:
        """Take in what a lookup of peers found: all addresses under which replicas are said to be (seeds.py).

        To be called with each lookup that found somebody; one that failed or found nobody says nothing.
        """
        for gone in self._seeds.update(addresses, now.mono_s):
            # Whoever answers there next may be somebody else.
            self._aliases.pop(gone, None)
            if gone not in self.membership.table:
                self._peers.pop(gone, None)
        self._look_around(now)
        if self._joining is not None:
            # Who answers at an address that is back may be somebody else: it has its full time again.
            self._joining.asked_s.update(self._seeds.unanswered)
            self._finish_joining(now)

    def leave(self, now: Instant) -> None:
        """Go out by one's own wish, for good: the process is about to end. ``unreplicated`` says when it may."""
        self.leaving = True
        self.remove_replica_from_view(self.address, now)
        self._follow_register(now)

    def unreplicated(self) -> int:
        """Return how many updates would die with this replica: what the member that has most of them lacks.

        When this replica is out, a member that does not know so yet does not count as having everything.
        """
        clock = self.store.clock
        is_out = not self.membership.belongs(self.address)
        lacks = []
        for peer in self._members():
            if peer is not None and peer.replica:
                knows = not is_out or peer.membership_digest == self.membership.digest
                lack = sum(n - min(n, peer.known.get(id_, 0)) for id_, n in clock.items())
                lacks.append(lack if knows else max(lack, 1))
        if not lacks:
            return sum(clock.values()) if self.membership.others() else 0
        return min(lacks)

    def _register_changed(self, kind: str, address: str, now: Instant) -> None:
        self.event_log.record(kind, address, "by command", now)
        self._follow_register(now)
        for target in [*self.membership.others(), address]:
            if target != self.address:
                self._peer(target).urgent = True

    def _merge(self, register: Mapping[str, MembershipEntry], now: Instant) -> None:
        before = dict(self.membership.table)
        if self.membership.merge(register):
            for address, entry in self.membership.table.items():
                if before.get(address) != entry:
                    self.event_log.record(
                        "joined" if entry.belongs else "left", address, f"{entry.incarnation:016x}", now
                    )
            self._follow_register(now)

    def _follow_register(self, now: Instant) -> None:
        """Bring all that depends on the register in line with it: own incarnation, present ids, the gate."""
        known = self.membership.table[self.address].incarnation
        if known > incarnation_of(self.id):
            # A predecessor had a clock that was ahead. Take a still higher one; data, clock and log stay.
            incarnation = self._new_incarnation(known, now)
            self.membership.start(incarnation, self.store.hybrid_clock.read(now))
            self.store.replica_id = replica_id(self.address, incarnation)
            for peer in self._peers.values():
                peer.offered = 0
            self.event_log.record("raised", self.id, "a higher incarnation of this address is known", now)
        self.store.set_present_ids(self.membership.present)
        self._watch_left(now)
        self._set_gate(now)

    def _set_gate(self, now: Instant) -> None:
        if not self.membership.belongs(self.address):
            self.store.not_serving_reason = NOT_IN_VIEW
            return
        if self.store.not_serving_reason == NOT_IN_VIEW:
            # Put back. Members have trimmed their logs without regard to it: it has to catch up as one that starts.
            self.store.not_serving_reason = CATCHING_UP
            self._joining = Recovery(now.mono_s)
            for address in self.membership.others():
                self._peer(address).urgent = True
            self._finish_joining(now)
        self.store.not_serving_reason = CATCHING_UP if self._joining else None

    def _new_incarnation(self, known: int, now: Instant) -> int:
        """Return an incarnation above ``known``: milliseconds, then bits that nobody else draws."""
        milliseconds = max(now.wall_us // 1000, (known >> INCARNATION_RANDOM_BITS) + 1)
        return milliseconds << INCARNATION_RANDOM_BITS | self._rng.getrandbits(INCARNATION_RANDOM_BITS)

    def _meet_duplicate(self, other: str) -> None:
        """Somebody talks under this address. Of two processes the one with the lower incarnation has to stop."""
        if incarnation_of(other) > incarnation_of(self.id):
            raise DuplicateAddress(f"another process ({other}) uses the address {self.address}")

    def _meet_alias(self, asked: str, sender: str, now: Instant) -> None:
        """The replica asked as ``asked`` calls itself something else: that name is the one that counts."""
        actual = address_of(sender)
        self._aliases[asked] = actual
        entry = self.membership.table.get(asked)
        if entry is None or not entry.belongs:
            return
        # An alias was PUT: put the name out again, and in what it stands for.
        stamp = self.store.hybrid_clock.read(now)
        self.membership.remove_replica_from_view(asked, stamp)
        self.membership.add_replica_from_view(actual, stamp, now.mono_s)
        self._register_changed("alias", asked, now)

    # -- time ------------------------------------------------------------------------------------------

    def tick(self, now: Instant) -> None:
        """Do what time brings. Called often, at least once a sync interval; costs little when there is nothing."""
        self.store.expire(now)
        self._snapshot_sender.expire(now.mono_s)
        if self._pull is not None and not self._may_have_more(self._peer(self._pull.address)):
            # What the giver has came in other ways meanwhile; and one that is out would not be asked again.
            self._pull = None
        self._look_around(now)
        self._finish_joining(now)
        self._watch_left(now)
        self._trim()
        self._mark(now)
        self._drop_lost(now)
        self._questions.forget(now.mono_s)
        self.event_log.observe(self.membership, self.store, now)

    def _look_around(self, now: Instant) -> None:
        """Note whether this replica still cannot tell whether it is the only one (seeds.py)."""
        self._is_undiscovered = self._seeds.is_undiscovered(now.mono_s, self.membership.silent_after_s)

    def _watch_left(self, now: Instant) -> None:
        """Note who was put out and may still bring something, and as of which exchange nobody may (lost.py, rule 2)."""
        view = self.membership
        out = {address: id_ for address in view.left() if (id_ := view.present_id(address))}
        alive = {address: id_ for address, id_ in out.items() if not view.is_silent(id_, self.started_s, now.mono_s)}
        self._possible_holders = frozenset(id_ for address, id_ in alive.items() if not self._has_all_of(address, id_))
        if self._possible_holders:
            self._quiet_since = None
        elif self._quiet_since is None:
            self._quiet_since = self._serial

    def _has_all_of(self, address: str, replica: str) -> bool:
        """Whether this replica has all that ``replica``, which was put out and knows it, will ever bring."""
        peer = self._peers.get(address)
        if peer is None or peer.replica != replica or peer.membership_digest != self.membership.digest:
            return False
        return peer.told_whole and covers(self.store.clock, peer.known)

    def _finish_joining(self, now: Instant) -> None:
        if self._joining is None:
            return
        if self._is_undiscovered and not self.membership.is_silent("", self._joining.started_s, now.mono_s):
            return
        asked = {*self._seeds.unanswered, *self._joining.answers, *self.membership.others()} - self._own_names()
        self._joining.ask(asked, now.mono_s)
        if self._joining.is_done(sorted(asked), self.store.clock, self.membership, now.mono_s):
            self._joining = None
            self._set_gate(now)
            if self.membership.belongs(self.address):
                self.event_log.record("serving", self.id, f"{len(self.store.table)} keys", now)

    def _own_names(self) -> set[str]:
        return {self.address, *(alias for alias, actual in self._aliases.items() if actual == self.address)}

    def _members(self) -> list[PeerProgress | None]:
        """Return what is known of the other members' present incarnations, None where one has not talked yet."""
        peers = []
        for address in self.membership.others():
            peer = self._peers.get(address)
            peers.append(peer if peer is not None and peer.replica == self.membership.present_id(address) else None)
        return peers

    def _trim(self) -> None:
        """Forget in the log what all members have, and use the markers that all members have."""
        members = [peer.known if peer is not None else {} for peer in self._members()]

        def everybody(origins: Iterable[str]) -> Clock:
            return {o: min([self.store.clock.get(o, 0), *(known.get(o, 0) for known in members)]) for o in origins}

        self.store.log.trim(everybody(self.store.log.origins()))
        markers = self.store.markers
        if markers.all():
            markers.promote(everybody(marker.origin for marker in markers.all()), self.membership.present)
            self.store.simplify_delete_clock()

    def _mark(self, now: Instant) -> None:
        """Issue a marker when the clock names ids that are over or out and that no marker of a member covers."""
        if self.state != "serving" or now.mono_s - self._last_marker_s < self.settings.sync_interval_s:
            return
        retired = self._retired.clock
        if retired and not self.store.markers.cover_retired(retired, self.membership.present):
            self._last_marker_s = now.mono_s
            self.store.issue_marker(now)

    def _drop_lost(self, now: Instant) -> None:
        """Drop the pending updates whose cause is lost for good."""
        if not self.store.pending:
            self._waiting_since.clear()
            return
        waiting = {item.update.dot: item.waits_for for item in self.store.pending}
        self._waiting_since = {dot: self._waiting_since.get(dot, self._serial) for dot in waiting}
        for dot, (replica, counter) in waiting.items():
            if self._is_past(replica) and self.unrecoverable({replica: counter}, self._waiting_since[dot]):
                self.store.drop_pending(dot)
                self.event_log.record("dropped", dot[0], f"update {dot[1]} waits for a lost one of {replica}", now)

    # -- what clients' requests need of peers ----------------------------------------------------------

    def ask(self, past: Mapping[str, int]) -> int:
        """A request waits for ``past``: exchange at once with whoever may have it. Returns a token for ``lost``."""
        for replica, (_, needed) in missing(self.store.clock, past).items():
            for address in self.membership.others():
                peer = self._peer(address)
                # Of an incarnation that is over anybody may have it, and "lost" is to be known from everybody.
                may_have = replica not in self.membership.present or address == address_of(replica)
                if may_have or peer.known.get(replica, 0) >= needed:
                    peer.urgent = True
        return self._serial

    def ask_again(self, past: Mapping[str, int]) -> int:
        """Like ``ask``, for a request that may not wait, and may come again (questions.py)."""
        self.ask(past)
        return self._questions.token(missing(self.store.clock, past), self._serial)

    def unrecoverable(self, past: Mapping[str, int], token: int) -> LostUpdates:
        """Return replica id -> (first, last) counter of what of ``past`` is lost for good (replication/loss.py)."""
        gaps = missing(self.store.clock, past)
        gaps = {id_: gap for id_, gap in gaps.items() if self._is_past(id_)}
        if not gaps or self._seeds.unanswered or self._is_undiscovered or self._quiet_since is None:
            return {}
        ids = [self.membership.present_id(address) for address in self.membership.others()]
        reports = reports_since(max(token, self._quiet_since), self._members(), ids, self.membership.digest)
        if reports is None:
            return {}
        gone = unrecoverable(gaps, reports, self.store.clock, self._orphaned())
        self.event_log.record_unrecoverable(gone)
        return gone

    def _is_past(self, replica: str) -> bool:
        """Whether the id ``replica`` is an incarnation that will not speak again (lost.py, rule 1)."""
        incarnation = incarnation_of(replica)
        if not incarnation or replica in self.membership.present:
            return False
        entry = self.membership.table.get(address_of(replica))
        # Where the address is in, its present incarnation has to report: then no other one is alive there.
        return entry is not None and (entry.belongs or incarnation <= entry.incarnation)

    def acks(self, dot: Dot) -> int:
        """Return how many members, this one included, are known to have applied ``dot``."""
        origin, counter = dot
        return 1 + sum(peer is not None and peer.known.get(origin, 0) >= counter for peer in self._members())

    def acks_required(self, write_concern: str) -> int:
        """Return how many members ``"all"`` are, or a ``"majority"``: of those that belong, reachable or not."""
        members = len(self.membership.others()) + 1
        return members if write_concern == "all" else members // 2 + 1

    # -- small things ----------------------------------------------------------------------------------

    def peer(self, address: str) -> PeerProgress | None:
        """Return what is known of the peer at ``address``, for people to look at."""
        return self._peers.get(address)

    def _issued(self) -> int:
        """Return how many updates this incarnation has issued."""
        return self.store.clock.get(self.store.replica_id, 0)

    def _peer(self, address: str) -> PeerProgress:
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = PeerProgress(address)
        return peer
