"""Views of several replicas against a model: sets of entries of which the highest wins, and lists of signs of life."""

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
from store.clock import replica_id

ADDRESSES = tuple(f"r{number}:80" for number in range(4))
VIEWS = 3
SETTINGS = ReplicationSettings()

at_view = st.integers(0, VIEWS - 1)
addresses = st.sampled_from(ADDRESSES)
stamps = st.integers(1, 60)
"""Few and in any order: clocks that are off, and changes at the same microsecond."""


@dataclass
class Known:
    """What the model says that one view knows: entries by address, signs of life by id, and what it let in when."""

    entries: dict[str, set[MembershipEntry]] = field(default_factory=dict)
    signs: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    expected: dict[str, float] = field(default_factory=dict)

    def register(self) -> dict[str, MembershipEntry]:
        return {address: max(entries, key=lambda entry: entry.rank) for address, entries in self.entries.items()}

    def last_sign(self, replica: str) -> float | None:
        """A sign counts when its beat is above all beats before it; it never makes the last contact older."""
        highest, at_s = -1, None
        for heartbeat, heard_s in self.signs.get(replica, []):
            if heartbeat > highest:
                highest, at_s = heartbeat, heard_s if at_s is None else max(at_s, heard_s)
        return at_s


class Views(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.views = [Membership(ADDRESSES[number], SETTINGS) for number in range(VIEWS)]
        self.known = [Known() for _ in range(VIEWS)]
        self.now_s = 100.0
        self.beats: dict[str, int] = {}
        self.spoke_s: dict[str, float] = {}
        self.removed: list[tuple[str, MembershipEntry]] = []
        self.let_in: list[tuple[str, MembershipEntry]] = []

    def write(self, at: int, address: str) -> None:
        """Note the entry that a view has just written; it must win over all that the view knew of the address."""
        entry = self.views[at].table.entries[address]
        known = self.known[at].entries.setdefault(address, set())
        assert all(entry.rank > other.rank for other in known)
        known.add(entry)
        (self.let_in if entry.belongs else self.removed).append((address, entry))

    @initialize()
    def begin(self) -> None:
        for at in range(VIEWS):
            self.start(at, 0, 1)

    # -- who belongs -----------------------------------------------------------------------------------

    @rule(at=at_view, above=st.integers(0, 2), stamp=stamps)
    def start(self, at: int, above: int, stamp: int) -> None:
        """A process starts at the address of a view: above all incarnations that it knows of."""
        view = self.views[at]
        known = view.table.entries.get(view.address)
        view.start((known.incarnation if known else 0) + 1 + above, stamp)
        self.write(at, view.address)

    @rule(at=at_view, address=addresses, stamp=stamps)
    def add(self, at: int, address: str, stamp: int) -> None:
        belonged = self.views[at].table.belongs(address)
        assert self.views[at].add_replica_from_view(address, stamp, self.now_s) is not belonged
        if not belonged:
            self.write(at, address)
            self.known[at].expected[address] = self.now_s

    @rule(at=at_view, address=addresses, stamp=stamps)
    def remove(self, at: int, address: str, stamp: int) -> None:
        belonged = self.views[at].table.belongs(address)
        assert self.views[at].remove_replica_from_view(address, stamp, self.now_s) is belonged
        if belonged:
            self.write(at, address)

    @rule(source=at_view, at=at_view)
    def merge(self, source: int, at: int) -> None:
        register = dict(self.views[source].table.entries)
        before = dict(self.views[at].table.entries)
        changed = self.views[at].merge(register)
        for address, entry in register.items():
            self.known[at].entries.setdefault(address, set()).add(entry)
        assert bool(changed) is (self.views[at].table.entries != before)
        assert self.views[at].merge(register) == {}

    # -- who is reachable ------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 0.5, 1.0, 1.6, 2.8]))
    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds

    @rule(at=at_view, address=addresses)
    def hear(self, at: int, address: str) -> None:
        """The present incarnation at an address, as a view knows it, talks to that view."""
        replica = self.views[at].table.present_id(address)
        if replica is not None:
            self.beats[replica] = self.beats.get(replica, 0) + 1
            self.spoke_s[replica] = self.now_s
            self._sign(at, replica, self.beats[replica], self.now_s)

    @rule(at=at_view, address=addresses, back=st.integers(0, 3), age_s=st.sampled_from([0.0, 1.0, 5.0]))
    def hear_again(self, at: int, address: str, back: int, age_s: float) -> None:
        """An old message arrives late: what it says is not new."""
        replica = self.views[at].table.present_id(address)
        if replica is not None and self.beats.get(replica, 0) > back:
            spoke_s = self.spoke_s[replica]
            self._sign(at, replica, self.beats[replica] - back, min(self.now_s, spoke_s) - age_s)

    @rule(source=at_view, at=at_view)
    def gossip(self, source: int, at: int) -> None:
        for replica, heard in self.views[source].liveness_report((), self.now_s).items():
            self._sign(at, replica, heard.heartbeat, self.now_s - heard.age_ms / 1000)

    def _sign(self, at: int, replica: str, heartbeat: int, at_s: float) -> None:
        self.views[at].liveness.hear(replica, heartbeat, at_s)
        self.known[at].signs.setdefault(replica, []).append((heartbeat, at_s))

    # -- invariants ------------------------------------------------------------------------------------

    @invariant()
    def the_highest_entry_wins(self) -> None:
        for view, known in zip(self.views, self.known, strict=True):
            expected = known.register()
            assert view.table.entries == expected
            members = sorted(address for address, entry in expected.items() if entry.belongs)
            assert list(view.table.members) == members
            assert list(view.table.others) == [address for address in members if address != view.address]
            assert list(view.table.left) == sorted(expected.keys() - set(members))
            present = {replica_id(address, expected[address].incarnation) for address in members}
            assert view.table.present == {id_ for id_ in present if not id_.endswith("@" + "0" * 16)}

    @invariant()
    def equal_registers_and_no_others_have_equal_digests(self) -> None:
        for view in self.views:
            for other in self.views:
                assert (view.table.digest == other.table.digest) == (view.table.entries == other.table.entries)

    @invariant()
    def what_was_removed_stays_out_until_it_is_let_in_or_starts(self) -> None:
        """Where a view knows of a removal, an address is in only by a later PUT, or start, than that."""
        for view, known in zip(self.views, self.known, strict=True):
            for address, removal in self.removed:
                if removal in known.entries.get(address, set()) and view.table.belongs(address):
                    later = [entry for at, entry in self.let_in if at == address and entry.rank > removal.rank]
                    assert view.table.entries[address] in later

    @invariant()
    def lower_incarnations_are_over_and_others_are_not(self) -> None:
        for view in self.views:
            for address, entry in view.table.entries.items():
                assert not entry.incarnation or view.table.is_superseded(replica_id(address, entry.incarnation - 1))
                assert not view.table.is_superseded(replica_id(address, entry.incarnation))
                assert not view.table.is_superseded(replica_id(address, entry.incarnation + 1))

    @invariant()
    def states_follow_from_the_last_sign_of_life(self) -> None:
        for view, known in zip(self.views, self.known, strict=True):
            for address in ADDRESSES:
                assert view.state(address, self.now_s) == self.expected_state(view, known, address)
            alive = [address for address in view.table.members if view.state(address, self.now_s) != "down"]
            assert view.live(self.now_s) == alive
            assert view.address in alive or not view.table.belongs(view.address)

    def expected_state(self, view: Membership, known: Known, address: str) -> str:
        entry = known.register().get(address)
        if entry is None or not entry.belongs:
            known.expected.pop(address, None)
            return "left"
        if address == view.address:
            return "alive"
        sign = known.last_sign(replica_id(address, entry.incarnation)) if entry.incarnation else None
        signs = [at_s for at_s in (sign, known.expected.get(address)) if at_s is not None]
        age_s = self.now_s - max(signs, default=float("-inf"))
        if age_s >= SETTINGS.silent_after_s:
            return "down"
        return "suspect" if age_s >= SETTINGS.suspect_after_s else "alive"

    @invariant()
    def hearsay_keeps_nobody_alive(self) -> None:
        """Nobody believes a replica to have lived after it last talked, over however many mouths it comes."""
        for view in self.views:
            for replica, contact in view.liveness._contacts.items():
                assert contact.heartbeat <= self.beats[replica]
                assert contact.at_s <= self.spoke_s[replica] + 0.02

    @invariant()
    def contacts_of_incarnations_that_are_over_do_not_pile_up(self) -> None:
        for view in self.views:
            assert view.liveness_report((), self.now_s).keys() <= view.table.present
            assert len(view.liveness._contacts) <= 2 * len(ADDRESSES)

    def teardown(self) -> None:
        """Views that have talked with each other are equal."""
        for source in (*range(VIEWS), *range(VIEWS)):
            for at in range(VIEWS):
                self.merge(source, at)
        assert self.views[0].table.entries == self.views[1].table.entries == self.views[2].table.entries


TestViews = Views.TestCase
TestViews.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)


