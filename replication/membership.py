"""The view: who belongs to the cluster, and who can be reached.

Two questions that are answered in two ways, and never mixed:

* **Who belongs** is a replicated *register*: address -> (incarnation, stamp, in or out). It changes only by
  a start (own incarnation, in), by DELETE /view (present incarnation, out) and by PUT /view (present
  incarnation, in). Of two entries for an address the higher (incarnation, stamp) wins, everywhere, so the
  registers of replicas that talk become equal, whatever order changes arrive in.
* **Who is reachable** is *observed*: how long ago a replica was last heard, by oneself or as told by others.
  Every message carries a *beat* that its sender raises; being told of an old beat again proves nothing, so
  hearsay cannot keep a dead replica alive, over however many hops it comes.

An incarnation is **over** when the register has a higher one for its address. A member that is down still
belongs. The view that users see is: belongs and reachable.

Sources: last-writer-wins register, Johnson and Thomas, RFC 677 (1975); van Renesse, Minsky, Hayden 1998
(gossip-style failure detection: rising heartbeats); alive/suspect/down as in SWIM, Das et al. 2002.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple

from replication.errors import BadMessage
from replication.messages import LastHeard, MembershipEntry, digest_of
from replication.settings import ReplicationSettings
from store.clock import address_of, incarnation_of, replica_id


class Contact(NamedTuple):
    """The last sign of life of one replica: its beat then, and when (own monotonic seconds)."""

    heartbeat: int
    at_s: float


class Membership:
    """The register and the observations of the replica at ``address``. Not thread-safe."""

    def __init__(self, address: str, settings: ReplicationSettings) -> None:
        self.address = address
        self.table: dict[str, MembershipEntry] = {}
        self.digest = 0
        """Equal registers have equal digests."""
        self.present: frozenset[str] = frozenset()
        """The ids of the present incarnations of all addresses that are in."""
        self.present_ids: tuple[str, ...] = ()
        """The same in order."""
        self._settings = settings
        self._contacts: dict[str, Contact] = {}
        self._expected: dict[str, float] = {}
        self._members: tuple[str, ...] = ()
        self._others: tuple[str, ...] = ()
        self._left: tuple[str, ...] = ()
        self._changed()

    # -- who belongs -----------------------------------------------------------------------------------

    def start(self, incarnation: int, stamp: int) -> None:
        """Write this replica in under ``incarnation``, which is above every one known for its address."""
        known = self.table.get(self.address)
        assert known is None or known.incarnation < incarnation
        self._set(self.address, MembershipEntry(incarnation, stamp, True))

    def add_replica_from_view(self, replica: str, stamp: int, now_s: float) -> bool:
        """Let the address ``replica`` in; return False when it is in already, reachable or not.

        ``stamp``: hybrid time, microseconds. It counts as expected from ``now_s`` on: shown until it
        has had the time to answer.
        """
        known = self.table.get(replica)
        if known is not None and known.belongs:
            return False
        self._require_room(1 if known is None else 0)
        incarnation, floor = (known.incarnation, known.stamp + 1) if known else (0, 0)
        self._set(replica, MembershipEntry(incarnation, max(stamp, floor), True))
        self._expected[replica] = now_s
        return True

    def remove_replica_from_view(self, replica: str, stamp: int) -> bool:
        """Put the address ``replica`` out; return False when it is not in."""
        known = self.table.get(replica)
        if known is None or not known.belongs:
            return False
        self._set(replica, MembershipEntry(known.incarnation, max(stamp, known.stamp + 1), False))
        return True

    def merge(self, register: Mapping[str, MembershipEntry]) -> bool:
        """Take in another replica's register; return whether anything changed. Raises BadMessage past the limit."""
        newer = {
            address: entry
            for address, entry in register.items()
            if (known := self.table.get(address)) is None or entry.rank > known.rank
        }
        self._require_room(sum(address not in self.table for address in newer))
        self.table.update(newer)
        if newer:
            self._changed()
        return bool(newer)

    def members(self) -> tuple[str, ...]:
        """Return the addresses that are in, this one included if it is, in order."""
        return self._members

    def others(self) -> tuple[str, ...]:
        """Return the addresses that are in, without this one, in order."""
        return self._others

    def left(self) -> tuple[str, ...]:
        """Return the addresses that are out, in order."""
        return self._left

    def belongs(self, address: str) -> bool:
        """Return whether ``address`` is in."""
        entry = self.table.get(address)
        return entry is not None and entry.belongs

    def present_id(self, address: str) -> str | None:
        """Return the id of the present incarnation at ``address``, None where none is known."""
        entry = self.table.get(address)
        return replica_id(address, entry.incarnation) if entry is not None and entry.incarnation else None

    def is_superseded(self, replica: str) -> bool:
        """Return whether the register has a higher incarnation for the address of the id ``replica``."""
        entry = self.table.get(address_of(replica))
        return entry is not None and incarnation_of(replica) < entry.incarnation

    # -- who is reachable ------------------------------------------------------------------------------

    def hear(self, replica: str, heartbeat: int, at_s: float) -> None:
        """Note a sign of life of the id ``replica``; one that is not newer than the last one says nothing."""
        known = self._contacts.get(replica)
        if known is None or known.heartbeat < heartbeat:
            self._contacts[replica] = Contact(heartbeat, at_s if known is None else max(at_s, known.at_s))

    def heard(self, now_s: float, besides: Collection[str] = ()) -> dict[str, LastHeard]:
        """Return what to tell others: when each present incarnation, and each id of ``besides``, was last heard of."""
        return {
            replica: LastHeard(contact.heartbeat, max(0, round((now_s - contact.at_s) * 1000)))
            for replica, contact in self._contacts.items()
            if replica in self.present or replica in besides
        }

    def last_contact(self, address: str) -> float | None:
        """Return when the present incarnation at ``address`` was last heard of (monotonic seconds), or None."""
        replica = self.present_id(address)
        contact = self._contacts.get(replica) if replica else None
        return contact.at_s if contact else None

    def is_silent(self, replica: str, since_s: float, now_s: float) -> bool:
        """Return whether nothing was heard of the id ``replica`` for so long that it counts as down.

        ``since_s``: from when on silence counts where it was never heard at all.
        """
        contact = self._contacts.get(replica)
        return now_s - (contact.at_s if contact else since_s) >= self._settings.silent_after_s

    @property
    def silent_after_s(self) -> float:
        """Silence after which a replica counts as down."""
        return self._settings.silent_after_s

    def state(self, address: str, now_s: float) -> str:
        """Return ``alive``, ``suspect``, ``down`` or ``left``."""
        if not self.belongs(address):
            return "left"
        if address == self.address:
            return "alive"
        signs = [at_s for at_s in (self.last_contact(address), self._expected.get(address)) if at_s is not None]
        age_s = now_s - max(signs) if signs else self._settings.down_after_s
        if age_s >= self._settings.silent_after_s:
            return "down"
        return "suspect" if age_s >= self._settings.suspect_after_s else "alive"

    def live(self, now_s: float) -> list[str]:
        """Return the view as users see it: the addresses that are in and reachable, in order."""
        return [address for address in self.members() if self.state(address, now_s) != "down"]

    # -- inside ----------------------------------------------------------------------------------------

    def _set(self, address: str, entry: MembershipEntry) -> None:
        self.table[address] = entry
        self._changed()

    def _changed(self) -> None:
        self.digest = digest_of(sorted((address, entry.rank) for address, entry in self.table.items()))
        self.present = frozenset(
            replica_id(address, entry.incarnation)
            for address, entry in self.table.items()
            if entry.belongs and entry.incarnation
        )
        self.present_ids = tuple(sorted(self.present))
        self._members = tuple(sorted(address for address, entry in self.table.items() if entry.belongs))
        self._others = tuple(address for address in self._members if address != self.address)
        self._left = tuple(sorted(self.table.keys() - set(self._members)))
        # Signs of life of an incarnation that is over prove nothing any more, and would pile up.
        self._contacts = {id_: contact for id_, contact in self._contacts.items() if not self.is_superseded(id_)}
        self._expected = {address: at_s for address, at_s in self._expected.items() if self.belongs(address)}

    def _require_room(self, more: int) -> None:
        if more and len(self.table) + more > self._settings.max_members:
            raise BadMessage(f"more than {self._settings.max_members} addresses in the register")
