"""Memberships of several replicas, compared with a model.

The model keeps every membership entry, of which the highest incarnation and the latest change count, and every sign of
life. Forgetting is in test_membership_table.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from replication.errors import BadMessage
from replication.membership import Membership
from replication.messages import MembershipEntry
from replication.settings import ReplicationSettings
from store.clock import address_of, replica_id

ADDRESSES = tuple(f"r{number}:80" for number in range(4))
REPLICAS = 3
SETTINGS = ReplicationSettings()

replicas = st.integers(0, REPLICAS - 1)
addresses = st.sampled_from(ADDRESSES)
stamps = st.integers(1, 60)
"""Few, and in any order: clocks may be wrong, and two changes may have the same stamp."""


def change_of(entry: MembershipEntry) -> tuple[int, bool]:
    return entry.stamp, entry.belongs


@dataclass
class Model:
    """What one replica knows according to the model.

    ``entries``: address -> every entry received. ``signs``: replica id -> every (heartbeat, time in seconds) received.
    Those of an address without an entry may be forgotten: they mean nothing before the entry arrives.
    ``added_s``: address -> when this replica added it.
    """

    entries: dict[str, set[MembershipEntry]] = field(default_factory=dict)
    signs: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    added_s: dict[str, float] = field(default_factory=dict)

    def forget_unknown(self) -> None:
        """Forget the signs of life of addresses without an entry, as a replica does when its table changes."""
        self.signs = {replica: heard for replica, heard in self.signs.items() if address_of(replica) in self.entries}

    def table(self) -> dict[str, MembershipEntry]:
        """Return the membership table: the highest incarnation and the latest change of each address."""
        return {
            address: MembershipEntry(max(each.incarnation for each in entries), *max(map(change_of, entries)))
            for address, entries in self.entries.items()
        }

    def last_contact_s(self, replica: str) -> float | None:
        """Return the time of the last contact with ``replica``.

        A sign counts if its heartbeat is above all earlier ones. It never makes the last contact older.
        """
        highest, at_s = -1, None
        for heartbeat, heard_s in self.signs.get(replica, []):
            if heartbeat > highest:
                highest, at_s = heartbeat, heard_s if at_s is None else max(at_s, heard_s)
        return at_s


class MembershipMachine(RuleBasedStateMachine):
    """Several replicas and a model of each.

    ``heartbeats``, ``sent_s``: replica id -> the last heartbeat that it sent, and when. ``removed``, ``added``: every
    entry that a replica has written, with its address.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memberships = [Membership(ADDRESSES[number], SETTINGS) for number in range(REPLICAS)]
        self.models = [Model() for _ in range(REPLICAS)]
        self.now_s = 100.0
        self.heartbeats: dict[str, int] = {}
        self.sent_s: dict[str, float] = {}
        self.removed: list[tuple[str, MembershipEntry]] = []
        self.added: list[tuple[str, MembershipEntry]] = []

    def record_entry(self, at: int, address: str) -> None:
        """Record the entry that a replica has just written. It must be above every entry known to that replica."""
        entry = self.memberships[at].table.entries[address]
        entries = self.models[at].entries.setdefault(address, set())
        assert all(entry.stamp > other.stamp and entry.incarnation >= other.incarnation for other in entries)
        entries.add(entry)
        (self.added if entry.belongs else self.removed).append((address, entry))

    @initialize()
    def begin(self) -> None:
        for at in range(REPLICAS):
            self.start(at, 0, 1)

    # -- the membership table --------------------------------------------------------------------------

    @rule(at=replicas, above=st.integers(0, 2), stamp=stamps)
    def start(self, at: int, above: int, stamp: int) -> None:
        """Start a process, with an incarnation above all that the replica knows for its address."""
        membership = self.memberships[at]
        known = membership.table.entries.get(membership.address)
        membership.start((known.incarnation if known else 0) + 1 + above, stamp)
        self.record_entry(at, membership.address)
        self.models[at].forget_unknown()

    @rule(at=replicas, address=addresses, stamp=stamps)
    def add(self, at: int, address: str, stamp: int) -> None:
        belonged = self.memberships[at].table.belongs(address)
        assert self.memberships[at].add_replica_from_view(address, stamp, self.now_s) is not belonged
        if not belonged:
            self.record_entry(at, address)
            self.models[at].added_s[address] = self.now_s

    @rule(at=replicas, address=addresses, stamp=stamps)
    def remove(self, at: int, address: str, stamp: int) -> None:
        belonged = self.memberships[at].table.belongs(address)
        assert self.memberships[at].remove_replica_from_view(address, stamp, self.now_s) is belonged
        self.record_entry(at, address)
        self.models[at].forget_unknown()
        assert not self.memberships[at].table.entries[address].has_left

    @rule(at=replicas)
    def leave(self, at: int) -> None:
        membership = self.memberships[at]
        membership.leave(self.now_s)
        self.record_entry(at, membership.address)
        self.models[at].forget_unknown()
        assert membership.table.entries[membership.address].has_left

    @rule(source=replicas, at=replicas)
    def merge(self, source: int, at: int) -> None:
        table = dict(self.memberships[source].table.entries)
        before = dict(self.memberships[at].table.entries)
        changed = self.memberships[at].merge(table)
        for address, entry in table.items():
            self.models[at].entries.setdefault(address, set()).add(entry)
        if changed:
            self.models[at].forget_unknown()
        assert bool(changed) is (self.memberships[at].table.entries != before)
        assert self.memberships[at].merge(table) == {}

    # -- liveness --------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 1.6, 2.8]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(at=replicas, address=addresses)
    def hear(self, at: int, address: str) -> None:
        """A replica receives a message from the present incarnation at an address."""
        replica = self.memberships[at].table.present_id(address)
        if replica is not None:
            self.heartbeats[replica] = self.heartbeats.get(replica, 0) + 1
            self.sent_s[replica] = self.now_s
            self._hear(at, replica, self.heartbeats[replica], self.now_s)

    @rule(at=replicas, address=addresses, back=st.integers(0, 3), age_s=st.sampled_from([0.0, 1.0, 5.0]))
    def hear_late(self, at: int, address: str, back: int, age_s: float) -> None:
        """An old message arrives late, with a heartbeat that is not the highest."""
        replica = self.memberships[at].table.present_id(address)
        if replica is not None and self.heartbeats.get(replica, 0) > back:
            sent_s = self.sent_s[replica]
            self._hear(at, replica, self.heartbeats[replica] - back, min(self.now_s, sent_s) - age_s)

    @rule(source=replicas, at=replicas)
    def receive_report(self, source: int, at: int) -> None:
        for replica, heard in self.memberships[source].liveness_report((), self.now_s).items():
            self._hear(at, replica, heard.heartbeat, self.now_s - heard.age_ms / 1000)

    def _hear(self, at: int, replica: str, heartbeat: int, at_s: float) -> None:
        self.memberships[at].liveness.hear(replica, heartbeat, at_s)
        self.models[at].signs.setdefault(replica, []).append((heartbeat, at_s))

    # -- invariants ------------------------------------------------------------------------------------

    @invariant()
    def the_highest_incarnation_and_the_latest_change_win(self) -> None:
        for membership, model in zip(self.memberships, self.models, strict=True):
            expected = model.table()
            assert membership.table.entries == expected
            members = sorted(address for address, entry in expected.items() if entry.belongs)
            assert list(membership.table.members) == members
            assert list(membership.table.others) == [address for address in members if address != membership.address]
            assert list(membership.table.left) == sorted(expected.keys() - set(members))
            present = {replica_id(address, expected[address].incarnation) for address in members}
            assert membership.table.present == {id_ for id_ in present if not id_.endswith("@" + "0" * 16)}

    @invariant()
    def digests_are_equal_exactly_if_tables_are(self) -> None:
        for membership in self.memberships:
            for other in self.memberships:
                assert (membership.table.digest == other.table.digest) == (
                    membership.table.entries == other.table.entries
                )

    @invariant()
    def a_removed_address_belongs_again_only_after_a_later_addition_or_start(self) -> None:
        """A replica that knows of a removal counts the address as a member only because of a later entry."""
        for membership, model in zip(self.memberships, self.models, strict=True):
            for address, removal in self.removed:
                if removal in model.entries.get(address, set()) and membership.table.belongs(address):
                    later = [entry.stamp for at, entry in self.added if at == address and entry.stamp >= removal.stamp]
                    assert membership.table.entries[address].stamp in later

    @invariant()
    def exactly_the_lower_incarnations_are_superseded(self) -> None:
        for membership in self.memberships:
            for address, entry in membership.table.entries.items():
                assert not entry.incarnation or membership.table.is_superseded(
                    replica_id(address, entry.incarnation - 1)
                )
                assert not membership.table.is_superseded(replica_id(address, entry.incarnation))
                assert not membership.table.is_superseded(replica_id(address, entry.incarnation + 1))

    @invariant()
    def states_follow_from_the_last_sign_of_life(self) -> None:
        for membership, model in zip(self.memberships, self.models, strict=True):
            for address in ADDRESSES:
                assert membership.state(address, self.now_s) == self.expected_state(membership, model, address)
            alive = [address for address in membership.table.members if membership.state(address, self.now_s) != "down"]
            assert membership.live(self.now_s) == alive
            assert membership.address in alive or not membership.table.belongs(membership.address)

    def expected_state(self, membership: Membership, model: Model, address: str) -> str:
        entry = model.table().get(address)
        if entry is None or not entry.belongs:
            model.added_s.pop(address, None)
            return "left"
        if address == membership.address:
            return "alive"
        contact_s = model.last_contact_s(replica_id(address, entry.incarnation)) if entry.incarnation else None
        times_s = [at_s for at_s in (contact_s, model.added_s.get(address)) if at_s is not None]
        age_s = self.now_s - max(times_s, default=float("-inf"))
        if age_s >= SETTINGS.silent_after_s:
            return "down"
        return "suspect" if age_s >= SETTINGS.suspect_after_s else "alive"

    @invariant()
    def reports_keep_no_dead_replica_alive(self) -> None:
        """No last contact is later than the last message of its replica, over however many hops it was reported."""
        for membership in self.memberships:
            for replica, contact in membership.liveness._contacts.items():
                assert contact.heartbeat <= self.heartbeats[replica]
                # Each hop rounds the reported age to milliseconds.
                assert contact.at_s <= self.sent_s[replica] + 0.02

    @invariant()
    def contacts_of_superseded_incarnations_are_forgotten(self) -> None:
        for membership in self.memberships:
            assert membership.liveness_report((), self.now_s).keys() <= membership.table.present
            assert len(membership.liveness._contacts) <= 2 * len(ADDRESSES)

    def teardown(self) -> None:
        """Replicas that have merged each other's tables have equal tables."""
        for source in (*range(REPLICAS), *range(REPLICAS)):
            for at in range(REPLICAS):
                self.merge(source, at)
        assert (
            self.memberships[0].table.entries == self.memberships[1].table.entries == self.memberships[2].table.entries
        )


