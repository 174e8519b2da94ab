"""Composes this replica's half of an exchange.

The membership table and the retired clock entries are left out if the peer has equal ones, and the liveness report if
the peer has had one lately. The updates are those that the peer lacks, as far as the limits of a message allow.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from replication.loss import LossDetector
from replication.membership import Membership
from replication.messages import PROTOCOL, Exchange, State
from replication.progress import PeerProgress
from replication.retired import RetiredEntries
from replication.settings import ReplicationSettings
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
        settings: ReplicationSettings,
    ) -> None:
        self._store = store
        self._membership = membership
        self._retired = retired
        self._loss = loss
        self._settings = settings
        self._heartbeat = 0

    def rejection(self, state: State, now: Instant) -> Exchange:
        """Return the reply to a message that does not count. Its sender finds the reason in our membership table."""
        return self._compose(None, state, EMPTY_DELTA, now, want_all=False)

    def exchange(
        self, peer: PeerProgress, state: State, delta: Delta, now: Instant, *, want_all: bool = False
    ) -> Exchange:
        """Return a message to ``peer`` that carries ``delta``. ``state``: of this replica."""
        return self._compose(peer, state, delta, now, want_all=want_all)

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
        self, peer: PeerProgress | None, state: State, delta: Delta, now: Instant, *, want_all: bool
    ) -> Exchange:
        self._heartbeat += 1
        store, table, retired = self._store, self._membership.table, self._retired
        send_table = send_retired = send_liveness = True
        if peer is not None:
            send_table = peer.acked.membership_digest != table.digest
            send_retired = peer.acked.retired_digest != retired.digest
            # Twice per sync interval is enough to follow who is reachable; more would only cost bytes.
            send_liveness = now.mono_s - peer.schedule.liveness_sent_s >= self._settings.sync_interval_s / 2
            if send_liveness:
                peer.schedule.liveness_sent_s = now.mono_s
        heard = self._membership.liveness_report(self._loss.possible_holders, now.mono_s) if send_liveness else {}
        return Exchange(
            sender=store.replica_id,
            heartbeat=self._heartbeat,
            protocol=PROTOCOL,
            time=store.hybrid_clock.read(now),
            membership_digest=table.digest,
            membership=dict(table.entries) if send_table else None,
            horizon=table.horizon if send_table else 0,
            clock={id_: n for id_ in table.present_ids if (n := store.clock.get(id_, 0))},
            retired_digest=retired.digest,
            retired=retired.clock if send_retired else None,
            state=state,
            heard=heard,
            orphaned_pending=self._loss.orphaned_pending(),
            batch=[msgspec.Raw(encoded) for encoded in delta.batch],
            want_all=want_all,
            truncated=delta.truncated,
            more=delta.more,
            accepted=peer is not None,
        )
