"""Values that merge, against simple models: sets of writes in place of sums and ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from itertools import permutations
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from store.merging import (
    KINDS,
    MAX_INT,
    MAX_ITEMS,
    MAX_OWN_ENTRIES,
    MAX_TIPS,
    MAX_UINT,
    MIN_INT,
    Increment,
    MapChange,
    MergeError,
    MergingKind,
    Operation,
    SetChange,
    State,
    Tips,
    applied,
    creates,
    decode,
    element_of,
    encode,
    folded,
    join,
    value_of,
)
from tools.simulation.merge_model import Model

ORIGINS = ("a:1@1", "b:1@1", "c:1@1")
ELEMENTS: list[Any] = ["x", "y", 1, 2.5]
FIELDS = ["f", "g"]

elements = st.lists(st.sampled_from(ELEMENTS), max_size=2, unique=True)
names = st.lists(st.sampled_from(FIELDS), max_size=2, unique=True)


def set_change(add: list[Any], remove: list[Any]) -> SetChange:
    return SetChange(tuple(add), tuple(each for each in remove if each not in add))


def map_change(fields: list[str], unset: list[str], number: int) -> MapChange:
    return MapChange(
        tuple((name, msgspec.json.encode(number)) for name in fields),
        tuple(name for name in unset if name not in fields),
    )


operations: dict[MergingKind, st.SearchStrategy[Any]] = {
    "counter": st.builds(Increment, st.integers(-5, 5) | st.sampled_from([MIN_INT, MAX_INT])),
    "set": st.builds(set_change, elements, elements),
    "map": st.builds(map_change, names, names, st.integers(0, 99)),
}
steps = st.tuples(
    st.sampled_from(["patch", "patch", "patch", "receive", "receive", "delete"]),
    st.integers(0, 2),
    st.integers(0, 2),
)


@dataclass
class Replica:
    """One origin, which holds at most one state of the key; None: the key is absent."""

    origin: str
    state: State | None = None
    model: Model = field(default_factory=Model)
    counter: int = 0
    tips: Tips = field(default_factory=Tips)

    def patch(self, operation: Operation, time: int) -> None:
        self.counter += 1
        dot = (self.origin, self.counter)
        before = State(KINDS[type(operation)]) if self.state is None else self.state
        is_full = _own_entries(before).get(self.origin, 0) >= MAX_OWN_ENTRIES
        try:
            self.state = applied(before, operation, dot, time, self.tips.get("k"))
        except MergeError:
            assert is_full or self.leaves_64_bits(operation)
            return
        assert is_full or not self.leaves_64_bits(operation)
        self.tips.set("k", self.counter)
        self.model = self.model.applied(operation, dot, time)

    def leaves_64_bits(self, operation: Operation) -> bool:
        """Return whether an increment takes the sum out of 64 bits, or further out."""
        if not isinstance(operation, Increment):
            return False
        before = self.model.value("counter")
        after = before + operation.amount
        return bool(after > max(before, MAX_INT) or after < min(before, MIN_INT))

    def receive(self, other: Replica) -> None:
        if other.state is None:
            return
        self.state = other.state if self.state is None else join([self.state, other.state])
        self.model = self.model.join(other.model)

    def delete(self) -> None:
        self.state, self.model = None, Model()


def run(kind: MergingKind, script: list[Any]) -> list[Replica]:
    """Run the steps: (what, replica, other replica), operation."""
    replicas = [Replica(origin) for origin in ORIGINS]
    for time, ((what, i, j), operation) in enumerate(script, start=1):
        if what == "patch":
            replicas[i].patch(operation, time)
        elif what == "receive":
            replicas[i].receive(replicas[j])
        else:
            replicas[i].delete()
    return replicas


def shown(state: State) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value_of(state)))


KIND_NAMES: list[MergingKind] = ["counter", "set", "map"]
kinds_and_scripts = st.sampled_from(KIND_NAMES).flatmap(
    lambda kind: st.tuples(st.just(kind), st.lists(st.tuples(steps, operations[kind]), max_size=25))
)


@settings(max_examples=400, deadline=None)
@given(kinds_and_scripts)
def test_states_show_what_the_model_shows(case: tuple[MergingKind, list[Any]]) -> None:
    kind, script = case
    replicas = run(kind, script)
    for replica in replicas:
        if replica.state is not None and max(_own_entries(replica.state).values(), default=0) < MAX_OWN_ENTRIES:
            assert shown(replica.state) == replica.model.value(kind)
            assert all(replica.state.contains(dot) for dot in replica.model.writes)


def _own_entries(state: State) -> dict[str, int]:
    counts: dict[str, int] = {}
    for name in state.entries:
        counts[name.origin] = counts.get(name.origin, 0) + 1
    return counts


@settings(max_examples=300, deadline=None)
@given(kinds_and_scripts)
def test_joins_are_commutative_associative_and_idempotent(case: tuple[MergingKind, list[Any]]) -> None:
    states = [replica.state for replica in run(*case) if replica.state is not None]
    if not states:
        return
    joined = [reduce(lambda one, other: join([one, other]), order) for order in permutations(states)]
    assert all(each == joined[0] for each in joined)
    if len(states) == 3:
        one, two, three = states
        assert join([one, join([two, three])]) == joined[0]
    for state in states:
        assert join([state, state]) == state
        assert join([joined[0], state]) == joined[0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(steps, operations["counter"]), max_size=5))
def test_counters_beyond_64_bits_come_back(script: list[Any]) -> None:
    """Steps of 64 bits at any one replica bring the sum to zero, if there are few."""
    for replica in run("counter", script):
        while replica.state is not None and (total := replica.state.total()):
            replica.patch(Increment(max(min(-total, MAX_INT), MIN_INT)), 9)
            assert abs(replica.state.total()) < abs(total)
            assert decode("counter", encode(replica.state)) == replica.state


@settings(max_examples=300, deadline=None)
@given(kinds_and_scripts)
def test_states_come_back_from_their_stored_form(case: tuple[MergingKind, list[Any]]) -> None:
    for replica in run(*case):
        if replica.state is not None:
            decoded = decode(case[0], encode(replica.state))
            assert decoded == replica.state
            assert decode(case[0], encode(decoded)) == replica.state


def test_an_origin_whose_latest_entry_was_deleted_begins_a_new_one() -> None:
    """b keeps a's first increment alive, c its second; a has seen both deleted. Every increment counts once."""
    a, b, c = (Replica(origin) for origin in ORIGINS)
    a.patch(Increment(5), 1)
    b.receive(a)
    b.patch(Increment(1), 2)
    a.patch(Increment(10), 3)
    c.receive(a)
    c.patch(Increment(1), 4)
    a.delete()
    a.receive(b)
    a.patch(Increment(100), 5)
    a.receive(c)
    assert a.state is not None
    assert a.state.total() == 5 + 10 + 100 + 1 + 1


