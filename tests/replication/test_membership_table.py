"""The membership table as a lattice: merges of entries and horizons, in any order, and forgetting in between."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from replication.errors import BadMessage, TableFull
from replication.membership_table import MembershipTable
from replication.messages import LEAVE_MARK, MembershipEntry
from store.clock import INCARNATION_RANDOM_BITS, replica_id, start_us_of

ADDRESSES = tuple(f"r{number}:80" for number in range(5))
TABLES = 3
Contents = tuple[dict[str, MembershipEntry], int]
"""Entries and horizon of a table."""
Standing = dict[str, tuple[int, bool]]


def table_of(*parts: Contents) -> MembershipTable:
    """Return a table into which ``parts`` were merged."""
    table = MembershipTable("own:80", 100, 100)
    for part in parts:
        table.merge(*part)
    return table


def contents_of(table: MembershipTable) -> Contents:
    return dict(table.entries), table.horizon


stamps = st.integers(0, 6)
entries = st.builds(MembershipEntry, st.integers(0, 3), stamps, st.booleans())
contents = st.tuples(st.dictionaries(st.sampled_from(ADDRESSES), entries), stamps).map(
    lambda drawn: contents_of(table_of(drawn))
)
"""Of tables; few values, so that many are equal."""


def standing_of(table: MembershipTable) -> Standing:
    """Return what each address counts as: its latest change, or a removal at the horizon."""
    return {
        address: (entry.stamp, entry.belongs) if (entry := table.entries.get(address)) else (table.horizon, False)
        for address in ADDRESSES
    }


# -- merges ------------------------------------------------------------------------------------------------------------


@given(contents, contents)
def test_a_merge_is_commutative_and_idempotent(one: Contents, other: Contents) -> None:
    both, reverse = table_of(one, other), table_of(other, one)
    assert contents_of(both) == contents_of(reverse)
    assert both.digest == reverse.digest
    before = contents_of(both)
    assert both.merge(*before) == {}
    for part in (one, other):
        both.merge(*part)
        assert contents_of(both) == before


@given(contents, contents, contents)
def test_a_merge_is_associative(first: Contents, second: Contents, third: Contents) -> None:
    """In who belongs and since when, and in the horizon. An incarnation may be forgotten in one order only."""
    left = table_of(contents_of(table_of(first, second)), third)
    right = table_of(first, contents_of(table_of(second, third)))
    assert left.horizon == right.horizon
    assert left.entries.keys() == right.entries.keys()
    assert standing_of(left) == standing_of(right)


@given(contents, contents)
def test_a_merge_gives_the_maximum_of_both_sides(one: Contents, other: Contents) -> None:
    parts = [table_of(one), table_of(other)]
    both = table_of(*map(contents_of, parts))
    assert both.horizon == max(part.horizon for part in parts)
    expected = {address: max(standing_of(part)[address] for part in parts) for address in ADDRESSES}
    for address, standing in standing_of(both).items():
        entry_is_at_horizon = expected[address] <= (both.horizon, False) and address not in both.entries
        assert standing == ((both.horizon, False) if entry_is_at_horizon else expected[address])


class TableMachine(RuleBasedStateMachine):
    """Tables that change, forget and merge. What an address counts as never goes back."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = [MembershipTable(f"own{number}:80", 100, 100) for number in range(TABLES)]
        self.standings = [standing_of(table) for table in self.tables]

    @rule(at=st.integers(0, TABLES - 1), address=st.sampled_from(ADDRESSES), stamp=stamps)
    def add(self, at: int, address: str, stamp: int) -> None:
        self.tables[at].add(address, stamp)
        assert self.tables[at].belongs(address)

    @rule(at=st.integers(0, TABLES - 1), address=st.sampled_from(ADDRESSES), stamp=stamps)
    def remove(self, at: int, address: str, stamp: int) -> None:
        self.tables[at].remove(address, stamp)
        assert not self.tables[at].belongs(address)
        assert address in self.tables[at].entries

    @rule(at=st.integers(0, TABLES - 1), address=st.sampled_from(ADDRESSES), incarnation=st.integers(1, 4))
    def hear_of_an_incarnation(self, at: int, address: str, incarnation: int) -> None:
        table = self.tables[at]
        table.merge({**table.entries, address: MembershipEntry(incarnation, 0, True)}, table.horizon)

    @rule(at=st.integers(0, TABLES - 1), rng=st.randoms(use_true_random=False))
    def forget(self, at: int, rng: Random) -> None:
        table = self.tables[at]
        table.forget([address for address in table.removed() if rng.random() < 0.5])

    @rule(source=st.integers(0, TABLES - 1), at=st.integers(0, TABLES - 1))
    def merge(self, source: int, at: int) -> None:
        self.tables[at].merge(*contents_of(self.tables[source]))

    @invariant()
    def nothing_goes_back(self) -> None:
        standings = [standing_of(table) for table in self.tables]
        for before, after in zip(self.standings, standings, strict=True):
            assert all(after[address] >= before[address] for address in ADDRESSES)
        self.standings = standings

    @invariant()
    def digests_are_equal_exactly_if_tables_are(self) -> None:
        for one in self.tables:
            for other in self.tables:
                assert (one.digest == other.digest) == (contents_of(one) == contents_of(other))

    def teardown(self) -> None:
        """Tables that go on merging each other become equal, whatever they have forgotten."""
        for _ in range(TABLES):
            for source in range(TABLES):
                for at in range(TABLES):
                    self.merge(source, at)
        assert contents_of(self.tables[0]) == contents_of(self.tables[1]) == contents_of(self.tables[2])


