"""The membership table: which addresses belong to the cluster, and which incarnation of each address is present.

The table is a replicated map from address to entry (incarnation, stamp, belongs), with a *horizon*. These events write
an entry:

* a process starts, or takes a higher incarnation: its own address, the new incarnation, belonging; the stamp is the
  start time in the incarnation;
* DELETE /view: the known incarnation, 0 if none is known, not belonging;
* a process ends by itself: its own address and incarnation, not belonging, with a mark in the stamp (``LEAVE_MARK``);
* PUT /view: the known incarnation, 0 if none is known, belonging;
* an address turns out to be an alias: the alias is removed, and the address that it stands for is added.

**Two values for each address.** Of two entries for one address, every replica keeps the higher incarnation, and,
independently of it, the later change (stamp, belongs). So a removal covers every incarnation that started before it,
known or not: a process that comes back after it merges into an entry that does not belong. The removal of a process
that ended by itself covers only that process and those before it. The next one at its address may start with a wall
clock that is behind the stamp; it returns as soon as it learns of the removal (view_changes.py).

**The horizon.** Addresses come and go without limit, so removed entries are forgotten, the oldest first. The horizon is
the latest stamp that was forgotten anywhere. An address without an entry counts as removed at the horizon. So an entry
that only one of two tables has is kept if its change is later than the horizon of the other table. Otherwise the other
one has forgotten a later removal of the address, or counts as if it had.

All three values only rise, and a merge takes their maximum: incarnation and change for each address, and the horizon.
Replicas that exchange messages therefore end with equal tables, in whatever order the changes arrive. (Forgetting is a
change like others: it raises what an address counts as, from its removal to the horizon. It also forgets the
incarnation, which is needed only while the address has an entry.)

An incarnation is *superseded* when the table holds a higher incarnation for its address. The *present* incarnation of
an address is the one in the table. A member that is down still belongs. Whether an incarnation has *ended* follows from
the table, too: see ``has_ended``.

Sources: last-writer-wins register, Johnson and Thomas, RFC 677 (1975); state-based replicated data types, Shapiro et
al., SSS 2011.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from replication.errors import TableFull
from replication.messages import LEAVE_MARK, MembershipEntry, digest_of, unmarked
from store.clock import address_of, incarnation_of, replica_id, start_us_of

Entries = dict[str, MembershipEntry]
Change = tuple[MembershipEntry | None, MembershipEntry | None]
"""The entry of an address before a merge and after it; None for no entry."""


class MembershipTable:
    """The membership table of the replica at ``address``, with at most ``max_entries`` addresses. Not thread-safe.

    If there are more, it forgets the oldest removals beyond ``kept_removed``, and further ones only if it has to.

    ``entries``: address -> entry; read only for others. ``horizon``: hybrid time in microseconds, 0 if nothing was
    forgotten yet.
    The other public attributes are derived from these two after every change:
    ``digest``: equal for equal tables. ``members``: the addresses that belong, sorted. ``others``: ``members`` without
    this replica. ``left``: the addresses that do not belong, sorted. ``present``: ids of the present incarnations of
    all members; ``present_ids``: the same ids, sorted. ``removed_ids``: removed address -> id of its known incarnation.
    """

    def __init__(self, address: str, max_entries: int, kept_removed: int) -> None:
        self.address = address
        self.entries: Entries = {}
        self.horizon = 0
        self._max_entries = max_entries
        self._kept_removed = kept_removed
        self._digest: int | None = None
        self._left: tuple[str, ...] | None = None
        self._derive()

    @property
    def digest(self) -> int:
        """Equal for equal tables, and different for different ones, except with negligible probability."""
        if self._digest is None:
            contents = sorted(self.entries.items())
            # Without a horizon it is the digest of protocol version 1.
            self._digest = digest_of([self.horizon, contents] if self.horizon else contents)
        return self._digest

    @property
    def left(self) -> tuple[str, ...]:
        if self._left is None:
            self._left = tuple(sorted(address for address, entry in self.entries.items() if not entry.belongs))
        return self._left

    # -- changes made here -----------------------------------------------------------------------------

    def start(self, incarnation: int, stamp: int) -> None:
        """Add this replica under ``incarnation``, which is above every incarnation known for its address.

        ``stamp``: as for ``add``.
        """
        known = self.entries.get(self.address)
        assert known is None or known.incarnation < incarnation
        self._write(self.address, MembershipEntry(incarnation, self._stamp_above(self.address, stamp), True))

    def supersede(self, incarnation: int) -> None:
        """Let this replica, which is removed, take ``incarnation``; it stays removed."""
        known = self.entries[self.address]
        assert known.incarnation < incarnation
        self._write(self.address, MembershipEntry(incarnation, known.stamp, known.belongs))

    def add(self, address: str, stamp: int) -> bool:
        """Make ``address`` belong; return False if it belongs already. Raises TableFull if it is full.

        ``stamp``: hybrid time of the change, microseconds. The entry gets a stamp above the known one, so it wins.
        """
        known = self.entries.get(address)
        if known is not None and known.belongs:
            return False
        self._make_room_for(address)
        incarnation = known.incarnation if known else 0
        self._write(address, MembershipEntry(incarnation, self._stamp_above(address, stamp), True))
        return True

    def leave(self) -> None:
        """Make this replica, whose process ends by itself, not belong.

        The entry gets the lowest stamp that wins: a command that removes the address elsewhere, which covers more, wins
        over it.
        """
        known = self.entries[self.address]
        marked = self._stamp_above(self.address, 0) | LEAVE_MARK
        self._write(self.address, MembershipEntry(known.incarnation, marked, False))

    def remove(self, address: str, stamp: int) -> bool:
        """Make ``address`` not belong; return whether it belonged. Raises TableFull if it is full.

        The removal is written even if the address did not belong or was unknown: it covers every incarnation that
        started before ``stamp`` (see ``has_ended``). Only a table that is full of members has no room for an unknown
        address. An address with an entry, such as that of a member, needs none.
        """
        known = self.entries.get(address)
        self._make_room_for(address)
        incarnation = known.incarnation if known else 0
        self._write(address, MembershipEntry(incarnation, self._stamp_above(address, stamp), False))
        return known is not None and known.belongs

    def forget(self, addresses: Iterable[str]) -> None:
        """Forget removed ``addresses``, and raise the horizon to the latest of their removals."""
        for address in addresses:
            entry = self.entries.pop(address)
            assert not entry.belongs
            assert address != self.address
            self.horizon = max(self.horizon, unmarked(entry.stamp))
        self._derive()

    def is_ahead(self, limit_us: int) -> bool:
        """Return whether a stamp, an incarnation or the horizon is further ahead than ``limit_us``."""
        entries = self.entries.values()
        return self.horizon > limit_us or any(
            entry.stamp > limit_us or start_us_of(entry.incarnation) > limit_us for entry in entries
        )

    def take_back_times(self, limit_us: int, own_incarnation: int, now_us: int) -> None:
        """Replace what is further ahead than ``limit_us``. No other replica may have accepted it.

        Stamps and the horizon become ``now_us``, incarnations unknown. ``own_incarnation``: of this replica now.
        """
        self.horizon = min(self.horizon, now_us) if self.horizon > limit_us else self.horizon
        for address, entry in self.entries.items():
            incarnation = 0 if start_us_of(entry.incarnation) > limit_us else entry.incarnation
            if address == self.address:
                incarnation = own_incarnation
            right_us = now_us | LEAVE_MARK if entry.has_left else unmarked(now_us)
            stamp = entry.stamp if entry.stamp <= limit_us else right_us
            self.entries[address] = MembershipEntry(incarnation, stamp, entry.belongs)
        self._derive()

    # -- changes made elsewhere ------------------------------------------------------------------------

    def merge(self, entries: Mapping[str, MembershipEntry], horizon: int = 0) -> dict[str, Change]:
        """Merge another replica's table; return address -> change, sorted. The horizon may have changed, too.

        Raises TableFull if the table is full.
        """
        if horizon == self.horizon and entries == self.entries:
            return {}
        before = self.entries
        self.entries, self.horizon = self._within_limit(*self._joined(entries, horizon))
        self._derive()
        return {
            address: (before.get(address), self.entries.get(address))
            for address in sorted(before.keys() | self.entries.keys())
            if before.get(address) != self.entries.get(address)
        }

    def _joined(self, entries: Mapping[str, MembershipEntry], horizon: int) -> tuple[Entries, int]:
        """Return the joined entries and horizon: the maximum at each address, where no entry stands for the horizon."""
        highest = max(self.horizon, horizon)
        joined: Entries = {}
        for address in self.entries.keys() | entries.keys():
            ours = self.entries.get(address) or MembershipEntry(0, self.horizon, False)
            theirs = entries.get(address) or MembershipEntry(0, horizon, False)
            entry = ours.join(theirs)
            # A removal at the horizon says no more than no entry does. The own entry stays, so that this replica sees
            # that it was forgotten (view_changes.py).
            if entry.belongs or entry.stamp != highest or address == self.address:
                joined[address] = entry
        return joined, highest

    def _within_limit(self, entries: Entries, horizon: int) -> tuple[Entries, int]:
        """Return ``entries`` without the oldest removals if they exceed the limit.

        Raises TableFull for more members.
        """
        excess = len(entries) - self._max_entries
        if excess <= 0:
            return entries, horizon
        removed = self._removed_of(entries)
        if len(removed) < excess:
            raise TableFull(f"more than {self._max_entries} addresses in the membership table")
        count = max(excess, len(removed) - self._kept_removed)
        horizon = max(horizon, unmarked(entries[removed[count - 1]].stamp))
        forgotten = set(removed[:count])
        return {address: entry for address, entry in entries.items() if address not in forgotten}, horizon

    def _removed_of(self, entries: Entries) -> list[str]:
        removed = [
            (entry.stamp, address)
            for address, entry in entries.items()
            if not entry.belongs and address != self.address
        ]
        return [address for _, address in sorted(removed)]

    # -- questions -------------------------------------------------------------------------------------

    def removed(self) -> list[str]:
        """Return the other addresses that do not belong, the one that was removed first first."""
        return self._removed_of(self.entries)

    def belongs(self, address: str) -> bool:
        """Return whether ``address`` belongs to the cluster, reachable or not."""
        entry = self.entries.get(address)
        return entry is not None and entry.belongs

    def present_id(self, address: str) -> str | None:
        """Return the id of the present incarnation at ``address``, None if no incarnation is known."""
        entry = self.entries.get(address)
        return replica_id(address, entry.incarnation) if entry is not None and entry.incarnation else None

    def is_superseded(self, replica: str) -> bool:
        """Return whether the table holds a higher incarnation for the address of the id ``replica``."""
        entry = self.entries.get(address_of(replica))
        return entry is not None and incarnation_of(replica) < entry.incarnation

    def has_ended(self, replica: str) -> bool:
        """Return whether the incarnation ``replica`` has ended: it can return only under a higher incarnation, or if
        PUT /view adds it again.

        * Its address belongs, with another present incarnation, even a lower one: no other process is alive there.
        * Its address was removed, and the incarnation is known, or started before the removal by a command.
        * Its address has no entry, and the incarnation started before the horizon.

        Text that is no replica id names no incarnation.
        """
        incarnation = incarnation_of(replica)
        if not incarnation or replica in self.present:
            return False
        entry = self.entries.get(address_of(replica))
        if entry is None:
            return start_us_of(incarnation) < self.horizon
        if entry.belongs or incarnation <= entry.incarnation:
            return True
        return not entry.has_left and start_us_of(incarnation) < entry.stamp

    def has_ended_for_good(self, replica: str) -> bool:
        """Return whether the incarnation ``replica`` has ended and can never return, not even by PUT /view.

        Its address has another present incarnation, or was removed so long ago that the removal is forgotten.
        """
        if replica in self.present:  # The common case.
            return False
        entry = self.entries.get(address_of(replica))
        return (entry is None or entry.belongs) and self.has_ended(replica)

    # -- parts -----------------------------------------------------------------------------------------

    def _stamp_above(self, address: str, stamp: int) -> int:
        """Return ``stamp``, or the lowest one that wins over what ``address`` has, with or without an entry.

        It has no mark of a process that left by itself.
        """
        known = self.entries.get(address)
        return unmarked(max(stamp, known.stamp + 1 if known else 0, self.horizon + 1))

    def _write(self, address: str, entry: MembershipEntry) -> None:
        self.entries[address] = entry
        self._forget_derived()
        self._note(address, entry)
        self._derive_members()

    def _make_room_for(self, address: str) -> None:
        """Forget the oldest removal if the table is full and ``address`` is new. Raises TableFull without one."""
        if address not in self.entries and len(self.entries) >= self._max_entries:
            entry = MembershipEntry(0, 0, True)
            entries, self.horizon = self._within_limit({**self.entries, address: entry}, self.horizon)
            del entries[address]
            self.entries = entries
            self._derive()

    def _derive(self) -> None:
        """Derive everything from the entries."""
        self._forget_derived()
        self._belonging: set[str] = set()
        self.removed_ids: dict[str, str] = {}
        for address, entry in self.entries.items():
            self._note(address, entry)
        self._derive_members()

    def _forget_derived(self) -> None:
        self._digest = None
        self._left = None

    def _note(self, address: str, entry: MembershipEntry) -> None:
        self.removed_ids.pop(address, None)
        self._belonging.discard(address)
        if entry.belongs:
            self._belonging.add(address)
        elif entry.incarnation:
            self.removed_ids[address] = replica_id(address, entry.incarnation)

    def _derive_members(self) -> None:
        self.members = tuple(sorted(self._belonging))
        self.others = tuple(address for address in self.members if address != self.address)
        self.present = frozenset(id_ for address in self.members if (id_ := self.present_id(address)))
        self.present_ids = tuple(sorted(self.present))
