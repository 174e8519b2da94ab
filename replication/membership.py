"""Membership: who belongs to the cluster, who is reachable, and which addresses to ask first.

The class joins several kinds of state, each with rules of its own:

* ``table`` says who belongs. It is replicated (membership_table.py).
* ``liveness`` says who is reachable. It is observed (liveness.py).
* ``seeds`` are addresses to ask until they have answered once (seeds.py). ``unreached`` says why they have not
  (unreached.py).
* ``met`` says how many members have met (met.py).
* ``duplicate_check`` says whether another process may use this replica's address (duplicates.py).

On top of them stand the rules that need more than one: the view that users see (belongs *and* reachable), and addresses
that turn out to be aliases of another one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from replication.duplicates import DuplicateCheck
from replication.liveness import Liveness
from replication.membership_table import Change, MembershipTable
from replication.messages import Exchange, LastHeard, MembershipEntry
from replication.met import MetMembers
from replication.seeds import Seeds
from replication.settings import ReplicationSettings
from replication.unreached import UnreachedSeeds
from store.clock import address_of


class Membership:
    """What the replica at ``address`` knows of the members of its cluster. Not thread-safe. Times: monotonic seconds.

    ``started_s``: when the process started. ``aliases``: an address that was asked -> the address under which the
    replica there belongs. ``undiscovered``: this replica uses lookups and has not found any other replica yet
    (seeds.py).
    """

    def __init__(
        self, address: str, settings: ReplicationSettings, seeds: Seeds | None = None, started_s: float = 0.0
    ) -> None:
        self.address = address
        self.table = MembershipTable(address, settings.max_members, settings.kept_removed)
        self.liveness = Liveness(settings)
        self.seeds = seeds or Seeds(address, (), discovers=False, now_s=started_s)
        self.unreached = UnreachedSeeds(settings.silent_after_s)
        self.met = MetMembers(settings.expected_members)
        self.duplicate_check = DuplicateCheck(address, settings, started_s)
        self.aliases: dict[str, str] = {}
        self.undiscovered = False
        self._settings = settings
        self._added_s: dict[str, float] = {}
        self._removed_s: dict[str, float] = {}
        """Removed address -> when this replica first saw it removed."""
        self._dropped_s: dict[str, float] = {}
        """Address that belonged until a merge left it without an entry -> when. See ``dropped``."""
        self._unheard: tuple[int, float, list[str]] = (0, float("-inf"), [])
        """The last result of ``unheard``: the digest of the table then, until when it is used, and the ids."""
        self.update_discovery(started_s)

    # -- who belongs -----------------------------------------------------------------------------------

    def start(self, incarnation: int, stamp: int) -> None:
        """Add this replica to the table under ``incarnation``."""
        self.table.start(incarnation, stamp)
        self._forget_obsolete()

    def supersede(self, incarnation: int) -> None:
        """Give this replica, which is removed, ``incarnation`` in the table; it stays removed."""
        self.table.supersede(incarnation)
        self._forget_obsolete()

    def add_replica_from_view(self, replica: str, stamp: int, now_s: float) -> bool:
        """Make the address ``replica`` belong; return False if it belongs already. Raises BadMessage if full.

        ``stamp``: hybrid time, microseconds. The address counts as just heard of, so that it has time to answer
        before the view shows it as down.
        """
        address = self.aliases.get(replica, replica)
        if not self.table.add(address, stamp):
            return False
        self._added_s[address] = now_s
        return True

    def remove_replica_from_view(self, replica: str, stamp: int, now_s: float) -> bool:
        """Make the address ``replica`` not belong; return False if no member and no seed has that address.

        The removal is written all the same: clients may depend on a replica that died before this cluster heard of it.
        Raises TableFull, and changes nothing, if there is no room for it.
        """
        address = self.aliases.get(replica, replica)
        removed = self.table.remove(address, stamp)  # First, because it may fail.
        was_seed = self.seeds.remove(address)
        self._removed_s[address] = now_s
        self._forget_obsolete()
        return removed or was_seed

    def leave(self, now_s: float) -> None:
        """Make this replica, whose process ends by itself, not belong."""
        self.table.leave()
        self._removed_s[self.address] = now_s
        self._forget_obsolete()

    def merge(self, entries: Mapping[str, MembershipEntry], horizon: int = 0, now_s: float = 0.0) -> dict[str, Change]:
        """Merge another replica's table; return the changes (membership_table.py). Raises BadMessage if it is full.

        While a check for a duplicate of this replica's address runs, the entry of that address stays as it is.
        """
        if self.duplicate_check.is_running:
            entries = {**entries, self.address: self.table.entries[self.address]}
        changed = self.table.merge(entries, horizon)
        if changed:
            for address, (before, after) in changed.items():
                if after is None:
                    self.seeds.remove(address)
                    if before is not None and before.belongs:
                        self._dropped_s[address] = now_s
            self._forget_obsolete()
        return changed

    def forget_removed(self, now_s: float) -> list[str]:
        """Forget the oldest removals beyond ``kept_removed``, and those that others have forgotten; return them.

        None is forgotten within ``forget_after_s`` after this replica has heard of it.
        """
        removed, table = self.table.removed(), self.table
        self._removed_s = {address: self._removed_s.get(address, now_s) for address in removed}
        excess = len(removed) - self._settings.kept_removed
        forgotten = [
            address
            for number, address in enumerate(removed)
            if (number < excess or table.entries[address].stamp <= table.horizon)
            and now_s - self._removed_s[address] >= self._settings.forget_after_s
        ]
        if forgotten:
            table.forget(forgotten)
            for address in forgotten:
                self.seeds.remove(address)  # Without its removal it would look like one that was never reached.
            self._forget_obsolete()
        return forgotten

    def dropped(self, now_s: float) -> list[str]:
        """Return the addresses that lost their entry in a merge within ``forget_after_s``, though they belonged.

        They are asked once more: a replica that is alive there learns of it, and returns (view_changes.py). Otherwise
        replicas that drop each other at the same time would never hear of each other again.
        """
        if self._dropped_s:
            since_s = now_s - self._settings.forget_after_s
            self._dropped_s = {
                address: at_s
                for address, at_s in self._dropped_s.items()
                if at_s > since_s and address not in self.table.entries
            }
        return list(self._dropped_s)

    def seeds_to_ask_again(self, now_s: float) -> frozenset[str]:
        """Return all seeds if this replica is removed and reaches no member.

        Members may have forgotten its removal, and it may have forgotten that of those who are members by now. Then it
        has no other way to hand over its updates.
        """
        if self.table.belongs(self.address) or self.reaches_others(now_s):
            return frozenset()
        return self.seeds.named()

    def is_forgotten(self, address: str) -> bool:
        """Return whether nothing is to be remembered of ``address``: it has no entry, and need not be asked."""
        is_asked = self.seeds.is_named(address) or address in self._dropped_s or address == self.address
        return not is_asked and address not in self.table.entries

    @property
    def silent_after_s(self) -> float:
        """Seconds of silence after which a replica counts as down."""
        return self._settings.silent_after_s

    def own_names(self) -> set[str]:
        """Return every address that leads to this replica: its own and its aliases."""
        return {self.address, *(alias for alias, actual in self.aliases.items() if actual == self.address)}

    def suspect_reported_duplicates(self, message: Exchange, own_id: str, now_s: float) -> None:
        """Start a check if a peer has heard of another process under this address."""
        for replica, heard in message.heard.items():
            if address_of(replica) == self.address:
                self.duplicate_check.suspect_reported(replica, own_id, now_s - heard.age_ms / 1000, now_s)

    # -- who is reachable ------------------------------------------------------------------------------

    def hear(self, message: Exchange, now_s: float, *, is_reply: bool = False) -> None:
        """Record the signs of life in a message: of its sender, and of the replicas that the sender has heard.

        ``is_reply``: the message answers a request that was in flight until now.
        """
        hear_sender = self.liveness.hear_reply if is_reply else self.liveness.hear_request
        hear_sender(message.sender, message.heartbeat, now_s)
        for replica, heard in message.heard.items():
            if address_of(replica) != self.address:
                self.liveness.hear(replica, heard.heartbeat, now_s - heard.age_ms / 1000)

    def liveness_report(self, also: Collection[str], now_s: float, *, members: bool = True) -> dict[str, LastHeard]:
        """Return the last contact of every present incarnation, unless not ``members``, and of the ids in ``also``."""
        return self.liveness.report(self.table.present | frozenset(also) if members else also, now_s)

    def recent_contacts(self, replicas: Collection[str], now_s: float) -> dict[str, LastHeard]:
        """Return the last contact of each of ``replicas`` that is not silent: an older one would change nothing."""
        limit_ms = self._settings.silent_after_s * 1000
        return {id_: at for id_, at in self.liveness.report(replicas, now_s).items() if at.age_ms < limit_ms}

    def unheard(self, now_s: float) -> list[str]:
        """Return the present incarnations of other members that this replica has not heard itself lately.

        A replica with many members sends hundreds of messages per sync interval, so the result is kept for a twentieth.
        """
        digest, until_s, unheard = self._unheard
        if digest != self.table.digest or now_s >= until_s:
            own_id = self.table.present_id(self.address)
            unheard = [id_ for id_ in self.liveness.unheard(self.table.present_ids, now_s) if id_ != own_id]
            self._unheard = (self.table.digest, now_s + self._settings.sync_interval_s / 20, unheard)
        return unheard

    def last_contact(self, address: str) -> float | None:
        """Return when the present incarnation at ``address`` was last heard of, None if never."""
        replica = self.table.present_id(address)
        return self.liveness.last_contact(replica) if replica else None

    def state(self, address: str, now_s: float) -> str:
        """Return ``alive``, ``suspect``, ``down`` or ``left``."""
        if not self.table.belongs(address):
            return "left"
        if address == self.address:
            return "alive"
        signs_s = [at_s for at_s in (self.last_contact(address), self._added_s.get(address)) if at_s is not None]
        age_s = now_s - max(signs_s) if signs_s else self._settings.down_after_s
        if age_s >= self._settings.silent_after_s:
            return "down"
        return "suspect" if age_s >= self._settings.suspect_after_s else "alive"

    def reaches_others(self, now_s: float) -> bool:
        """Return whether any other member is reachable."""
        return any(self.state(address, now_s) != "down" for address in self.table.others)

    def live(self, now_s: float) -> list[str]:
        """Return the view that users see: the addresses that belong and are reachable, sorted."""
        return [address for address in self.table.members if self.state(address, now_s) != "down"]

    # -- which addresses to ask ------------------------------------------------------------------------

    def discovered(self, addresses: Iterable[str], now_s: float) -> list[str]:
        """Take in the result of a lookup; return the addresses that the lookup before had found and this one has not.

        A new replica may answer at such an address later, so its alias is forgotten.
        """
        vanished = self.seeds.update(addresses, now_s)
        self.unreached.follow(self.seeds.unanswered)
        for address in vanished:
            self.aliases.pop(address, None)
        self.update_discovery(now_s)
        return vanished

    def answered(self, address: str, sender: str, now_s: float) -> None:
        """Note that ``sender`` has answered at ``address``: it is not a seed to ask any more."""
        self.seeds.mark_answered(address, is_own=address_of(sender) == self.address)
        self.unreached.follow(self.seeds.unanswered)
        self.update_discovery(now_s)

    def update_discovery(self, now_s: float) -> None:
        """Recompute ``undiscovered``; called after each answer and lookup, and as time passes."""
        self.undiscovered = self.seeds.is_undiscovered(now_s, self._settings.silent_after_s)

    def knows_all_members(self) -> bool:
        """Return whether no address may be that of a member that this replica has never reached.

        It may be at a seed that has not answered, unless the address was removed, and while lookups have found nobody.
        """
        table = self.table
        unknown = (
            address for address in self.seeds.unanswered if table.belongs(address) or address not in table.entries
        )
        return not self.undiscovered and not any(unknown)

    def missed_seeds(self) -> list[tuple[str, float]]:
        """Return the addresses of ``VIEW`` that have never answered, each with the time since which it is asked.

        An address that was removed is not missed.
        """
        seeds, table = self.seeds, self.table
        return [
            (address, since_s)
            for address, since_s in seeds.unanswered.items()
            if address in seeds.fixed and (table.belongs(address) or address not in table.entries)
        ]

    def _forget_obsolete(self) -> None:
        table = self.table
        self.liveness.forget(lambda id_: table.is_superseded(id_) or address_of(id_) not in table.entries)
        self._added_s = {address: at_s for address, at_s in self._added_s.items() if table.belongs(address)}
        self.aliases = {
            alias: actual
            for alias, actual in self.aliases.items()
            if alias in table.entries or self.seeds.is_named(alias)
        }
