"""The short form of an exchange: its size does not grow with the number of members.

A message says which updates its sender has (``clock``) and whom it has heard (``heard``). Written out, both name every
member, changed or not. With n members, each of n replicas sends n such messages per sync interval, so idle traffic
would grow with the cube of n. The short form leaves out what the receiver knows, and names replicas by position.

**Positions.** The position of a present incarnation is its index among the sorted ids of all present incarnations. It
is used only if the digest of the receiver's membership table, as it last sent it, equals the sender's; and it is
understood only if the digest in the message equals the receiver's. So both have the same table, and the same ids.

**Clocks.** Each replica numbers the states of its entries of present incarnations: the *revision* rises with every
change of one. A receiver keeps these entries exactly as the peer's last *reply* said, with their revision, and says in
each message which revision that is (``seen``). The peer then sends only the entries that have changed since
(``changes``). The receiver adds them to what it keeps. Acknowledgements, loss detection and joining need this clock to
be exact; these rules keep it so:

1. A message lists the changes since a revision that its receiver has named, never since one that was only sent. So no
   lost message leaves a hole.
2. The clock is *whole* if the receiver keeps the entries of the message's base or of a later revision. (Entries of one
   incarnation only rise, so changes that arrive late or twice do no harm.) Otherwise the changes count as a lower
   bound, like a clock whose retired entries are unknown; the receiver's next message names the revision that it has.
3. Only the reply to a request in flight is kept as a base. A request may come from somebody else (progress.py).
4. After a change of its table, a replica sends each peer all entries: what it sent before lacks an incarnation that has
   become present since.
5. A new incarnation, on either side, begins with nothing: see ``PeerProgress.become``.

A reply is based on the revision in its own request. So it brings a whole clock if the tables are equal; if they are
not, it has all entries anyway.

**Signs of life** are sent when they are asked for: see liveness.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar

from replication.membership_table import MembershipTable
from replication.messages import ClockChanges, Exchange
from replication.progress import Acknowledged, PeerProgress, PeerState
from store.causal import CausalStore
from store.clock import Clock, join

Value = TypeVar("Value")

FIRST_PROTOCOL = 2
"""The first version of the protocol that knows the short form."""


class ShortForm:
    """Writes and reads the short form for one replica. Not thread-safe.

    ``_revision``: of the present state of this replica's entries. ``_first_revision``: of the first state under the
    present membership table; earlier ones are of other entries. ``_entries``: the entries in that state. ``_changed``:
    id -> revision of its last change, the latest change last.
    """

    def __init__(self, store: CausalStore, table: MembershipTable) -> None:
        self._store = store
        self._table = table
        self._revision = 0
        self._first_revision = 0
        self._entries: Clock = {}
        self._changed: dict[str, int] = {}
        self._positions: dict[str, int] = {}
        self._digest: int | None = None
        self._clock_changes = 0
        """``_entries`` were computed for this digest of the table and this number of changes of the clock."""

    def state(self) -> tuple[int, Clock]:
        """Return the present revision, and this replica's entries of present incarnations; read only."""
        self._update()
        return self._revision, self._entries

    # -- writing ---------------------------------------------------------------------------------------

    def clock(self, acked: Acknowledged) -> tuple[Clock, ClockChanges]:
        """Return the fields ``clock`` and ``changes`` of a message to the peer that has sent ``acked``."""
        self._update()
        if not self.knows_positions(acked) or not self._first_revision <= acked.seen <= self._revision:
            return dict(self._entries), ClockChanges(self._revision)
        counters: dict[int, int] = {}
        for id_, revision in reversed(self._changed.items()):
            if revision <= acked.seen:
                break
            counters[self._positions[id_]] = self._entries[id_]
        return {}, ClockChanges(self._revision, acked.seen, counters)

    def knows_positions(self, acked: Acknowledged) -> bool:
        """Return whether the peer that has sent ``acked`` understands positions."""
        return acked.protocol >= FIRST_PROTOCOL and acked.membership_digest == self._table.digest

    def asks(self, peer: PeerProgress) -> bool:
        """Return whether ``peer``, which understands positions, asks for the signs of life that it needs.

        It does not if it joins, and what it asks may not arrive here if it does not answer.
        """
        return peer.state is not PeerState.FAILED and not peer.acked.is_joining

    def positions(self, ids: Iterable[str]) -> list[int]:
        """Return the positions of ``ids``, which are ids of present incarnations."""
        self._update()
        return [self._positions[id_] for id_ in ids]

    def by_position(self, values: Mapping[str, Value]) -> dict[int, Value]:
        """Return ``values`` by position. Ids that are not present incarnations any more are left out."""
        self._update()
        return {self._positions[id_]: value for id_, value in values.items() if id_ in self._positions}

    # -- reading ---------------------------------------------------------------------------------------

    def read(self, message: Exchange, acked: Acknowledged | None) -> Exchange:
        """Return ``message`` with ids instead of positions, and with all clock entries if they are known here.

        ``acked``: what its sender has sent so far, None if it has sent nothing. If the entries are not known,
        ``changes`` keeps its base.
        """
        changes = message.changes
        if (changes is None or not changes.base) and not message.contacts:
            return message
        clock, heard = message.clock, message.heard
        if changes is not None and changes.base:
            clock = self._named(message, changes.counters)
            if acked is not None and changes.base <= acked.present_revision and self._is_understood(message):
                clock = join(acked.present, clock) if clock else acked.present
                changes = ClockChanges(changes.revision)
        if message.contacts:
            heard = {**heard, **self._named(message, message.contacts)}
        return message.with_names(clock, heard, changes)

    def asked(self, message: Exchange) -> frozenset[str]:
        """Return the ids that ``message`` asks about."""
        if not message.unheard or not self._is_understood(message):
            return frozenset()
        ids = self._table.present_ids
        return frozenset(ids[position] for position in message.unheard if position < len(ids))

    def _is_understood(self, message: Exchange) -> bool:
        return message.membership_digest == self._table.digest

    def _named(self, message: Exchange, values: Mapping[int, Value]) -> dict[str, Value]:
        if not values or not self._is_understood(message):
            return {}
        ids = self._table.present_ids
        return {ids[position]: value for position, value in values.items() if position < len(ids)}

    # -- the states of the own clock -------------------------------------------------------------------

    def _update(self) -> None:
        digest, count = self._table.digest, self._store.clock_changes
        if count == self._clock_changes and digest == self._digest:
            return
        self._clock_changes = count
        clock, ids = self._store.clock, self._table.present_ids
        if digest != self._digest:
            self._digest = digest
            self._revision += 1
            self._first_revision = self._revision
            self._positions = {id_: position for position, id_ in enumerate(ids)}
            self._entries = {id_: n for id_ in ids if (n := clock.get(id_, 0))}
            self._changed = {}
            return
        entries = self._entries
        changed = [id_ for id_ in ids if clock.get(id_, 0) != entries.get(id_, 0)]
        if changed:
            self._revision += 1
            for id_ in changed:
                entries[id_] = clock[id_]
                self._changed.pop(id_, None)
                self._changed[id_] = self._revision
