"""The membership table: which addresses belong to the cluster, and which incarnation of each address is present.

The table is a replicated map from address to entry (incarnation, stamp, belongs). These events write an entry:

* a process starts, or takes a higher incarnation: its own address, the new incarnation, belonging;
* DELETE /view: the present incarnation, not belonging;
* PUT /view: the present incarnation, or 0 if none is known, belonging;
* an address turns out to be an alias: the alias is removed, and the address that it stands for is added.

Of two entries for one address, the entry with the higher rank (incarnation, stamp, belongs) wins at every replica.
Replicas that exchange messages therefore end with equal tables, in whatever order the changes arrive.

An incarnation is *superseded* when the table holds a higher incarnation for its address. The *present* incarnation of
an address is the one in the table. A member that is down still belongs.

Source: last-writer-wins register, Johnson and Thomas, RFC 677 (1975).
"""

from __future__ import annotations

from collections.abc import Mapping

from replication.errors import BadMessage
from replication.messages import MembershipEntry, digest_of
from store.clock import address_of, incarnation_of, replica_id


class MembershipTable:
    """The membership table of the replica at ``address``, with at most ``max_entries`` addresses. Not thread-safe.

    ``entries``: address -> entry; read only for others.
    The other public attributes are derived from ``entries`` after every change:
    ``digest``: equal for equal tables. ``members``: the addresses that belong, sorted. ``others``: ``members`` without
    this replica. ``left``: the addresses that do not belong, sorted. ``present``: ids of the present incarnations of
    all members; ``present_ids``: the same ids, sorted.
    """

    def __init__(self, address: str, max_entries: int) -> None:
        self.address = address
        self.entries: dict[str, MembershipEntry] = {}
        self._max_entries = max_entries
        self._derive()

    def start(self, incarnation: int, stamp: int) -> None:
        """Add this replica under ``incarnation``, which is above every incarnation known for its address."""
        known = self.entries.get(self.address)
        assert known is None or known.incarnation < incarnation
        self._write(self.address, MembershipEntry(incarnation, stamp, True))

    def add(self, address: str, stamp: int) -> bool:
        """Make ``address`` belong; return False if it belongs already. Raises BadMessage if the table is full.

        ``stamp``: hybrid time of the change, microseconds. The entry gets a stamp above the known one, so it wins.
        """
        known = self.entries.get(address)
        if known is not None and known.belongs:
            return False
        self._require_room(1 if known is None else 0)
        incarnation, lowest_stamp = (known.incarnation, known.stamp + 1) if known else (0, 0)
        self._write(address, MembershipEntry(incarnation, max(stamp, lowest_stamp), True))
        return True

    def remove(self, address: str, stamp: int) -> bool:
        """Make ``address`` not belong; return False if it does not belong already."""
        known = self.entries.get(address)
        if known is None or not known.belongs:
            return False
        self._write(address, MembershipEntry(known.incarnation, max(stamp, known.stamp + 1), False))
        return True

    def merge(self, entries: Mapping[str, MembershipEntry]) -> dict[str, MembershipEntry]:
        """Merge another replica's table; return the entries that changed. Raises BadMessage if the table is full."""
        newer = {
            address: entry
            for address, entry in entries.items()
            if (known := self.entries.get(address)) is None or entry.rank > known.rank
        }
        self._require_room(sum(address not in self.entries for address in newer))
        if newer:
            self.entries.update(newer)
            self._derive()
        return newer

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

    def _write(self, address: str, entry: MembershipEntry) -> None:
        self.entries[address] = entry
        self._derive()

    def _derive(self) -> None:
        self.digest = digest_of(sorted((address, entry.rank) for address, entry in self.entries.items()))
        self.present = frozenset(
            replica_id(address, entry.incarnation)
            for address, entry in self.entries.items()
            if entry.belongs and entry.incarnation
        )
        self.present_ids = tuple(sorted(self.present))
        self.members = tuple(sorted(address for address, entry in self.entries.items() if entry.belongs))
        self.others = tuple(address for address in self.members if address != self.address)
        self.left = tuple(sorted(self.entries.keys() - set(self.members)))

    def _require_room(self, new_addresses: int) -> None:
        if new_addresses and len(self.entries) + new_addresses > self._max_entries:
            raise BadMessage(f"more than {self._max_entries} addresses in the membership table")