TestMembership = MembershipMachine.TestCase
TestMembership.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


entries = st.builds(MembershipEntry, st.integers(0, 3), st.integers(1, 3), st.booleans())
tables = st.dictionaries(addresses, entries)


@given(st.lists(tables, max_size=5), st.randoms(use_true_random=False))
def test_tables_merge_to_the_same_result_in_any_order(parts: list[dict[str, MembershipEntry]], rng: object) -> None:
    one, other = Membership("r9:80", SETTINGS), Membership("r9:80", SETTINGS)
    for part in parts:
        one.merge(part)
    shuffled = list(parts)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    for part in (*shuffled, *shuffled[:1]):
        other.merge(part)
    assert one.table.entries == other.table.entries
    assert one.table.digest == other.table.digest


def test_a_table_over_the_limit_is_rejected_as_a_whole() -> None:
    membership = Membership("r1:80", ReplicationSettings(max_members=2))
    membership.start(1, 1)
    membership.merge({"r2:80": MembershipEntry(1, 1, True)})
    before = dict(membership.table.entries)
    with pytest.raises(BadMessage):
        membership.merge({"r2:80": MembershipEntry(2, 1, True), "r3:80": MembershipEntry(1, 1, True)})
    with pytest.raises(BadMessage):
        membership.add_replica_from_view("r3:80", 1, 0.0)
    assert membership.table.entries == before
    assert membership.merge({"r2:80": MembershipEntry(2, 1, True)})


def test_an_added_address_stays_in_the_view_while_it_has_time_to_answer() -> None:
    membership = Membership("r1:80", SETTINGS)
    membership.start(1, 1)
    membership.add_replica_from_view("r2:80", 1, 10.0)
    assert membership.live(12.0) == ["r1:80", "r2:80"]
    assert membership.live(13.0) == ["r1:80"]


def test_a_silent_member_is_down_within_down_after() -> None:
    membership = Membership("r1:80", SETTINGS)
    membership.start(1, 1)
    membership.merge({"r2:80": MembershipEntry(5, 1, True)})
    membership.liveness.hear(replica_id("r2:80", 5), 1, 10.0)
    assert membership.state("r2:80", 10.0 + SETTINGS.down_after_s) == "down"
    assert membership.liveness.is_silent(replica_id("r2:80", 5), 0.0, 10.0 + SETTINGS.down_after_s)
    assert not membership.liveness.is_silent(replica_id("r2:80", 5), 0.0, 11.0)
    assert membership.liveness.is_silent("unheard", 5.0, 8.0)
    assert not membership.liveness.is_silent("unheard", 7.0, 8.0)
