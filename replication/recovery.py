"""Recovery: when a replica that has missed updates may serve clients, and how it pulls a snapshot.

**Joining.** A replica that starts empty, or that is added back after its removal, asks every seed and every member that
their answers name. It serves once it has everything that each replica had in its first answer. It does not wait for

* a replica that has fallen silent since, or whose incarnation is superseded;
* a replica that has not answered within ``silent_after_s`` of being asked first. If nobody answers, it serves alone.

There is one exception. If other replicas have heard of a replica that does not answer us, it may only be slow: it gets
``UNANSWERED_TIMES`` as long. (Or the path to it is cut, or its protocol version is too far from ours. Its updates then
arrive through the others.)

Replicas that start at the same time answer each other too, with empty clocks, so none of them waits for ever.

While live peers refuse it (refusals.py), or too few members have met (met.py), it does not serve either. When that is
over, it asks everybody anew, so that they have their full time to answer.

A replica that has a file to import (``KV_SEED_FILE``) goes on joining until the shell has imported it, or has seen that
the replica does not start alone.

**The gate.** ``store.not_serving_reason`` says why clients are not served: the replica is removed, or it is joining.

**Readiness.** A replica is ready if it serves clients and its clock agrees with those of its peers (refusals.py).

**Pulling a snapshot.** If a peer's log does not reach back to us, that peer offers a snapshot in its reply. We pull one
snapshot at a time, piece by piece, and join it in one step. Of several in a row, each one after the first is partial,
and pauses follow after the first few (snapshots.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from replication.errors import BadMessage
from replication.membership import Membership
from replication.messages import SnapshotPiece
from replication.progress import PeerProgress, Peers, PeerState, SnapshotOffer
from replication.refusals import Refusals
from replication.settings import ReplicationSettings
from replication.snapshots import SnapshotPauses, SnapshotPull
from replication.unreached import Unreached
from store.causal import CausalStore
from store.clock import Clock, Instant, covers
from store.snapshot import Snapshot
from store.values import check_state

CATCHING_UP = "Replica is catching up"
NOT_IN_VIEW = "Replica is not in the view"
IMPORTING = "Replica imports KV_SEED_FILE"

STUCK = (
    "This replica holds updates that are stamped {ahead_s:.0f} s ahead of its clock, because the clock was wrong when "
    "they were written. Other replicas reject them until then. Save what is needed of them, and start the replica again"
)

UNANSWERED_TIMES = 3
"""Timeout multiplier for peers that others can reach and we cannot."""


@dataclass(frozen=True, slots=True)
class FirstAnswer:
    """The incarnation that answered, and its clock at its first answer."""

    replica: str
    clock: Clock


@dataclass(slots=True)
class Joining:
    """What a joining replica has asked and heard. Times are monotonic seconds.

    ``started_s``: when it began to ask. ``asked_anew_s``: when the last refusal that was in the way
    ended. ``asked_s``: address -> when it was first asked. ``answers``: address asked ->
    the first answer of the incarnation there.
    """

    started_s: float
    asked_anew_s: float = float("-inf")
    asked_s: dict[str, float] = field(default_factory=dict)
    answers: dict[str, FirstAnswer] = field(default_factory=dict)

    def ask(self, addresses: Iterable[str], now_s: float) -> None:
        """Note which addresses are asked; lookups and other replicas' answers name some of them late."""
        for address in addresses:
            self.asked_s.setdefault(address, now_s)

    def forget_all_but(self, addresses: Collection[str]) -> None:
        """Forget when other addresses were asked: lookups may name ever new ones while members are missing."""
        self.asked_s = {address: at_s for address, at_s in self.asked_s.items() if address in addresses}

    def ask_anew(self, now_s: float) -> None:
        """Give every address its full time to answer from now on. Answers that are there still count."""
        self.started_s = self.asked_anew_s = now_s
        self.asked_s.clear()

    def note_answer(self, address: str, replica: str, clock: Clock) -> None:
        """Keep ``clock`` if it is the first exact clock from the incarnation ``replica``, asked at ``address``."""
        known = self.answers.get(address)
        if known is None or known.replica != replica:
            self.answers[address] = FirstAnswer(replica, clock)

    def is_done(self, addresses: Iterable[str], clock: Clock, membership: Membership, now_s: float) -> bool:
        """Return whether the replica, whose clock is ``clock``, waits for none of ``addresses`` any more."""
        return not any(self._waits_for(address, clock, membership, now_s) for address in addresses)

    def _waits_for(self, address: str, clock: Clock, membership: Membership, now_s: float) -> bool:
        answer = self.answers.get(address)
        if answer is not None and membership.table.is_superseded(answer.replica):
            # It has started again and is empty: what it had then comes from others, or is lost.
            return False
        replica = answer.replica if answer is not None else membership.table.present_id(address)
        asked_s = max(self.started_s, self.asked_s.get(address, self.started_s))
        if membership.liveness.is_silent(replica or "", asked_s, now_s):
            return False
        if answer is None:
            return now_s - asked_s < UNANSWERED_TIMES * membership.silent_after_s
        return not covers(clock, answer.clock)