def test_many_such_entries_become_one() -> None:
    a, b = Replica(ORIGINS[0]), Replica(ORIGINS[1])
    for n in range(50):
        a.patch(Increment(1), n + 1)
        b.receive(a)
        b.patch(Increment(0), n + 1)
        a.patch(Increment(0), n + 1)
        a.delete()
        a.receive(b)
    assert a.state is not None
    assert len(a.state.entries) <= MAX_OWN_ENTRIES + 1
    assert a.state.total() == 50


def counter_of(entries: int) -> State:
    state = State("counter")
    for n in range(entries):
        state = applied(state, Increment(n + 1), (f"r:1@{n}", 1), 1, None)
    return state


def test_entries_of_ended_origins_become_one_in_two_steps() -> None:
    state = counter_of(9)
    ended = {f"r:1@{n}" for n in range(8)}
    marked = folded(state, ("r:1@8", 2), ended.__contains__, lambda: True)
    assert len(marked.entries) == 9
    base = folded(marked, ("r:1@8", 3), ended.__contains__, lambda: True)
    assert len(base.entries) == 2
    assert base.total() == state.total() == sum(range(1, 10))
    assert folded(base, ("r:1@8", 4), ended.__contains__, lambda: True) == base


def test_nothing_is_folded_before_the_mark_is_settled() -> None:
    ended = {"r:1@0", "r:1@1"}
    marked = folded(counter_of(3), ("r:1@2", 2), ended.__contains__, lambda: False)
    assert len(folded(marked, ("r:1@2", 3), ended.__contains__, lambda: False).entries) == 3


