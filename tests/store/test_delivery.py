"""The pending queue, and causal delivery of updates in any order of arrival."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.causal import CausalStore
from store.clock import Clock, Dot
from store.delivery import PendingQueue, cost, first_missing
from store.settings import StoreSettings
from store.versions import Update, Write
from tests.support.wire import NOW


def update(origin: str, counter: int, deps: Clock | None = None) -> Update:
    return Update(origin, counter, counter, deps or {}, ())


@pytest.mark.parametrize(
    ("clock", "waits_for"),
    [
        ({"a": 1, "b": 2, "c": 3}, None),
        ({"a": 1, "b": 9, "c": 9}, None),
        ({"b": 2, "c": 3}, ("a", 1)),
        ({"a": 1, "c": 3}, ("b", 2)),
        ({"a": 1, "b": 1, "c": 3}, ("b", 2)),
        ({"a": 1, "b": 2}, ("c", 3)),
        ({}, ("a", 1)),
    ],
)
def test_first_missing_dot(clock: Clock, waits_for: Dot | None) -> None:
    assert first_missing(clock, update("a", 2, {"b": 2, "c": 3})) == waits_for


def test_first_update_of_an_origin_has_no_predecessor() -> None:
    assert first_missing({}, update("a", 1)) is None


def test_take_waiting_for_returns_exactly_the_waiting_updates_in_order() -> None:
    queue = PendingQueue(10, 1 << 20)
    for waiting, dot in ((update("a", 5), ("x", 1)), (update("b", 5), ("x", 2)), (update("c", 5), ("x", 1))):
        assert queue.add(waiting, dot, 0.0)
    assert [item.update.origin for item in queue.take_waiting_for(("x", 1))] == ["a", "c"]
    assert queue.take_waiting_for(("x", 1)) == []
    assert [item.update.origin for item in queue] == ["b"]


def test_update_is_queued_once() -> None:
    queue = PendingQueue(10, 1 << 20)
    assert queue.add(update("a", 2), ("a", 1), 0.0)
    assert not queue.add(update("a", 2), ("a", 1), 1.0)
    assert [item.update.dot for item in queue] == [("a", 2)]
    assert len(queue.take_waiting_for(("a", 1))) == 1


def test_full_queue_rejects_updates() -> None:
    queue = PendingQueue(2, 1 << 20)
    assert queue.add(update("a", 2), ("a", 1), 0.0)
    assert queue.add(update("a", 3), ("a", 2), 0.0)
    assert not queue.add(update("a", 4), ("a", 3), 0.0)
    assert queue.take_waiting_for(("a", 3)) == []
    assert len(queue) == 2


def with_value(counter: int, size: int) -> Update:
    return Update("a", counter, counter, {"b": 1}, (Write("k", b"x" * size),))


def test_queue_rejects_updates_that_take_too_many_bytes() -> None:
    """A count alone would allow 100,000 updates of 8 MiB."""
    queue = PendingQueue(1000, 3_000_000)
    added = [queue.add(with_value(counter, 1_000_000), ("a", counter - 1), 0.0) for counter in range(2, 6)]
    assert added == [True, True, False, False]
    assert queue.bytes == sum(cost(item.update) for item in queue) <= 3_000_000
    assert queue.add(with_value(9, 10), ("a", 8), 0.0), "a small update still fits"


def test_bytes_are_returned_when_an_update_leaves_the_queue() -> None:
    queue = PendingQueue(1000, 1 << 20)
    for counter in range(2, 8):
        queue.add(with_value(counter, 1000), ("a", counter - 1), 0.0)
    queue.drop(("a", 2))
    assert len(queue.take_waiting_for(("a", 3))) == 1
    assert queue.bytes == sum(cost(item.update) for item in queue) > 0
    queue.take_all()
    assert queue.bytes == 0


def test_store_stays_below_the_bound_and_applies_everything_in_the_end() -> None:
    """Updates that found no room are sent again, because the clock does not contain them."""
    store = CausalStore("here", StoreSettings(max_pending_bytes=100_000))
    history = [with_value(counter, 20_000) for counter in range(1, 31)]
    history = [msgspec.structs.replace(update, deps={}) for update in history]
    while len(store.table) == 0 or store.clock["a"] < len(history):
        store.receive(reversed(history), NOW)
        assert store.pending.bytes <= 100_000
    assert (len(store.pending), store.pending.bytes) == (0, 0)


def test_drop_removes_only_one_update() -> None:
    queue = PendingQueue(10, 1 << 20)
    queue.add(update("a", 2), ("x", 1), 0.0)
    queue.add(update("b", 2), ("x", 1), 0.0)
    assert queue.drop(("a", 2)).origin == "a"
    assert [item.update.origin for item in queue.take_waiting_for(("x", 1))] == ["b"]
    with pytest.raises(KeyError):
        queue.drop(("a", 2))


def test_take_all_empties_the_queue() -> None:
    queue = PendingQueue(10, 1 << 20)
    queue.add(update("a", 2), ("x", 1), 3.0)
    assert [(item.update.dot, item.waits_for, item.since_s) for item in queue.take_all()] == [(("a", 2), ("x", 1), 3.0)]
    assert len(queue) == 0
    assert queue.take_waiting_for(("x", 1)) == []


def test_lowest_counter_of_each_origin() -> None:
    queue = PendingQueue(10, 1 << 20)
    for counter in (7, 3, 5):
        queue.add(update("a", counter), ("x", 1), 0.0)
    queue.add(update("b", 9), ("x", 1), 0.0)
    assert queue.lowest_counters() == {"a": 3, "b": 9}


@st.composite
def histories(draw: st.DrawFn) -> list[Update]:
    """Return updates of three origins. Each one depends on some of the updates before it."""
    issued: list[Update] = []
    counters: Clock = {}
    for origin in draw(st.lists(st.sampled_from("abc"), max_size=12)):
        counters[origin] = counters.get(origin, 0) + 1
        seen = {id_: draw(st.integers(0, last)) for id_, last in counters.items() if id_ != origin}
        deps = {id_: last for id_, last in seen.items() if last}
        writes = (Write(f"{origin}{counters[origin]}", b"1"),)
        issued.append(Update(origin, counters[origin], len(issued) + 1, deps, writes))
    return issued


@given(histories(), st.randoms(use_true_random=False))
def test_updates_in_any_order_are_applied_after_their_dependencies(history: list[Update], rng: Any) -> None:
    store = CausalStore("here")
    arrivals = history * 2
    rng.shuffle(arrivals)
    for arrived in arrivals:
        store.receive([arrived], NOW)
        for applied in history:
            if store.clock.get(applied.origin, 0) >= applied.counter:
                assert first_missing({**store.clock, applied.origin: applied.counter - 1}, applied) is None
                assert store.table.get(applied.writes[0].key)
            else:
                assert not store.table.get(applied.writes[0].key)
    assert len(store.pending) == 0
    assert sum(store.clock.values()) == store.applied_count == len(history)


def test_long_chain_in_reverse_order_needs_no_recursion() -> None:
    store = CausalStore("here")
    chain = [Update("a", counter, counter, {}, (Write(f"k{counter}", b"1"),)) for counter in range(1, 5_001)]
    store.receive(reversed(chain), NOW)
    assert store.clock == {"a": 5_000}
    assert len(store.pending) == 0
    assert len(store.table) == 5_000
