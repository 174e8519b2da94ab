"""Markers: when they become usable, and which clock entries they replace."""

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


def usable(*markers: Marker, common_clock: Clock | None = None) -> Markers:
    made = Markers()
    for marker in markers:
        made.add(marker)
    made.promote(
        {marker.origin: marker.counter for marker in markers} if common_clock is None else common_clock, PRESENT
    )
    return made


def test_marker_replaces_retired_entries_that_it_covers() -> None:
    markers = usable(Marker("a", 5, {"old": 3, "b": 2}))
    assert markers.simplify({"old": 3}) == {"a": 5}
    assert markers.simplify({"old": 1, "b": 1}) == {"a": 5, "b": 1}
    assert markers.simplify({"old": 4}) == {"old": 4}
    assert markers.simplify({"a": 9, "old": 2}) == {"a": 9}
    assert markers.simplify({"a": 1, "old": 2}) == {"a": 5}


def test_entries_of_present_incarnations_stay() -> None:
    markers = usable(Marker("a", 5, {"b": 2, "old": 1}))
    assert markers.simplify({"b": 1}) == {"b": 1}


def test_simplify_returns_an_unchanged_past_itself() -> None:
    past = {"a": 1, "b": 2}
    assert usable(Marker("a", 5, {"old": 3})).simplify(past) is past
    assert Markers().simplify({"old": 3}) == {"old": 3}


def test_marker_is_unusable_until_every_member_has_it() -> None:
    markers = usable(Marker("a", 5, {"old": 3}), common_clock={"a": 4})
    assert markers.simplify({"old": 3}) == {"old": 3}
    assert markers.all()
    markers.promote({"a": 5}, PRESENT)
    assert markers.simplify({"old": 3}) == {"a": 5}


def test_usable_marker_stays_usable_when_a_member_joins() -> None:
    markers = usable(Marker("a", 5, {"old": 3}))
    markers.promote({}, PRESENT | {"c"})
    assert markers.simplify({"old": 3}) == {"a": 5}


def test_marker_with_the_highest_entry_is_used() -> None:
    markers = usable(Marker("a", 5, {"old": 3}), Marker("b", 2, {"old": 7}))
    assert markers.simplify({"old": 6}) == {"b": 2}


def test_later_marker_of_the_same_replica_supersedes() -> None:
    markers = usable(Marker("a", 5, {"old": 3}), Marker("a", 9, {"old": 3, "older": 1}))
    assert markers.all() == [Marker("a", 9, {"old": 3, "older": 1})]
    assert markers.simplify({"old": 3, "older": 1}) == {"a": 9}


def test_marker_of_an_ended_incarnation_is_dropped_when_covered() -> None:
    first, second = Marker("dead", 5, {"old": 3}), Marker("a", 1, {"dead": 5, "old": 3})
    markers = usable(first)
    assert markers.all() == [first]
    markers.add(second)
    markers.promote({"a": 1}, PRESENT)
    assert markers.all() == [second]
    assert markers.simplify({"old": 3, "dead": 5}) == {"a": 1}


def test_marker_is_kept_if_only_an_ended_incarnation_covers_it() -> None:
    """Only a marker of a present incarnation supersedes. Otherwise metadata would contain retired entries."""
    first, second = Marker("dead", 5, {"old": 3}), Marker("gone", 1, {"dead": 5, "old": 3})
    assert usable(first, second).all() == [first, second]


def test_adding_a_marker_twice_has_no_effect() -> None:
    markers = usable(Marker("a", 5, {"old": 3}))
    markers.add(Marker("a", 5, {"old": 3}))
    assert len(markers.all()) == 1


def test_cover_retired_needs_one_marker_of_a_present_incarnation() -> None:
    markers = Markers()
    markers.add(Marker("a", 1, {"x": 3}))
    markers.add(Marker("dead", 1, {"x": 3, "y": 3}))
    assert markers.cover_retired({"x": 2}, PRESENT)
    assert markers.cover_retired({}, PRESENT)
    assert not markers.cover_retired({"x": 4}, PRESENT)
    assert not markers.cover_retired({"x": 1, "y": 1}, PRESENT)


def test_past_of_an_issued_marker_is_the_whole_clock() -> None:
    store, other = CausalStore("a"), CausalStore("old")
    store.receive([write(other, "x", b"1")], NOW)
    write(store, "y", b"1")
    update = store.issue_marker(NOW)
    assert update.writes == ()
    assert store.markers.all() == [Marker("a", 2, {"old": 1})]
    assert len(store.table) == 2


def test_updates_and_snapshots_carry_markers() -> None:
    giver, by_update, by_snapshot = CausalStore("a"), CausalStore("b"), CausalStore("c")
    update = giver.issue_marker(NOW)
    by_update.receive([update], NOW)
    by_snapshot.join(giver.snapshot(NOW), NOW)
    assert by_update.markers.all() == by_snapshot.markers.all() == giver.markers.all()


# -- simplified metadata is covered by the same clocks as full metadata ----------------------------


@dataclass
class World:
    """The clocks of three members after a random history, and the markers that they issued."""

    clocks: list[Clock] = field(default_factory=list)
    markers: list[Marker] = field(default_factory=list)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """Return three members that issue markers and join each other's clocks. The incarnations x and y have ended."""
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
def test_members_cover_simplified_metadata_exactly_if_they_cover_the_full_one(
    world: World, past: Clock, at: int
) -> None:
    here = world.clocks[at]
    past = {id_: counter for id_, counter in past.items() if counter <= here.get(id_, 0)}
    markers = Markers()
    for marker in world.markers:
        if marker.counter <= here.get(marker.origin, 0):
            markers.add(marker)
    common_clock = {id_: min(clock.get(id_, 0) for clock in world.clocks) for id_ in here}
    markers.promote(common_clock, {"a", "b", "c"})
    simplified = markers.simplify(past)
    for clock in world.clocks:
        assert covers(clock, simplified) == covers(clock, past)
    if any(marker.counter <= common_clock.get(marker.origin, 0) for marker in world.markers):
        assert markers.simplify(simplified) == simplified


def test_later_updates_depend_on_the_marker_and_not_on_retired_entries() -> None:
    store, old = CausalStore("a"), CausalStore("old")
    store.present_ids = {"a"}
    store.receive([write(old, "x", b"1")], NOW)
    marker = store.issue_marker(NOW)
    store.markers.promote({"a": marker.counter}, {"a"})
    update: Update = write(store, "x", b"2")
    assert update.deps == {}
    assert update.past == {"a": 2}