def test_a_base_replaces_marked_entries_in_a_join() -> None:
    ended = {"r:1@0", "r:1@1"}
    marked = folded(counter_of(3), ("r:1@2", 2), ended.__contains__, lambda: True)
    elsewhere = applied(marked, Increment(100), ("s:1@1", 1), 1, None)
    base = folded(marked, ("r:1@2", 3), ended.__contains__, lambda: True)
    joined = join([base, elsewhere])
    assert joined.total() == 6 + 100
    assert len(joined.entries) == 3


def test_a_counter_does_not_grow_with_restarts_or_operations() -> None:
    """Contract 2.10. Two members write; one of them restarts 500 times. 50,000 increments."""
    ended: set[str] = set()
    state = State("counter")
    counters = {"s:1@0": 0}
    for n in range(500):
        counters[f"r:1@{n}"] = 0
        for operation in range(100):
            origin = f"r:1@{n}" if operation % 2 else "s:1@0"
            tip, counters[origin] = counters[origin], counters[origin] + 1
            dot = (origin, counters[origin])
            state = folded(state, dot, ended.__contains__, lambda: True)
            state = applied(state, Increment(1), dot, 1, tip or None)
        assert len(state.entries) <= 3
        ended.add(f"r:1@{n}")
    assert state.total() == 50_000
    assert len(encode(state)) < 100


def test_entries_of_ended_origins_without_elements_leave_a_set() -> None:
    state = State("set")
    for n in range(5):
        state = applied(state, SetChange((n,), (n - 1,)), (f"r:1@{n}", 1), 1, None)
    ended = {f"r:1@{n}" for n in range(4)}
    assert folded(state, ("r:1@4", 2), ended.__contains__, lambda: False) == state
    less = folded(state, ("r:1@4", 2), ended.__contains__, lambda: True)
    assert {name.origin for name in less.entries} == {"r:1@4"}
    assert value_of(less) == [4]


def test_removed_elements_leave_nothing() -> None:
    state = State("set")
    for n in range(1, 1001):
        state = applied(state, SetChange((f"e{n}",), (f"e{n - 1}",)), ("a:1@1", n), n, n - 1)
    assert len(state.items) == len(state.entries) == 1


@pytest.mark.parametrize("amount", [1, MAX_INT])
def test_a_sum_beyond_64_bits_is_rejected(amount: int) -> None:
    state = applied(State("counter"), Increment(MAX_INT), ("a:1@1", 1), 1, None)
    with pytest.raises(MergeError, match="64-bit"):
        applied(state, Increment(amount), ("b:1@1", 1), 1, None)


def test_a_step_towards_64_bits_is_accepted() -> None:
    """The sum of three concurrent increments stays outside after one step."""
    state = join([applied(State("counter"), Increment(MAX_INT), (origin, 1), 1, None) for origin in ORIGINS])
    with pytest.raises(MergeError, match="64-bit"):
        applied(state, Increment(1), (ORIGINS[0], 2), 1, 1)
    for counter in (2, 3, 4):
        state = applied(state, Increment(-MAX_INT), (ORIGINS[0], counter), 1, counter - 1)
        assert decode("counter", encode(state)) == state
    assert state.total() == 0


def test_an_increment_beyond_64_bits_of_one_origin_begins_another_entry() -> None:
    """Only the sum of all origins has to be a 64-bit integer."""
    one = applied(State("counter"), Increment(MAX_INT), ("a:1@1", 1), 1, None)
    both = applied(one, Increment(MIN_INT), ("b:1@1", 1), 1, None)
    more = applied(both, Increment(5), ("a:1@1", 2), 1, 1)
    assert more.total() == 4
    assert len(more.entries) == 3
    assert decode("counter", encode(more)) == more
    assert join([more, one, both]) == more
    assert len(applied(more, Increment(5), ("a:1@1", 3), 1, 2).entries) == 3


