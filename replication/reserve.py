"""The log's reserve: more room in the log while the receiver of a snapshot catches up.

A snapshot takes time to send and to join. If members write meanwhile more than the log can hold, the log does not reach
back to the snapshot's clock when its receiver has it, and the receiver needs another one. So from the moment of a
snapshot on, its sender lets the log grow beyond its limit, until the receiver has caught up.

**Bound.** The reserve is at most the estimated size of the snapshot, because another snapshot would then cost less, and
at most ``max_reserve_bytes``, for all receivers together: they share one log.

**End.** A receiver has no reserve any more

* once it lacks no more than a quarter of what the log holds without reserve, so that it can do without; or
* if it has made no progress for ``RESERVE_KEPT_S``: it has taken no piece and acknowledged no update; or
* if its incarnation is superseded, or its address was removed.

Only members count as receivers, so their number is limited.
"""

from __future__ import annotations

from dataclasses import dataclass

from replication.membership_table import MembershipTable
from replication.progress import Peers
from store.causal import CausalStore
from store.clock import address_of

RESERVE_KEPT_S = 10.0
"""How long the log's reserve is kept for a receiver that makes no progress, seconds."""


@dataclass(slots=True)
class _Receiver:
    """A receiver that catches up. ``bytes``: estimated size of its snapshot. ``update_count``: how many updates it had
    at ``progress_s`` (monotonic seconds), when it last made progress. ``is_sent``: it has got the last piece.
    """

    bytes: int
    progress_s: float
    update_count: int = 0
    is_sent: bool = False


class LogReserve:
    """Extends the log for the receivers of this replica's snapshots. Not thread-safe.

    ``_receivers``: replica id -> the receiver.
    """

    def __init__(self, store: CausalStore, table: MembershipTable, peers: Peers, max_reserve_bytes: int) -> None:
        self._store = store
        self._table = table
        self._peers = peers
        self._max_reserve_bytes = max_reserve_bytes
        self._receivers: dict[str, _Receiver] = {}

    def note_piece(self, receiver: str, now_s: float, *, first: bool, last: bool) -> None:
        """Note that ``receiver`` gets a piece of a snapshot. Call it in the same step as the snapshot is made."""
        if self._table.present_id(address_of(receiver)) != receiver:
            return
        if first:
            self._receivers[receiver] = _Receiver(self._store.table.bytes, now_s)
        if (known := self._receivers.get(receiver)) is not None:
            known.progress_s = now_s
            known.is_sent = known.is_sent or last
        self._resize()

    def update(self, now_s: float) -> None:
        """End the reserve for the receivers that do not need it any more. Call it often."""
        if self._receivers:
            self._receivers = {id_: each for id_, each in self._receivers.items() if self._needs(id_, each, now_s)}
            self._resize()

    def _needs(self, receiver: str, known: _Receiver, now_s: float) -> bool:
        address = address_of(receiver)
        peer = self._peers.find(address)
        if not self._table.belongs(address) or self._table.present_id(address) != receiver:
            return False
        if peer is not None and peer.acked.replica == receiver:
            update_count = peer.acked.update_count()
            if update_count > known.update_count:
                known.update_count, known.progress_s = update_count, now_s
            if known.is_sent and self._store.log.estimate_above(peer.acked.clock) <= self._store.log.limit_bytes // 4:
                return False
        return now_s - known.progress_s <= RESERVE_KEPT_S

    def _resize(self) -> None:
        size = max((each.bytes for each in self._receivers.values()), default=0)
        self._store.log.set_reserve(min(size, self._max_reserve_bytes))