class Recovery:
    """Joining, the gate and the snapshot being pulled, of one replica. Not thread-safe.

    ``refusals``: by live peers. ``refused_reason``: why this replica must not be ready because of them; empty if it
    may. ``stuck_ahead_s``: how far updates here are stamped ahead of the wall clock, so that peers reject them; 0 if
    none is.
    ``joining``: None while the replica has caught up. ``awaits_seed``: whether a file is to be imported before this
    replica serves; the shell clears it. ``is_caught_up``: while joining, whether nothing else is in the way.
    ``pull``: the snapshot being pulled, None if there is none; the peer at ``pull.address`` is the only one in the
    state ``PULLING``. ``taken``: how many snapshots it has pulled up to the last piece. ``pauses``: when it may begin
    to pull the next one.
    """

    def __init__(
        self,
        store: CausalStore,
        membership: Membership,
        peers: Peers,
        settings: ReplicationSettings,
        now_s: float,
        *,
        awaits_seed: bool = False,
    ) -> None:
        self.joining: Joining | None = Joining(now_s)
        self.pull: SnapshotPull | None = None
        self.pauses = SnapshotPauses(settings)
        self.taken = 0
        self.awaits_seed = awaits_seed
        self.is_caught_up = False
        self.refusals = Refusals(settings.silent_after_s)
        self.refused_reason = ""
        self.stuck_ahead_s = 0.0
        self._waited_for_members = False
        self._store = store
        self._membership = membership
        self._peers = peers
        self._settings = settings

    # -- joining and the gate --------------------------------------------------------------------------

    def restart_silence(self, now_s: float) -> None:
        """Count the silence of the asked addresses from now on; see ``Replica.begin_exchanging``."""
        if self.joining is not None:
            self.joining.started_s = now_s

    def note_answer(self, address: str, peer: PeerProgress, replica: str, clock: Clock) -> None:
        """Note the exact clock of ``replica``, which was asked at ``address`` and belongs at ``peer.address``."""
        if self.joining is not None:
            self.joining.note_answer(address, replica, clock)
            self.joining.note_answer(peer.address, replica, clock)

    def note_lookup(self, unanswered: dict[str, float]) -> None:
        """Give the seeds in ``unanswered`` (address -> since when they are asked) their full time to answer.

        A new replica may answer at an address that was asked before.
        """
        if self.joining is not None:
            self.joining.asked_s.update(unanswered)
            self.joining.forget_all_but({*unanswered, *self.joining.answers, *self._membership.table.others})

    def update_gate(self, now: Instant) -> bool:
        """Open or close the gate; return True if the replica was removed before and belongs again.

        Such a replica has to catch up like one that starts: the members have trimmed their logs without regard to it.
        """
        store, membership = self._store, self._membership
        if membership.duplicate_check.is_lost or not membership.table.belongs(membership.address):
            store.not_serving_reason = NOT_IN_VIEW
            return False
        was_removed = store.not_serving_reason == NOT_IN_VIEW
        if was_removed:
            self.joining = Joining(now.mono_s)
            self.is_caught_up = False
        waits_for = IMPORTING if self.awaits_seed and self.is_caught_up else CATCHING_UP
        store.not_serving_reason = waits_for if self.joining else None
        return was_removed

    @property
    def not_ready_reason(self) -> str:
        """Why this replica is not ready; empty if it is."""
        reason = self._store.not_serving_reason
        if reason == NOT_IN_VIEW:
            return reason
        if self.refused_reason and self.stuck_ahead_s:
            return f"{self.refused_reason}. {STUCK.format(ahead_s=self.stuck_ahead_s)}"
        return self.refused_reason or self.waiting_reason or reason or ""

    @property
    def waiting_reason(self) -> str:
        """Which members this replica has to meet before it serves; empty if it has met enough."""
        return self._membership.met.reason if self.joining is not None else ""

    def update_refusals(self, now_s: float) -> None:
        """Recompute ``refused_reason``; called after each outcome of a request, and as time passes."""
        membership, refusals = self._membership, self.refusals
        asked = {*membership.seeds.unanswered, *membership.table.others} - membership.own_names()
        refusals.follow(sorted(asked), now_s)
        if self.joining is None:
            self.refused_reason = refusals.serving_reason(now_s)
            return
        was_refused = bool(self.refused_reason)
        self.refused_reason = refusals.joining_reason(now_s)
        if was_refused and not self.refused_reason:
            # Some peers may not have accepted this replica yet, and none of them has had time to tell its clock.
            self.joining.ask_anew(now_s)

    def is_alone(self, now_s: float) -> bool:
        """Return whether this replica has never met another one, and has nothing of another one.

        A replica that this one has met, and that is silent now, may have data.
        """
        membership = self._membership
        return membership.met.most == 1 and not membership.reaches_others(now_s) and not self._store.clock

    def unreached(self, now_s: float) -> list[Unreached]:
        """Return the addresses of ``VIEW`` at which no replica has ever answered this one, and why (unreached.py)."""
        standings = self.refusals.live(now_s)
        refusals = {address: standing.refusal for address, standing in standings.items() if standing.refusal}
        return self._membership.unreached.all(self._membership.missed_seeds(), refusals, now_s)

    def finish_joining(self, now: Instant) -> bool:
        """End the joining if the replica has caught up; return whether it just has."""
        if self.joining is None or not self._has_caught_up(self.joining, now):
            return False
        self.is_caught_up = True
        if not self.awaits_seed:
            self.joining = None
        self.update_gate(now)
        return self.joining is None

    def _has_caught_up(self, joining: Joining, now: Instant) -> bool:
        """Return whether a joining replica waits for no other one any more."""
        membership = self._membership
        self.update_refusals(now.mono_s)
        if self._waits_for_members(joining, now.mono_s):
            return False
        may_accept_yet = now.mono_s - joining.asked_anew_s < membership.silent_after_s
        if self.refused_reason or (may_accept_yet and self.refusals.live(now.mono_s)):
            return False
        if membership.undiscovered and not membership.liveness.is_silent("", joining.started_s, now.mono_s):
            return False
        asked = {*membership.seeds.unanswered, *joining.answers, *membership.table.others} - membership.own_names()
        joining.ask(asked, now.mono_s)
        return joining.is_done(sorted(asked), self._store.clock, membership, now.mono_s)

    def _waits_for_members(self, joining: Joining, now_s: float) -> bool:
        """Return whether too few members have met. When enough have, ask everybody anew."""
        waits = bool(self.waiting_reason)
        if self._waited_for_members and not waits:
            # The time to answer of those that were asked in vain is over. Now they may be reachable.
            joining.ask_anew(now_s)
        self._waited_for_members = waits
        return waits

    # -- pulling a snapshot ----------------------------------------------------------------------------

    def wants_piece(self, peer: PeerProgress) -> bool:
        """Return whether to request a piece of a snapshot from ``peer``: one snapshot is pulled at a time.

        A removed replica pulls none while there are members. No client reads from it, and since members trim their
        logs without regard to it, it would pull one snapshot after another.
        """
        if self.pull is None and peer.acked.snapshot is not SnapshotOffer.OFFER:  # The common case.
            return False
        table = self._membership.table
        if not table.belongs(self._membership.address) and table.members:
            return False
        if self.pull is not None:
            return self.pull.address == peer.address
        return not covers(self._store.clock, peer.acked.clock)

    def piece_due_at(self, peer: PeerProgress, now_s: float) -> float:
        """Return when to request the next piece from ``peer`` (monotonic seconds); infinity if none is wanted."""
        if not self.wants_piece(peer):
            return float("inf")
        if self.pull is None:
            return max(now_s, peer.schedule.next_piece_s, self.pauses.until_s)
        return max(now_s, peer.schedule.next_piece_s)

    def may_bring_more(self, peer: PeerProgress) -> bool:
        """Return whether a snapshot of ``peer`` may bring something that this replica lacks."""
        is_pulled = self.pull is not None and self.pull.address == peer.address
        if peer.acked.snapshot is SnapshotOffer.NONE and not is_pulled:
            return False
        return not covers(self._store.clock, peer.acked.clock)

    def begin_piece(self, peer: PeerProgress, now_s: float) -> SnapshotPull:
        """Return the pull whose next piece to request from ``peer``; start one if none runs."""
        if self.pull is None:
            self.pull = SnapshotPull(peer.address, dict(self._store.clock), begun_s=now_s)
        peer.state = PeerState.PULLING
        return self.pull

    def receive_piece(self, peer: PeerProgress, piece: SnapshotPiece, now_s: float) -> Snapshot | None:
        """Stage a piece from ``peer``; return the snapshot if it was the last one. Raises BadMessage."""
        pull = self.pull
        if pull is None or pull.address != peer.address:
            return None  # The pull was given up while the piece was in flight.
        if not pull.fits(piece):
            self.stop_pull()
            raise BadMessage("the snapshot assumes updates that this replica does not have")
        try:
            for _, versions in piece.items:
                for version in versions:
                    check_state(version.value)
        except ValueError as exc:
            self.stop_pull()
            raise BadMessage(f"the snapshot has {exc}") from None
        if self._membership.table.is_superseded(piece.sender) or not pull.stage(piece):
            # The peer has restarted, has too many receivers, or has given the transfer up: wait for its next offer. (A
            # late piece of a superseded sender would bring updates that may count as lost: see loss.py, rule 2.)
            self.stop_pull()
            peer.acked.snapshot = SnapshotOffer.NONE
            return None
        pull.last_s = now_s
        if not piece.last:
            return None
        snapshot = pull.snapshot()
        self.stop_pull()
        for other in self._peers.all():
            # They were offered to this replica as it was before. A peer that still has more will offer again.
            other.acked.snapshot = SnapshotOffer.NONE
        own_id = self._store.replica_id
        if snapshot.clock.get(own_id, 0) > self._store.clock.get(own_id, 0):
            raise BadMessage("the snapshot names updates of this replica that it never issued")
        self.taken += 1
        return snapshot

    def stop_pull(self, address: str | None = None) -> None:
        """Give up the pull, or finish it; with ``address``, only if it is the pull from there."""
        if self.pull is None or (address is not None and self.pull.address != address):
            return
        peer = self._peers.at(self.pull.address)
        if peer.state is PeerState.PULLING:
            peer.state = PeerState.EXCHANGING
        if self.pull.first is not None:  # Otherwise the sender has made none.
            self.pauses.note(self.pull.begun_s, self.pull.last_s)
        self.pull = None

    def stop_useless_pull(self) -> None:
        """Give up the pull if its sender has nothing more that this replica lacks.

        It came in other ways. If that sender is removed besides, nobody would exchange with it any more, so the pull
        would never end and no other one could begin.
        """
        if self.pull is not None and not self.may_bring_more(self._peers.at(self.pull.address)):
            self.stop_pull()