def test_entries_of_one_origin_at_their_limits_stay_few_and_can_go_down() -> None:
    """Another origin compensates for each increment, so the sum is 0. The oldest entries become one where they can."""
    state = State("counter")
    for counter in range(1, MAX_OWN_ENTRIES + 1):
        state = applied(state, Increment(MAX_INT), ("a:1@1", counter), 1, counter - 1)
        state = applied(state, Increment(-MAX_INT), (f"b:1@{counter}", 1), 1, None)
    with pytest.raises(MergeError, match="another replica"):
        applied(state, Increment(MAX_INT), ("a:1@1", 9), 1, 8)
    for tip in (None, 8):
        renewed = applied(state, None, ("a:1@1", 9), 1, tip)
        lower = applied(state, Increment(-5), ("a:1@1", 9), 1, tip)
        assert (renewed.total(), lower.total()) == (0, -5)
        for each in (renewed, lower):
            assert _own_entries(each)["a:1@1"] == MAX_OWN_ENTRIES
            assert decode("counter", encode(each)) == each
            assert join([each, state]) == each


def test_marked_entries_beyond_64_bits_do_not_keep_others() -> None:
    ended = {"r:1@0", "r:1@1"}
    state = counter_of(0)
    for origin in ("r:1@0", "r:1@1"):
        state = applied(state, Increment(MAX_INT), (origin, 1), 1, None)
        state = applied(state, Increment(-MAX_INT), ("s:1@1", 1 if origin == "r:1@0" else 2), 1, 1)
    for n in range(2, 20):
        state = applied(state, Increment(1), (f"r:1@{n}", 1), 1, None)
        state = folded(state, ("s:1@1", n + 1), ended.__contains__, lambda: True)
        ended.add(f"r:1@{n}")
    assert state.total() == 18
    assert len(state.entries) < 10


@pytest.mark.parametrize("kind", ["set", "map"])
def test_items_have_a_limit_that_only_growth_meets(kind: MergingKind) -> None:
    def change(first: int, last: int) -> Operation:
        names = [f"n{n}" for n in range(first, last)]
        if kind == "set":
            return SetChange(tuple(names))
        return MapChange(tuple((name, b"1") for name in names))

    full = applied(State(kind), change(0, MAX_ITEMS), ("a:1@1", 1), 1, None)
    with pytest.raises(MergeError, match=str(MAX_ITEMS)):
        applied(full, change(MAX_ITEMS, MAX_ITEMS + 1), ("a:1@1", 2), 2, 1)
    again = applied(full, change(0, 1), ("a:1@1", 2), 2, 1)
    assert len(again.items) == MAX_ITEMS


def test_elements_are_whole_numbers_of_json() -> None:
    state = applied(State("set"), SetChange((MIN_INT, MAX_UINT, "x")), ("a:1@1", 1), 1, None)
    assert decode("set", encode(state)) == state
    assert shown(state) == [MIN_INT, MAX_UINT, "x"]


def test_what_only_takes_away_creates_nothing() -> None:
    assert creates(Increment(0))
    assert creates(SetChange((1,)))
    assert creates(MapChange((("f", b"1"),)))
    assert not creates(SetChange((), (1,)))
    assert not creates(MapChange((), ("f",)))
    assert not creates(None)


def test_whole_numbers_are_one_element() -> None:
    assert element_of(1.0) == 1
    assert isinstance(element_of(1.0), int)
    assert isinstance(element_of(float(2**63)), int)
    assert isinstance(element_of(float(2**64)), float)
    assert isinstance(element_of(1e300), float)
    assert element_of("1") == "1"


@pytest.mark.parametrize(
    "encoded", [b"", b"\xc0", b"\x92\x90", b"\x92\x90\x91\x93\x00\x01\x01", b"\x93\x91\xa1a\x90\x91\x92\x01\x90"]
)
def test_bytes_that_are_no_state_are_rejected(encoded: bytes) -> None:
    with pytest.raises(ValueError, match="no state"):
        decode("set", encoded)


def test_the_latest_keys_are_remembered() -> None:
    tips = Tips()
    for n in range(MAX_TIPS + 10):
        tips.set(f"k{n}", n)
    assert len(tips) == MAX_TIPS
    assert tips.get("k0") is None
    assert tips.get(f"k{MAX_TIPS + 9}") == MAX_TIPS + 9
