"""Retired clock entries: the entries of a clock whose id is not the present incarnation of a member.

They change rarely, and there may be many of them where replicas have started often. So each message carries a digest of
the sender's retired entries, and the entries themselves only until the receiver has equal ones. Entries that both sides
share need not be looked up in the log either.
"""

from __future__ import annotations

from replication.membership_table import MembershipTable
from replication.messages import Exchange, digest_of
from replication.progress import Acknowledged
from store.causal import CausalStore
from store.clock import Clock


class RetiredEntries:
    """The retired entries of ``store``'s clock under ``table``, computed again only when one of the two has changed."""

    def __init__(self, store: CausalStore, table: MembershipTable) -> None:
        self._store = store
        self._table = table
        self._clock: Clock = {}
        self._digest = 0
        self._computed_for: tuple[int, int] | None = None

    @property
    def clock(self) -> Clock:
        """The retired entries; not to be changed."""
        self._update()
        return self._clock

    @property
    def digest(self) -> int:
        """Equal for equal entries; 0 if there are none."""
        self._update()
        return self._digest

    def whole_clock(self, message: Exchange) -> Clock | None:
        """Return the whole clock of a message's sender, or None if its retired entries are not known here.

        In the latter case the digests differ, so the sender's next message carries the entries. The same holds if the
        message lists changes of entries that are not known here (short_form.py).
        """
        if not message.has_present_entries:
            return None
        if message.retired is not None:
            return {**message.retired, **message.clock}
        if message.retired_digest != self.digest:
            return None
        return {**self._clock, **message.clock} if self._clock else message.clock

    def to_compare(self, acked: Acknowledged) -> Clock:
        """Return this replica's clock without the retired entries if the peer is known to have equal ones."""
        retired = self.clock
        if not retired or acked.retired_digest != self._digest:
            return self._store.clock
        return {id_: n for id_, n in self._store.clock.items() if id_ not in retired}

    def _update(self) -> None:
        key = (self._table.digest, self._store.retired_changes)
        if key == self._computed_for:
            return
        self._computed_for = key
        present = self._table.present
        self._clock = {id_: n for id_, n in self._store.clock.items() if id_ not in present}
        self._digest = digest_of(sorted(self._clock.items())) if self._clock else 0
