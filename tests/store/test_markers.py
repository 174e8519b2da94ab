"""Markers: when they may be used, and what they stand for."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from store.causal import CausalStore
from store.clock import Clock, covers
from store.markers import Marker, Markers
from store.versions import Update
from tests.support.wire import NOW, write

PRESENT = {"a", "b"}


def usable(*markers: Marker, everybody: Clock | None = None) -> Markers:
    made = Markers()
    for marker in markers:
        made.add(marker)
    made.promote({marker.origin: marker.counter for marker in markers} if everybody is None else everybody, PRESENT)
    return made


def test_a_marker_replaces_entries_of_ids_that_are_not_present_up_to_what_it_covers() -> None:
    markers = usable(Marker("a", 5, {"old": 3, "b": 2}))
    assert markers.simplify({"old": 3}) == {"a": 5}
    assert markers.simplify({"old": 1, "b": 1}) == {"a": 5, "b": 1}
    assert markers.simplify({"old": 4}) == {"old": 4}
    assert markers.simplify({"a": 9, "old": 2}) == {"a": 9}
    assert markers.simplify({"a": 1, "old": 2}) == {"a": 5}


def test_entries_of_present_incarnations_are_never_replaced() -> None:
    markers = usable(Marker("a", 5, {"b": 2, "old": 1}))
    assert markers.simplify({"b": 1}) == {"b": 1}


def test_a_past_that_needs_nothing_comes_back_as_it_is() -> None:
    past = {"a": 1, "b": 2}
    assert usable(Marker("a", 5, {"old": 3})).simplify(past) is past
    assert Markers().simplify({"old": 3}) == {"old": 3}


def test_a_marker_is_not_used_before_every_member_has_it() -> None:
    markers = usable(Marker("a", 5, {"old": 3}), everybody={"a": 4})
    assert markers.simplify({"old": 3}) == {"old": 3}
    assert markers.all()
    markers.promote({"a": 5}, PRESENT)
    assert markers.simplify({"old": 3}) == {"a": 5}


def test_once_usable_it_stays_so_when_a_member_joins_that_is_behind() -> None:
    markers = usable(Marker("a", 5, {"old": 3}))
    markers.promote({}, PRESENT | {"c"})
    assert markers.simplify({"old": 3}) == {"a": 5}


def test_the_marker_that_covers_most_of_an_entry_is_used() -> None:
    markers = usable(Marker("a", 5, {"old": 3}), Marker("b", 2, {"old": 7}))
    assert markers.simplify({"old": 6}) == {"b": 2}


def test_a_later_marker_of_the_same_replica_supersedes() -> None:
    markers = usable(Marker("a", 5, {"old": 3}), Marker("a", 9, {"old": 3, "older": 1}))
    assert markers.all() == [Marker("a", 9, {"old": 3, "older": 1})]
    assert markers.simplify({"old": 3, "older": 1}) == {"a": 9}


def test_a_marker_of_an_incarnation_that_is_over_goes_once_another_stands_for_its_dot() -> None:
    first, second = Marker("dead", 5, {"old": 3}), Marker("a", 1, {"dead": 5, "old": 3})
    markers = usable(first)
    assert markers.all() == [first]
    markers.add(second)
    markers.promote({"a": 1}, PRESENT)
    assert markers.all() == [second]
    assert markers.simplify({"old": 3, "dead": 5}) == {"a": 1}


def test_a_marker_that_only_one_of_an_over_incarnation_would_replace_is_kept() -> None:
    """The later one must be of a present incarnation, or metadata would name one that is over."""
    first, second = Marker("dead", 5, {"old": 3}), Marker("gone", 1, {"dead": 5, "old": 3})
    assert usable(first, second).all() == [first, second]


def test_noting_again_is_harmless() -> None:
    markers = usable(Marker("a", 5, {"old": 3}))
    markers.add(Marker("a", 5, {"old": 3}))
    assert len(markers.all()) == 1


def test_whether_one_marker_of_a_present_incarnation_stands_for_all_entries() -> None:
    markers = Markers()
    markers.add(Marker("a", 1, {"x": 3}))
    markers.add(Marker("dead", 1, {"x": 3, "y": 3}))
    assert markers.cover_retired({"x": 2}, PRESENT)
    assert markers.cover_retired({}, PRESENT)
    assert not markers.cover_retired({"x": 4}, PRESENT)
    assert not markers.cover_retired({"x": 1, "y": 1}, PRESENT)


def test_a_marker_of_a_store_stands_for_its_whole_clock() -> None:
    store, other = CausalStore("a"), CausalStore("old")
    store.receive([write(other, "x", b"1")], NOW)
    write(store, "y", b"1")
    update = store.issue_marker(NOW)
    assert update.writes == ()
    assert store.markers.all() == [Marker("a", 2, {"old": 1})]
    assert len(store.table) == 2


def test_markers_travel_with_updates_and_with_snapshots() -> None:
    giver, by_update, by_snapshot = CausalStore("a"), CausalStore("b"), CausalStore("c")
    update = giver.issue_marker(NOW)
    by_update.receive([update], NOW)
    by_snapshot.join(giver.snapshot(NOW), NOW)
    assert by_update.markers.all() == by_snapshot.markers.all() == giver.markers.all()


# -- simple metadata demands the same as metadata in full ----------------------------------------------------------


@dataclass
class World:
    """Members' clocks over a history in which every update's past is known; ``markers``: those issued."""

    clocks: list[Clock] = field(default_factory=list)
    markers: list[Marker] = field(default_factory=list)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Return three members that issue markers and take over each other's clocks; ids x and y are over."""
    ids = ["a", "b", "c"]
    clocks: list[Clock] = [{"x": draw(st.integers(1, 3)), "y": draw(st.integers(1, 3))} for _ in ids]
    markers: list[Marker] = []
    pasts: dict[tuple[str, int], Clock] = {}
    for at, other, issues in draw(
        st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=10)
    ):
        own = clocks[at]
        if issues:
            counter = own.get(ids[at], 0) + 1
            past = {id_: n for id_, n in own.items() if id_ != ids[at]}
            markers.append(Marker(ids[at], counter, past))
            pasts[ids[at], counter] = dict(own)
            own[ids[at]] = counter
        else:
            for id_, counter in clocks[other].items():
                own[id_] = max(own.get(id_, 0), counter)
    return World(clocks, markers)


