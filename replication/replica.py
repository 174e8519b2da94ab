"""The replica: the whole replication protocol of one process, as a state machine.

Theory of operation
-------------------
Messages and the time come in; messages to send come out. Nothing else happens: no I/O, no clock, no thread. A server
and the simulation drive the same code through the same door:

* ``targets`` names the addresses to exchange with, ``due_at`` says when, and ``begin`` builds the request.
* ``receive`` answers a peer's request. ``complete`` takes the reply to a request of ours; ``failed`` notes that there
  was none.
* ``tick`` does what is due as time passes: expiry, trimming, markers, the end of joining, dropping what is lost.
* Clients' requests go to ``store``. What they need of peers is in ``loss`` (missing dependencies) and ``acks``.

``receive`` and ``complete`` are *conversations*: generators. Each resumption is one atomic step, to be made under the
lock; between two steps, other messages, requests and ticks may come in. A conversation pauses between chunks of
updates, so that a long message does not hold up clients. Send it the present time at each resumption; it returns its
reply.

    steps = replica.receive(message, now)
    next(steps)                              # step 1; StopIteration carries the reply
    steps.send(now)                          # step 2, and so on

**What an exchange carries.** Both sides send their clock and the updates that the other one lacks, read from the log
from the other's acknowledged clock on. An update of a third replica is relayed only if this replica applied it at least
one sync interval ago and the peer still lacks it, because until then its origin sends it; or if the peer asks for
everything (``want_all``). So an update reaches every replica over any connected path, and is sent about once where all
replicas can reach each other.

**Which messages count.** Replicas exchange messages whatever their state. A message with a time that is too far ahead
is rejected as a whole (time_limits.py). Any other message counts only if its sender is the present incarnation of its
address in our membership table. Otherwise it is answered with our table, from which its sender learns why; a sender
that is alive then sends its own table.

Other rules have modules of their own: who belongs (membership_table.py), who is reachable (liveness.py), who was never
reached (unreached.py), how many have met (met.py), what if two processes use one address (duplicates.py), what follows
from a change (view_changes.py), when a replica may serve (recovery.py), what is lost (loss.py), when to send
(progress.py, pacing.py), what may be forgotten (compaction.py).

Sources: anti-entropy and session guarantees as in Bayou, Petersen et al., SOSP 1997; delivery by vector clocks. The
form, a state machine behind one door, follows etcd's raft and h11.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

from replication.acks import Acks
from replication.compaction import Compaction
from replication.composer import MessageComposer
from replication.errors import BadMessage
from replication.event_log import EventLog
from replication.loss import LossDetector
from replication.membership import Membership
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest, State, Updates
from replication.pacing import Pacing
from replication.progress import PeerProgress, Peers, PeerState, Report, SnapshotOffer
from replication.recovery import Recovery
from replication.refusals import Refusal, describe_one
from replication.reserve import LogReserve
from replication.retired import RetiredEntries
from replication.seeds import Seeds
from replication.settings import ReplicationSettings
from replication.short_form import ShortForm
from replication.snapshots import SnapshotSender
from replication.time_limits import check_times
from replication.unreached import FailureKind
from replication.view_changes import RandomBits, ViewChanges, new_incarnation
from store.causal import CausalStore
from store.clock import Instant, address_of, replica_id, start_us_of
from store.errors import BadUpdate
from store.log import EMPTY_DELTA
from store.settings import StoreSettings

Result = TypeVar("Result")
Conversation = Generator[None, Instant, Result]
"""Each resumption is one atomic step; it is sent the present time. The return value is the result."""


class Outgoing(NamedTuple):
    """A request to send to the peer at ``to``. ``serial`` comes back with its outcome."""

    to: str
    serial: int
    message: Exchange | SnapshotRequest


class Replica:
    """One replica at ``address`` (host:port). Not thread-safe.

    ``seeds``: addresses to ask at the start. ``discovers``: whether lookups supply more seeds through ``discovered``.
    ``awaits_seed``: see ``Recovery``.
    Each public attribute holds the state of one rule; its module documents it.
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
        awaits_seed: bool = False,
    ) -> None:
        self.address = address
        self.settings = settings or ReplicationSettings()
        self.started_s = now.mono_s
        self.event_log = EventLog()
        self.pacing = Pacing(self.settings)
        asked = Seeds(address, seeds, discovers=discovers, now_s=now.mono_s)
        self.membership = Membership(address, self.settings, asked, now.mono_s)
        incarnation = new_incarnation(0, rng, now)
        self.store = CausalStore(replica_id(address, incarnation), store_settings)
        self.store.hybrid_clock.max_lead_us = round(self.settings.max_clock_lead_s * 1_000_000) // 2
        table = self.membership.table
        self.peers = Peers(table)
        self.recovery = Recovery(
            self.store, self.membership, self.peers, self.settings, now.mono_s, awaits_seed=awaits_seed
        )
        self.loss = LossDetector(self.store, self.membership, self.peers, self.event_log, now.mono_s)
        self.store.has_ended, self.store.is_settled = table.has_ended_for_good, self.loss.is_settled
        self.acks = Acks(self.store, table, self.peers, self.settings)
        self._view = ViewChanges(
            self.store,
            self.membership,
            self.peers,
            self.recovery,
            self.loss,
            self.event_log,
            rng,
            self.settings.max_clock_lead_s,
        )
        self._retired = RetiredEntries(self.store, table)
        self._compaction = Compaction(self.store, table, self.peers, self._retired, self.settings.sync_interval_s)
        self.snapshots = SnapshotSender(self.settings.max_snapshots, self.settings.snapshot_piece_bytes)
        self.reserve = LogReserve(self.store, table, self.peers, self.settings.max_reserve_bytes)
        self.short_form = ShortForm(self.store, table)
        self._composer = MessageComposer(
            self.store, self.membership, self._retired, self.loss, self.short_form, self.settings
        )
        self.membership.start(incarnation, start_us_of(incarnation))
        self.event_log.record("started", self.id, "", now)
        self._view.follow_table(now)
        self.tick(now)

    @property
    def id(self) -> str:
        """The replica id: address and incarnation. It changes if a higher incarnation of the address becomes known."""
        return self.store.replica_id

    @property
    def state(self) -> State:
        """``joining``, ``serving``, ``removed``, or ``leaving`` (at its own request)."""
        if self.membership.duplicate_check.is_lost or not self.membership.table.belongs(self.address):
            return "leaving" if self._view.is_leaving else "removed"
        return "joining" if self.recovery.joining else "serving"

    # -- requests of ours ------------------------------------------------------------------------------

    def targets(self, now: Instant) -> Sequence[str]:
        """Return the addresses to exchange with.

        * All other members, including those that are down. If every replica is removed, they still exchange updates;
          otherwise none of them could add another one back.
        * Seeds that have never answered; all seeds, while this replica is removed and reaches no member.
        * Peers whose snapshot may bring something, even removed ones: they may be the last that hold an update.
        * Removed replicas that have not been notified of their removal, and members that a merge has just dropped.
        * The own address, while a check for another process under it runs (duplicates.py).

        A removed replica goes on exchanging for as long as it lives: the member that has all its updates may die.
        """
        table, recovery, unanswered = self.membership.table, self.recovery, self.membership.seeds.unanswered
        others = table.others if table.members else table.left
        holders = [peer.address for peer in self.peers.all() if recovery.may_bring_more(peer)]
        to_notify = [address for address in table.left if self._has_to_notify(address, now)]
        to_notify += self.membership.dropped(now.mono_s)
        to_notify += self.membership.seeds_to_ask_again(now.mono_s)
        checks = self.membership.duplicate_check.is_running
        if table.members and not holders and not to_notify and not unanswered and not checks:
            return others
        targets = {*others, *unanswered, *holders, *to_notify} - {self.address}
        return sorted(targets | {self.address} if checks else targets)

    def _has_to_notify(self, address: str, now: Instant) -> bool:
        """Return whether the removed replica at ``address`` is reachable and has another membership table than ours."""
        peer = self.peers.find(address)
        if peer is None or not peer.acked.replica or peer.acked.membership_digest == self.membership.table.digest:
            return False
        replica = peer.acked.replica
        if self.membership.table.is_superseded(replica):
            return False
        return not self.membership.liveness.is_silent(replica, float("-inf"), now.mono_s)

    def due_at(self, address: str, now: Instant) -> float:
        """Return when the next request to ``address`` is due (monotonic seconds); infinity while one is in flight."""
        peer = self.peers.at(address)
        if peer.in_flight:
            return float("inf")
        exchange_due_s = peer.exchange_due_at(self.issued(), now.mono_s)
        if peer.state is PeerState.FAILED:
            return exchange_due_s
        return min(self.recovery.piece_due_at(peer, now.mono_s), exchange_due_s)

    def has_news_for(self, address: str) -> bool:
        """Return whether updates were issued here since the last exchange with ``address`` began."""
        return self.issued() > self.peers.at(address).acked.sent

    def issued(self) -> int:
        """Return how many updates this incarnation has issued."""
        return self.store.clock.get(self.store.replica_id, 0)

    def begin(self, address: str, now: Instant) -> Outgoing | None:
        """Return the request to send to ``address`` now, None if none is due."""
        if self.due_at(address, now) > now.mono_s:
            return None
        peer = self.peers.at(address)
        # Pieces of a snapshot take turns with exchanges that are due, so that neither delays the other for long.
        exchange_due = peer.exchange_due_at(self.issued(), now.mono_s) <= now.mono_s
        piece_due = self.recovery.piece_due_at(peer, now.mono_s) <= now.mono_s
        peer.piece_was_last = piece_due and not (exchange_due and peer.piece_was_last)
        peer.in_flight = self.peers.next_serial()
        peer.schedule.begun_s = now.mono_s
        if peer.piece_was_last:
            return Outgoing(address, peer.in_flight, self.recovery.begin_piece(peer, now.mono_s).request(self.id))
        return Outgoing(address, peer.in_flight, self._begin_exchange(peer, now))

    def _begin_exchange(self, peer: PeerProgress, now: Instant) -> Exchange:
        # An unknown peer may lack nothing or everything: ask first, send then.
        relay_before_s = now.mono_s - self.settings.sync_interval_s
        known = peer.acked.clock
        delta = self._composer.delta(peer, known, relay_before_s) if peer.acked.replica else EMPTY_DELTA
        want_all = peer.urgent or self.recovery.joining is not None
        message = self._composer.exchange(peer, self.state, delta, now, want_all=want_all)
        peer.urgent = peer.more = False
        peer.count_at_cut = peer.acked.update_count() if delta.more else None
        peer.acked.sent = self.issued()
        peer.acked.recent = {}
        schedule = peer.schedule
        schedule.paced_until_s = now.mono_s + self.pacing.interval_s(schedule.round_trip_s, now.mono_s)
        if now.mono_s >= schedule.next_sync_s:
            schedule.next_sync_s = now.mono_s + self.settings.sync_interval_s
        return message

    def complete(self, address: str, serial: int, reply: Exchange | SnapshotPiece, now: Instant) -> Conversation[None]:
        """Take the reply to request ``serial`` to ``address``. Raises BadMessage, DuplicateAddress.

        If it raises, call ``failed``: the request has brought nothing that counts.
        """
        peer = self.peers.find(address)
        if peer is None:
            # Lookups do not name that address any more, and the replica there has not told us its own address yet.
            return
        check_times(reply, now, self.settings.max_clock_lead_s)
        if isinstance(reply, SnapshotPiece):
            self._complete_piece(peer, serial, reply, now)
        elif address == self.address:
            self._complete_duplicate_check(peer, serial, reply, now)
        else:
            yield from self._complete_exchange(peer, serial, reply, now)

    def _complete_piece(self, peer: PeerProgress, serial: int, piece: SnapshotPiece, now: Instant) -> None:
        peer.end(serial)
        # The sender has clients to serve as well: leave it as much time as this piece took.
        rest_s = self.settings.piece_rest_times * (now.mono_s - peer.schedule.begun_s)
        peer.schedule.next_piece_s = now.mono_s + min(rest_s, self.settings.max_piece_rest_s)
        snapshot = self.recovery.receive_piece(peer, piece, now.mono_s)
        if snapshot is not None:
            self.store.join(snapshot, now)
            changed = "changed " if snapshot.since else ""
            self.event_log.record(
                "snapshot", peer.acked.replica, f"{len(snapshot.table)} {changed}keys taken over", now
            )
            peer.urgent = True
            self._view.finish_joining(now)

    def _complete_exchange(self, asked: PeerProgress, serial: int, reply: Exchange, now: Instant) -> Conversation[None]:
        """Take the reply from the peer that was asked; its sender may belong under another address (an alias)."""
        own_id, actual = self.id, address_of(reply.sender)
        reply = self._read(reply)
        is_reply = asked.in_flight == serial and asked.address == actual
        asked.hear_reply(serial, now.mono_s)
        if actual == self.address:
            self.membership.duplicate_check.suspect(reply.sender, self.id, now.mono_s)
        sender = self._accept(reply, now, is_reply=is_reply)
        # The reply has told us that this incarnation is superseded, and we have raised it: let the peer know at once.
        asked.urgent = asked.urgent or own_id != self.id
        if actual != asked.address:
            self._view.meet_alias(asked.address, actual, now)
        self.membership.answered(asked.address, reply.sender, now.mono_s)
        if sender is not None:
            applied, now = yield from self._apply(reply.updates, now)
            if sender.acked.replica == reply.sender:  # Otherwise a new incarnation has talked since.
                self._conclude(asked, sender, serial, reply, applied)
        asked.end(serial)
        if actual != self.address:
            self._note_acceptance(asked.address, reply, now)
        self._view.finish_joining(now)

    def _note_acceptance(self, address: str, reply: Exchange, now: Instant) -> None:
        """Note that the replica at ``address`` and this one exchange, and whether their wall clocks agree."""
        ahead_s = (reply.wall - now.wall_us) / 1e6
        is_serving = reply.state == "serving"
        if reply.wall and abs(ahead_s) > self.settings.max_clock_lead_s:
            self._note_refusal(address, Refusal("clock", is_serving, ahead_s), now)
            return
        refusals = self.recovery.refusals
        was_refused = refusals.accepted(address, now.mono_s, is_serving=is_serving, wall_us=reply.wall)
        if reply.wall and abs(ahead_s) <= self.settings.max_clock_lead_s / 2 and not refusals.has_clocks(now.mono_s):
            self.store.hybrid_clock.trust(now)
        if (earliest_us := refusals.earliest_wall_us(now.mono_s)) is not None:
            self.store.hybrid_clock.limit_jumps(earliest_us, now)
        if was_refused:
            self.event_log.record("accepted", address, "", now)

    def _note_refusal(self, address: str, refusal: Refusal, now: Instant) -> None:
        if self.recovery.refusals.refused(address, refusal, now.mono_s):
            self.event_log.record("refused", address, describe_one(refusal), now)

    def _complete_duplicate_check(self, own: PeerProgress, serial: int, reply: Exchange, now: Instant) -> None:
        """Take an answer from our own address; who sent it is all that counts (duplicates.py)."""
        own.hear_reply(serial, now.mono_s)
        if address_of(reply.sender) == self.address:
            self.membership.duplicate_check.answered(reply.sender, self.id, now.mono_s)
        own.end(serial)

    def _conclude(self, asked: PeerProgress, sender: PeerProgress, serial: int, reply: Exchange, applied: int) -> None:
        """Note what the reply says of its sender, once ``applied`` of its updates are applied."""
        acked = sender.acked
        acked.snapshot = SnapshotOffer.OFFER if reply.truncated else SnapshotOffer.NONE
        # Go on at once after a limit cut a message, but only if that brings either side forward: updates that all
        # wait for something else would be sent again and again.
        peer_advanced = sender.count_at_cut is not None and acked.update_count() > sender.count_at_cut
        sender.more = (reply.more and applied > 0) or peer_advanced
        clock = self._retired.whole_clock(reply)
        if clock is None:
            return
        if acked.report is None or acked.report.serial < serial:
            is_joining = reply.state == "joining"
            acked.report = Report(
                reply.sender, serial, reply.membership_digest, clock, reply.orphaned_pending, is_joining
            )
        self.recovery.note_answer(asked.address, sender, reply.sender, clock)

    def failed(
        self, address: str, serial: int, now: Instant, refusal: Refusal | None = None, failure: FailureKind = "silent"
    ) -> None:
        """Note that request ``serial`` to ``address`` brought no reply. The peer may have received it all the same.

        ``refusal``: set if a live replica there refuses this one, or is refused by it. ``failure``: otherwise, why.
        """
        peer = self.peers.find(address)
        if peer is None or peer.in_flight != serial:
            return
        self.recovery.stop_pull(address)
        peer.fail(self.id, now.mono_s)
        if address in self.membership.seeds.unanswered:
            self.membership.unreached.note_failure(address, failure)
        self.acks.expect_from_others(peer)
        if refusal is not None and address != self.address:
            self._note_refusal(address, refusal, now)
            self._view.correct_times(now)
            self.recovery.update_refusals(now.mono_s)

    # -- requests of peers -----------------------------------------------------------------------------

    def receive(self, message: Exchange | SnapshotRequest, now: Instant) -> Conversation[Exchange | SnapshotPiece]:
        """Take a peer's request and return the reply. Raises BadMessage."""
        check_times(message, now, self.settings.max_clock_lead_s)
        if isinstance(message, SnapshotRequest):
            return self._answer_snapshot(message, now)
        message = self._read(message)
        sender = self._accept(message, now)
        if sender is None:
            return self._composer.rejection(self.state, now)
        _, now = yield from self._apply(message.updates, now)
        return self._reply(sender, message, now)

    def _answer_snapshot(self, request: SnapshotRequest, now: Instant) -> SnapshotPiece:
        piece = self.snapshots.answer(request, self.store, now)
        if piece.snapshot:
            self.reserve.note_piece(request.sender, now.mono_s, first=not request.snapshot, last=piece.last)
        return piece

    def _read(self, message: Exchange) -> Exchange:
        """Return ``message`` with ids and clock entries in place of the short form."""
        peer = self.peers.find(address_of(message.sender))
        is_known = peer is not None and peer.acked.replica == message.sender
        return self.short_form.read(message, peer.acked if peer is not None and is_known else None)

    def _accept(self, message: Exchange, now: Instant, *, is_reply: bool = False) -> PeerProgress | None:
        """Take everything in a message but its updates; return its sender, None if the message does not count.

        ``is_reply``: the message answers the request in flight, from the address that was asked. See "Which messages
        count" in the module.
        """
        table, address = self.membership.table, address_of(message.sender)
        if address == self.address:
            self.membership.duplicate_check.suspect_sender(message.sender, self.id, now.mono_s)
            return None
        if message.clock.get(self.id, 0) > self.issued():
            raise BadMessage("the clock names updates of this replica that it never issued")
        self.membership.suspect_reported_duplicates(message, self.id, now.mono_s)
        if message.membership is not None:
            self._view.merge(message.membership, message.horizon, now)
        elif message.membership_digest == table.digest:
            self._view.note_equal_table()
        self.membership.met.observe(message.met)
        if table.is_superseded(message.sender):
            return None
        if not message.accepted:
            # Our message did not count there, because of what its table says of us. Send it our table, the first time
            # at once (a digest of 0 stands for a table that is unknown).
            peer = self.peers.at(address)
            peer.urgent = peer.urgent or peer.acked.membership_digest != 0
            peer.acked.membership_digest = 0
            return None
        if table.present_id(address) != message.sender:
            # A process that starts adds itself to its table, and sends the table to a peer whose digest differs.
            # Without that entry, the sender may be dead and this message delayed: a process that has started at that
            # address since may have a lower incarnation, and accepting this one would make us ignore it for ever.
            return None
        peer = self.peers.at(address)
        if peer.acked.replica != message.sender:
            self._follow_new_incarnation(peer, message.sender, now)
        self.store.hybrid_clock.observe(message.time, now)
        self.membership.hear(message, now.mono_s, is_reply=is_reply)
        acked = peer.acked
        acked.membership_digest = message.membership_digest
        acked.retired_digest = message.retired_digest
        acked.protocol = message.protocol
        acked.seen = message.seen
        acked.asked = self.short_form.asked(message)
        acked.is_joining = message.state == "joining"
        if is_reply and message.has_present_entries and message.changes is not None:
            acked.present, acked.present_revision = message.clock, message.changes.revision
        whole = self._retired.whole_clock(message)
        acked.is_complete = whole is not None
        if is_reply and whole is not None:
            acked.confirm(whole)
        else:
            acked.acknowledge(message.clock if whole is None else whole)
        if not table.belongs(address) or any(replica not in table.present for replica in message.heard):
            self.loss.update_possible_holders(now)
        return peer

    def _follow_new_incarnation(self, peer: PeerProgress, replica: str, now: Instant) -> None:
        if peer.acked.replica:
            self.snapshots.forget(peer.acked.replica)
            self.event_log.record("superseded", peer.acked.replica, f"{replica} talks", now)
        self.recovery.stop_pull(peer.address)
        peer.become(replica, now.mono_s)

    def _apply(self, updates: Updates, now: Instant) -> Conversation[tuple[int, Instant]]:
        """Apply a peer's updates in chunks, pausing in between; return how many were applied, and the time now.

        Known ones cost no pause. If applying a batch takes so long that its sender gives up, the sender sends it again:
        each attempt then has less to apply, so one of them is answered in time.
        """
        applied, size = 0, self.settings.chunk_updates
        clock = self.store.clock
        updates = [update for update in updates if clock.get(update.origin, 0) < update.counter]
        for start in range(0, len(updates), size):
            if start:
                # What is not applied yet may not count as lost meanwhile, although no pending queue holds it.
                with self.loss.holding(updates[start:]):
                    now = yield
            try:
                applied += self.store.receive(updates[start : start + size], now)
            except BadUpdate as exc:
                raise BadMessage(str(exc)) from exc
        return applied, now

    def _reply(self, peer: PeerProgress, request: Exchange, now: Instant) -> Exchange:
        acked = peer.acked
        if request.truncated:
            peer.urgent = True
            if acked.snapshot is SnapshotOffer.NONE:
                acked.snapshot = SnapshotOffer.HINT
        known: Mapping[str, int] = acked.clock
        if peer.in_flight and peer.state is not PeerState.FAILED and not request.want_all:
            # Skip updates that are already in flight to this peer. (If the last request failed, this one may fail too,
            # and the reply may be the only way to the peer.)
            known = {**known, self.id: max(known.get(self.id, 0), acked.sent)}
        relay_before_s = float("inf") if request.want_all else now.mono_s - self.settings.sync_interval_s
        delta = self._composer.delta(peer, known, relay_before_s)
        return self._composer.exchange(peer, self.state, delta, now, is_reply=True)

    # -- changes of membership -------------------------------------------------------------------------

    def add_replica_from_view(self, replica: str, now: Instant) -> bool:
        """Make the address ``replica`` belong (PUT /view); return False if it belongs already."""
        return self._view.add(replica, now)

    def remove_replica_from_view(self, replica: str, now: Instant) -> bool:
        """Make the address ``replica`` not belong (DELETE /view); return False if there is no such member or seed.

        The removal is recorded even then. Raises TableFull, and changes nothing, if there is no room for it.
        """
        return self._view.remove(replica, now)

    def leave(self, now: Instant) -> None:
        """Remove this replica for good: the process is about to end. ``acks.unreplicated`` says when it may.

        If the address is another process's, that one stays.
        """
        self._view.leave(now)
        self._view.follow_table(now)

    def discovered(self, addresses: Iterable[str], now: Instant) -> None:
        """Take in the result of a lookup: all addresses at which replicas are said to be (seeds.py).

        Call it with each lookup that found an address; a lookup that failed or found nothing proves nothing.
        """
        for address in self.membership.discovered(addresses, now.mono_s):
            if address not in self.membership.table.entries:
                self.peers.forget(address)
        self.recovery.note_lookup(self.membership.seeds.unanswered)
        self._view.finish_joining(now)

    # -- time ------------------------------------------------------------------------------------------

    def begin_exchanging(self, now: Instant) -> None:
        """Count the silence of peers from now on: a server may take seconds from its start to its first exchange."""
        self.recovery.restart_silence(now.mono_s)
        self.membership.seeds.restart(now.mono_s)

    def tick(self, now: Instant) -> None:
        """Do what is due. Call it often, several times a sync interval; it costs little if nothing is due."""
        self.store.expire(now)
        self._view.check_times(now)
        self.snapshots.expire(now.mono_s)
        self.recovery.stop_useless_pull()
        self.membership.update_discovery(now.mono_s)
        self.membership.duplicate_check.expire(now.mono_s)
        self.recovery.update_refusals(now.mono_s)
        self._view.forget_removed(now)
        self._view.finish_joining(now)
        self.loss.update_possible_holders(now)
        self._compaction.trim()
        self.reserve.update(now.mono_s)
        if self.state == "serving":
            self._compaction.issue_marker(now)
        self.loss.drop_unrecoverable_pending(now)
        self.loss.expire_queries(now.mono_s)
        self.event_log.observe(self.membership, self.store, now)
