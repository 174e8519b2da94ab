"""What exchanges showed, in numbers: how late updates become visible, how far clocks are apart, how large messages are.

Filled under the engine's lock, so it has to cost next to nothing: one update an exchange is looked at, the oldest
that it brought.
"""

from __future__ import annotations

from collections.abc import Sequence

from store.causal import CausalStore
from store.clock import Clock, Instant, address_of
from store.histogram import BYTES, Histogram
from store.versions import Update

MAX_ADDRESSES = 1024
"""Who talks is not always who belongs: what strangers can make this remember is bounded."""


class ExchangeMetrics:
    """Not thread-safe. Everything is by address, not by replica id: a restart goes on where it was."""

    def __init__(self) -> None:
        self.visibility_lag_s: dict[str, Histogram] = {}
        """Origin -> hybrid time at which an update of it was applied here, less the hybrid time of its issue."""
        self.drift_s: dict[str, float] = {}
        """Peer -> its hybrid time less this replica's, at its last message. Above 0: its clock ran ahead; else about
        the time that the message took, negative."""
        self.jumped_s = 0.0
        """By how much, in all, peers' clocks have pushed this replica's hybrid clock forward."""
        self.exchange_s = Histogram()
        """Round trips that this replica began."""
        self.message_bytes = {
            (role, direction): Histogram(BYTES) for role in ("asked", "answered") for direction in ("sent", "received")
        }

    def record_peer_time(self, sender: str, time_us: int, store: CausalStore, now: Instant) -> None:
        """Note the hybrid time that a message told; called before the message is taken in."""
        drift_s = (time_us - store.hybrid.read(now)) / 1e6
        if len(self.drift_s) < MAX_ADDRESSES or address_of(sender) in self.drift_s:
            self.drift_s[address_of(sender)] = drift_s
        if drift_s > 0:
            self.jumped_s += drift_s

    def record_visibility(self, update: Update | None, store: CausalStore, now: Instant) -> None:
        """Note how old an update was when it was applied, if it was; see ``first_unapplied``."""
        if update is None or store.clock.get(update.origin, 0) < update.counter:
            return
        histogram = self.visibility_lag_s.get(address_of(update.origin))
        if histogram is None:
            if len(self.visibility_lag_s) >= MAX_ADDRESSES:
                return
            histogram = self.visibility_lag_s[address_of(update.origin)] = Histogram()
        histogram.observe(max(0.0, (store.hybrid.read(now) - update.timestamp) / 1e6))

    def record_message_sizes(self, role: str, sent: int, received: int) -> None:
        """Note the sizes of a request and its reply. ``role``: ``asked`` or ``answered``."""
        self.message_bytes[role, "sent"].observe(sent)
        self.message_bytes[role, "received"].observe(received)

    def copy(self, addresses: frozenset[str]) -> ExchangeMetrics:
        """Return a copy, to be read while this one goes on; forget addresses other than these here as well."""
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
    """Return the first of ``updates`` that ``clock`` does not cover: the one that is longest on its way."""
    return next((update for update in updates if clock.get(update.origin, 0) < update.counter), None)
