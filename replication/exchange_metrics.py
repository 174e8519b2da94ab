"""Metrics of exchanges: replication lag, clock drift, message sizes and round trip times.

The node records them under the engine's lock, so recording has to be cheap: of the updates in a message, only the first
one that is new here is measured. All tables are keyed by address, not by replica id, so that series continue after a
restart.
"""

from __future__ import annotations

from collections.abc import Sequence

from store.causal import CausalStore
from store.clock import Clock, Instant, address_of
from store.histogram import SIZE_BOUNDS_BYTES, Histogram
from store.versions import Update

MAX_ADDRESSES = 1024
"""Addresses in each table at most. A sender need not be a member, so strangers could otherwise grow the tables."""


class ExchangeMetrics:
    """Metrics of all exchanges of one replica. Not thread-safe."""

    def __init__(self) -> None:
        self.visibility_lag_s: dict[str, Histogram] = {}
        """Origin's address -> hybrid time at which its update was applied here, minus the update's hybrid time."""
        self.drift_s: dict[str, float] = {}
        """Peer's address -> hybrid time in its last message, minus this replica's at receipt. Positive: the peer's
        clock is ahead. Otherwise negative, by about the transmission time."""
        self.jumped_s = 0.0
        """Sum of all positive drifts: how far messages have pushed this replica's hybrid clock forward. Only grows."""
        self.exchange_s = Histogram()
        """Round trip times of exchanges that this replica began."""
        self.message_bytes = {
            (role, direction): Histogram(SIZE_BOUNDS_BYTES)
            for role in ("asked", "answered")
            for direction in ("sent", "received")
        }
        """(role of this replica in the exchange, direction) -> body sizes."""

    def record_peer_time(self, sender: str, ahead_us: int) -> None:
        """Record how far the hybrid time of a message from ``sender`` was ahead of this replica's, when it came."""
        drift_s = ahead_us / 1e6
        if len(self.drift_s) < MAX_ADDRESSES or address_of(sender) in self.drift_s:
            self.drift_s[address_of(sender)] = drift_s
        if drift_s > 0:
            self.jumped_s += drift_s

    def record_visibility(self, update: Update | None, store: CausalStore, now: Instant) -> None:
        """Record the age of ``update`` if it has been applied. ``update``: the result of ``first_unapplied``."""
        if update is None or store.clock.get(update.origin, 0) < update.counter:
            return
        histogram = self.visibility_lag_s.get(address_of(update.origin))
        if histogram is None:
            if len(self.visibility_lag_s) >= MAX_ADDRESSES:
                return
            histogram = self.visibility_lag_s[address_of(update.origin)] = Histogram()
        histogram.observe(max(0.0, (store.hybrid_clock.read(now) - update.timestamp) / 1e6))

    def record_message_sizes(self, role: str, sent: int, received: int) -> None:
        """Record the body sizes of one exchange. ``role``: ``asked`` if this replica began it, else ``answered``."""
        self.message_bytes[role, "sent"].observe(sent)
        self.message_bytes[role, "received"].observe(received)

    def copy(self, addresses: frozenset[str]) -> ExchangeMetrics:
        """Return a copy limited to ``addresses``, for reading without the lock.

        The original forgets other addresses too, so that removed members do not stay in the tables.
        """
        for by_address in (self.visibility_lag_s, self.drift_s):
            for address in by_address.keys() - addresses:
                del by_address[address]
        other = ExchangeMetrics()
        other.visibility_lag_s = {address: lag.copy() for address, lag in self.visibility_lag_s.items()}
        other.drift_s = dict(self.drift_s)
        other.jumped_s = self.jumped_s
        other.exchange_s = self.exchange_s.copy()
        other.message_bytes = {key: sizes.copy() for key, sizes in self.message_bytes.items()}
        return other


def first_unapplied(updates: Sequence[Update], clock: Clock) -> Update | None:
    """Return the first of ``updates`` that ``clock`` does not cover: the one that has been in flight longest."""
    return next((update for update in updates if clock.get(update.origin, 0) < update.counter), None)
