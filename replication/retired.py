"""The rest of a clock: its entries of ids that are no present incarnation of a member.

They change rarely and may be many, where replicas started often. So each message has a digest of the sender's, and the
entries themselves only until the receiver has the same ones. What both have of them need not be looked for in the log
either.
"""

from __future__ import annotations

from replication.membership import Membership
from replication.messages import Exchange, digest_of
from replication.progress import PeerProgress
from store.causal import CausalStore
from store.clock import Clock


class RetiredEntries:
    """The rest of ``store``'s clock, as seen with ``view``."""

    def __init__(self, store: CausalStore, view: Membership) -> None:
        self._store = store
        self._view = view
        self._clock: Clock = {}
        self._digest = 0
        self._read_at: tuple[int, int] | None = None

    @property
    def clock(self) -> Clock:
        """The entries; not to be changed."""
        self._read()
        return self._clock

    @property
    def digest(self) -> int:
        """Of equal entries it is equal; 0 where there are none."""
        self._read()
        return self._digest

    def whole_clock(self, message: Exchange) -> Clock | None:
        """Return the whole clock of who sent ``message``; None where its rest is not known here (it comes next)."""
        if message.retired is not None:
            return {**message.retired, **message.clock}
        return {**self.clock, **message.clock} if message.retired_digest == self.digest else None

    def to_look_for(self, peer: PeerProgress) -> Clock:
        """Return the own clock without what ``peer`` is known to have as well, because its rest is the same."""
        rest = self.clock
        if not rest or peer.retired_digest != self._digest:
            return self._store.clock
        return {id_: n for id_, n in self._store.clock.items() if id_ not in rest}

    def _read(self) -> None:
        key = (self._view.digest, self._store.retired_changes)
        if key == self._read_at:
            return
        self._read_at = key
        present = self._view.present
        self._clock = {id_: n for id_, n in self._store.clock.items() if id_ not in present}
        self._digest = digest_of(sorted(self._clock.items())) if self._clock else 0