entries = st.builds(MembershipEntry, st.integers(0, 3), st.integers(0, 3), st.booleans())
registers = st.dictionaries(addresses, entries)


@given(st.lists(registers, max_size=5), st.randoms(use_true_random=False))
def test_registers_merge_to_the_same_in_any_order(parts: list[dict[str, MembershipEntry]], rng: object) -> None:
    one, other = Membership("r9:80", SETTINGS), Membership("r9:80", SETTINGS)
    for part in parts:
        one.merge(part)
    shuffled = list(parts)
    rng.shuffle(shuffled)  # type: ignore[attr-defined]
    for part in (*shuffled, *shuffled[:1]):
        other.merge(part)
    assert one.table.entries == other.table.entries
    assert one.table.digest == other.table.digest


def test_a_register_that_would_be_too_long_is_refused_whole() -> None:
    view = Membership("r1:80", ReplicationSettings(max_members=2))
    view.start(1, 1)
    view.merge({"r2:80": MembershipEntry(1, 1, True)})
    before = dict(view.table.entries)
    with pytest.raises(BadMessage):
        view.merge({"r2:80": MembershipEntry(2, 1, True), "r3:80": MembershipEntry(1, 1, True)})
    with pytest.raises(BadMessage):
        view.add_replica_from_view("r3:80", 1, 0.0)
    assert view.table.entries == before
    assert view.merge({"r2:80": MembershipEntry(2, 1, True)})


def test_one_that_was_let_in_is_shown_until_it_has_had_the_time_to_answer() -> None:
    view = Membership("r1:80", SETTINGS)
    view.start(1, 1)
    view.add_replica_from_view("r2:80", 1, 10.0)
    assert view.live(12.0) == ["r1:80", "r2:80"]
    assert view.live(13.0) == ["r1:80"]


def test_a_view_changes_before_down_after_is_over() -> None:
    view = Membership("r1:80", SETTINGS)
    view.start(1, 1)
    view.merge({"r2:80": MembershipEntry(5, 1, True)})
    view.liveness.hear(replica_id("r2:80", 5), 1, 10.0)
    assert view.state("r2:80", 10.0 + SETTINGS.down_after_s) == "down"
    assert view.liveness.is_silent(replica_id("r2:80", 5), 0.0, 10.0 + SETTINGS.down_after_s)
    assert not view.liveness.is_silent(replica_id("r2:80", 5), 0.0, 11.0)
    assert view.liveness.is_silent("unheard", 5.0, 8.0)
    assert not view.liveness.is_silent("unheard", 7.0, 8.0)