TestTables = TableMachine.TestCase
TestTables.settings = settings(
    max_examples=200, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


# -- single rules ------------------------------------------------------------------------------------------------------


def incarnation(start_us: int) -> int:
    """Return an incarnation that started then, to the millisecond."""
    return (start_us // 1000) << INCARNATION_RANDOM_BITS | 5


OLD, NEW = incarnation(1_000_000), incarnation(3_000_000)


@pytest.mark.parametrize("is_known_first", [False, True])
def test_a_removal_covers_an_incarnation_that_started_before_it_known_or_not(is_known_first: bool) -> None:
    table = table_of()
    entry = MembershipEntry(OLD, start_us_of(OLD), True)
    if is_known_first:
        table.merge({"a:80": entry})
    assert table.remove("a:80", 2_000_000) is is_known_first
    table.merge({"a:80": entry})
    assert not table.belongs("a:80")
    assert table.has_ended(replica_id("a:80", OLD))
    assert not table.has_ended(replica_id("a:80", NEW)), "it started after the removal"
    table.merge({"a:80": MembershipEntry(NEW, start_us_of(NEW), True)})
    assert table.belongs("a:80")
    assert table.has_ended(replica_id("a:80", OLD))
    assert not table.has_ended(replica_id("a:80", NEW))


def test_the_mark_of_a_process_that_left_stays_until_the_next_change_and_no_other_change_has_it() -> None:
    table = MembershipTable("own:80", 100, 100)
    table.start(incarnation(LEAVE_MARK), LEAVE_MARK)
    table.leave()
    left = table.entries["own:80"]
    assert left.has_left
    assert left.stamp > LEAVE_MARK
    table.take_back_times(LEAVE_MARK, left.incarnation, LEAVE_MARK)
    assert table.entries["own:80"].has_left
    for stamp in (LEAVE_MARK, LEAVE_MARK - 1, 0, 1 << 50 | LEAVE_MARK):
        table.remove("own:80", stamp)
        assert not table.entries["own:80"].has_left
    table.remove("other:80", 1 << 51)
    table.take_back_times(1 << 50, left.incarnation, LEAVE_MARK)
    assert not table.entries["other:80"].has_left
    table.add("own:80", 1 << 52)
    assert not table.entries["own:80"].has_left


def test_the_removal_of_a_process_that_left_covers_it_and_those_before_it_only() -> None:
    table = MembershipTable("r1:80", 100, 100)
    table.start(incarnation(5_000_000), 100_000_000)
    table.leave()
    assert table.has_ended(replica_id("r1:80", incarnation(5_000_000)))
    assert table.has_ended(replica_id("r1:80", incarnation(4_000_000)))
    assert not table.has_ended(replica_id("r1:80", incarnation(6_000_000)))


def test_a_horizon_has_no_mark_when_a_process_that_left_is_forgotten() -> None:
    """Otherwise an older removal by a command, which a merge raises to the horizon, would have the mark."""
    left = MembershipEntry(1, LEAVE_MARK, belongs=False)
    table, full = MembershipTable("own:80", 100, 100), MembershipTable("own:80", 1, 0)
    table.merge({"left:80": left})
    table.forget(["left:80"])
    full.merge({"left:80": left, "member:80": MembershipEntry(1, 1, belongs=True)})
    assert table.horizon == full.horizon == LEAVE_MARK + 1
    table.merge({"left:80": left})
    assert "left:80" not in table.entries


def test_an_address_without_entry_has_ended_incarnations_below_the_horizon_only() -> None:
    table = table_of()
    assert not table.has_ended(replica_id("a:80", OLD)), "nobody was ever removed"
    table.remove("b:80", 2_000_000)
    assert not table.has_ended(replica_id("a:80", OLD)), "another address was removed"
    table.forget(["b:80"])
    assert table.has_ended(replica_id("a:80", OLD))
    assert table.has_ended(replica_id("b:80", OLD))
    assert not table.has_ended(replica_id("a:80", NEW))
    assert not table.has_ended("a:80")


def test_what_is_forgotten_here_is_not_brought_back_by_a_table_that_has_it() -> None:
    one, other = table_of(), table_of()
    one.remove("a:80", 5)
    other.merge(*contents_of(one))
    one.forget(["a:80"])
    one.merge(*contents_of(other))
    assert contents_of(one) == ({}, 5)
    other.merge(*contents_of(one))
    assert contents_of(other) == ({}, 5)


def test_a_member_stays_below_the_horizon_if_both_tables_have_it() -> None:
    one, other = table_of(), table_of()
    one.add("member:80", 1)
    other.merge(*contents_of(one))
    one.remove("a:80", 5)
    one.forget(["a:80"])
    other.merge(*contents_of(one))
    assert other.members == one.members == ("member:80",)


def test_a_change_after_forgetting_is_above_the_horizon() -> None:
    table = table_of()
    table.remove("a:80", 5)
    table.forget(["a:80"])
    table.add("a:80", 1)
    table.add("b:80", 2)
    table.remove("c:80", 3)
    assert [entry.stamp for entry in table.entries.values()] == [6, 6, 6]
    merged = table_of(({}, 5), contents_of(table))
    assert merged.members == ("a:80", "b:80")


def test_the_own_entry_is_not_forgotten() -> None:
    table = table_of()
    table.start(OLD, start_us_of(OLD))
    table.merge({}, 2_000_000)
    assert table.entries == {"own:80": MembershipEntry(OLD, 2_000_000, False)}
    assert table.removed() == []


def test_a_full_table_forgets_its_oldest_removals_and_never_a_member() -> None:
    table = MembershipTable("own:80", 3, 1)
    table.start(1, 1)
    table.remove("a:80", 10)
    table.remove("b:80", 20)
    assert table.add("c:80", 30)
    assert table.entries.keys() == {"own:80", "b:80", "c:80"}
    assert table.horizon == 10
    table.merge({"own:80": table.entries["own:80"], "d:80": MembershipEntry(1, 40, True)}, 0)
    assert table.entries.keys() == {"own:80", "c:80", "d:80"}
    assert table.horizon == 20
    before = contents_of(table)
    with pytest.raises(BadMessage, match="more than 3 addresses"):
        table.add("e:80", 50)
    with pytest.raises(BadMessage, match="more than 3 addresses"):
        table.merge({"e:80": MembershipEntry(1, 50, True)})
    with pytest.raises(TableFull, match="more than 3 addresses"):
        table.remove("e:80", 50)
    assert contents_of(table) == before


def test_a_full_table_has_room_for_the_removal_of_each_member() -> None:
    table = MembershipTable("own:80", 3, 0)
    table.start(1, 1)
    table.add("a:80", 10)
    table.add("b:80", 20)
    for number, address in enumerate(["a:80", "b:80", "own:80"]):
        assert table.remove(address, 30 + number)
    assert table.left == ("a:80", "b:80", "own:80")
    assert not table.remove("e:80", 50), "the removals make room for others"
    assert "e:80" in table.entries