@given(
    worlds(),
    st.dictionaries(st.sampled_from(["x", "y", "a", "b", "c"]), st.integers(1, 4), max_size=5),
    st.integers(0, 2),
)
def test_simple_metadata_is_covered_by_exactly_those_members_that_cover_it_in_full(
    world: World, past: Clock, at: int
) -> None:
    here = world.clocks[at]
    past = {id_: counter for id_, counter in past.items() if counter <= here.get(id_, 0)}
    markers = Markers()
    for marker in world.markers:
        if marker.counter <= here.get(marker.origin, 0):
            markers.add(marker)
    everybody = {id_: min(clock.get(id_, 0) for clock in world.clocks) for id_ in here}
    markers.promote(everybody, {"a", "b", "c"})
    simple = markers.simplify(past)
    for clock in world.clocks:
        assert covers(clock, simple) == covers(clock, past)
    if any(marker.counter <= everybody.get(marker.origin, 0) for marker in world.markers):
        assert markers.simplify(simple) == simple


def test_updates_issued_after_a_marker_name_it_instead_of_what_it_stands_for() -> None:
    store, old = CausalStore("a"), CausalStore("old")
    store.present_ids = {"a"}
    store.receive([write(old, "x", b"1")], NOW)
    marker = store.issue_marker(NOW)
    store.markers.promote({"a": marker.counter}, {"a"})
    update: Update = write(store, "x", b"2")
    assert update.deps == {}
    assert update.past == {"a": 2}
