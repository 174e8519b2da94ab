"""Composes this replica's half of an exchange.

The membership table and the retired clock entries are left out if the peer has equal ones. A message has what the peer
does not know yet of the clock, and what it asks for of the liveness report (short_form.py). The updates are those that
the peer lacks, as far as the limits of a message allow.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from replication.loss import LossDetector
from replication.membership import Membership
from replication.messages import PROTOCOL, Exchange, State
from replication.progress import Acknowledged, PeerProgress
from replication.retired import RetiredEntries
from replication.settings import ReplicationSettings
from replication.short_form import ShortForm
from store.causal import CausalStore
from store.clock import Instant
from store.log import EMPTY_DELTA, Delta


class MessageComposer:
    """Composes exchanges. Not thread-safe. Every message raises the heartbeat by one."""

    def __init__(
        self,
        store: CausalStore,
        membership: Membership,
        retired: RetiredEntries,
        loss: LossDetector,
        short_form: ShortForm,
        settings: ReplicationSettings,
    ) -> None:
        self._store = store
        self._membership = membership
        self._retired = retired
        self._loss = loss
        self._short = short_form
        self._settings = settings
        self._heartbeat = 0

    def rejection(self, state: State, now: Instant) -> Exchange:
        """Return the reply to a message that does not count. Its sender finds the reason in our membership table."""
        return self._compose(None, state, EMPTY_DELTA, now, want_all=False, is_reply=True)

    def exchange(
        self,
        peer: PeerProgress,
        state: State,
        delta: Delta,
        now: Instant,
        *,
        want_all: bool = False,
        is_reply: bool = False,
    ) -> Exchange:
        """Return a message to ``peer`` that carries ``delta``. ``state``: of this replica."""
        return self._compose(peer, state, delta, now, want_all=want_all, is_reply=is_reply)

    def delta(self, peer: PeerProgress, known: Mapping[str, int], relay_before_s: float) -> Delta:
        """Return the updates that ``peer`` lacks.

        ``known``: the clock that the peer is assumed to have. ``relay_before_s``: updates of other origins are included
        if they were applied here before this time (monotonic seconds).
        """
        return self._store.log.delta(
            known,
            self._retired.to_compare(peer.acked),
            own=self._store.replica_id,
            relay_before_s=relay_before_s,
            limit=self._settings.batch_updates,
            limit_bytes=self._settings.batch_bytes,
        )

    def _compose(
        self, peer: PeerProgress | None, state: State, delta: Delta, now: Instant, *, want_all: bool, is_reply: bool
    ) -> Exchange:
        self._heartbeat += 1
        store, table, retired = self._store, self._membership.table, self._retired
        acked = Acknowledged() if peer is None else peer.acked
        send_table = peer is None or acked.membership_digest != table.digest
        send_retired = peer is None or acked.retired_digest != retired.digest
        clock, changes = self._short.clock(acked)
        return Exchange(
            sender=store.replica_id,
            heartbeat=self._heartbeat,
            protocol=PROTOCOL,
            time=store.hybrid_clock.read(now),
            membership_digest=table.digest,
            membership=dict(table.entries) if send_table else None,
            horizon=table.horizon if send_table else 0,
            met=self._membership.met.most if send_table or acked.is_joining else 0,
            clock=clock,
            changes=changes,
            seen=acked.present_revision,
            retired_digest=retired.digest,
            retired=retired.clock if send_retired else None,
            state=state,
            orphaned_pending=self._loss.orphaned_pending(),
            batch=[msgspec.Raw(encoded) for encoded in delta.batch],
            want_all=want_all,
            truncated=delta.truncated,
            more=delta.more,
            accepted=peer is not None,
            wall=self._wall(peer, now) if is_reply else 0,
            **self._liveness(peer, now.mono_s),
        )

    def _liveness(self, peer: PeerProgress | None, now_s: float) -> dict[str, Any]:
        """Return the fields that report signs of life to ``peer``, and ask it for them."""
        membership, holders = self._membership, self._loss.possible_holders
        if peer is None:
            return {"heard": membership.liveness_report(holders, now_s)}
        fields: dict[str, Any] = {}
        short, acked = self._short, peer.acked
        knows_positions = short.knows_positions(acked)
        only_asked = knows_positions and short.asks(peer)
        # Twice per sync interval is enough to follow who is reachable; more would only cost bytes.
        if (holders or not only_asked) and (
            now_s - peer.schedule.liveness_sent_s >= self._settings.sync_interval_s / 2
        ):
            peer.schedule.liveness_sent_s = now_s
            fields["heard"] = membership.liveness_report(holders, now_s, members=not only_asked)
        if only_asked and acked.asked:
            fields["contacts"] = short.by_position(membership.recent_contacts(acked.asked, now_s))
            acked.asked = frozenset()
        if knows_positions and (unheard := membership.unheard(now_s)):
            fields["unheard"] = short.positions(unheard)
        return fields

    def _wall(self, peer: PeerProgress | None, now: Instant) -> int:
        """Return the wall clock to state in a reply to ``peer``: twice per sync interval; 0 leaves it out."""
        if peer is None:
            return max(0, now.wall_us)
        if now.mono_s - peer.schedule.wall_sent_s < self._settings.sync_interval_s / 2:
            return 0
        peer.schedule.wall_sent_s = now.mono_s
        return max(0, now.wall_us)
