"""The engine: waiting requests and what wakes them. Requests run in real threads; the test does what they wait for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from store.causal import CausalStore
from store.clock import Clock, Instant
from store.engine import ABSENT_ETAG, LOSS_CHECKS, Engine, WriteConcern
from store.errors import (
    DependenciesMissing,
    NotServing,
    OutOfMemory,
    PreconditionFailed,
    StoreError,
)
from store.settings import StoreSettings
from store.versions import Change
from store.waiting import AckIndex, AckWaiter, Places, Waiter
from tests.support.engine_rig import LONG_S, SETTINGS, Rig, make, result, rig
from tests.support.wire import NOW, write

__all__ = ["rig"]

# -- deferral ------------------------------------------------------------------------------------------------------


def test_a_deferred_read_returns_when_its_causal_past_arrives(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    reading = rig.ask(rig.engine.get, "x", update.past)
    rig.deferred(1)
    assert not reading.done()
    rig.receive(update)
    assert result(reading).versions[0].value == b"1"
    assert len(rig.engine.waiters.deferred) == 0


@pytest.mark.parametrize("operation", ["put", "delete", "list", "transact"])
def test_every_operation_waits_for_its_causal_past(rig: Rig, operation: str) -> None:
    update = write(rig.other, "x", b"1")
    past = update.past
    operations: dict[str, Callable[[], Any]] = {
        "put": lambda: rig.engine.write(Change("x", b"2"), past),
        "delete": lambda: rig.engine.write(Change("x", None), past),
        "list": lambda: rig.engine.list(past),
        "transact": lambda: rig.engine.transact(["x"], [Change("y", b"1")], past),
    }
    waiting = rig.ask(operations[operation])
    rig.deferred(1)
    rig.receive(update)
    assert result(waiting).metadata


def test_only_requests_whose_past_has_arrived_are_woken(rig: Rig) -> None:
    first, second = write(rig.other, "x", b"1"), write(rig.other, "x", b"2")
    early, late = (rig.ask(rig.engine.get, "x", update.past) for update in (first, second))
    rig.deferred(2)
    rig.receive(first)
    assert result(early).versions[0].value == b"1"
    assert not late.done()
    rig.receive(second)
    assert result(late).versions[0].value == b"2"


def test_a_past_that_does_not_arrive_is_reported_after_the_timeout(rig: Rig) -> None:
    started = time.monotonic()
    with pytest.raises(DependenciesMissing) as raised:
        rig.engine.get("x", {"other": 3}, wait_s=0.05)
    assert 0.05 <= time.monotonic() - started < 1.0
    assert raised.value.missing == {"other": (0, 3)}
    assert len(rig.engine.waiters.deferred) == 0
    assert rig.engine.counts["refused"] == 1


def test_wait_0_is_rejected_at_once(rig: Rig) -> None:
    with pytest.raises(DependenciesMissing):
        rig.engine.get("x", {"other": 1}, wait_s=0)
    assert rig.engine.counts["deferred"] == 0


def test_the_default_timeout_is_the_setting(rig: Rig) -> None:
    short = make(StoreSettings(defer_timeout_s=0.02))
    with pytest.raises(DependenciesMissing):
        short.engine.get("x", {"other": 1})
    short.pool.shutdown()


def test_above_max_deferred_the_request_that_has_waited_longest_is_answered_early(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    waiting = []
    for count in (1, 2):
        waiting.append(rig.ask(rig.engine.get, "x", update.past))
        rig.deferred(count)
    waiting.append(rig.ask(rig.engine.get, "x", update.past))
    with pytest.raises(DependenciesMissing) as early:
        result(waiting[0])
    assert early.value.missing == {update.origin: (0, 1)}
    assert rig.engine.get("x", {}).versions == ()  # Waiting requests do not block others.
    rig.receive(update)
    assert all(result(reading).versions for reading in waiting[1:])


def test_with_max_deferred_0_no_request_waits() -> None:
    rig = make(StoreSettings(max_deferred=0, max_watchers=0, defer_timeout_s=LONG_S))
    with pytest.raises(DependenciesMissing):
        rig.engine.get("x", {"other": 1})
    wrote = rig.engine.write(Change("x", b"1"), {})
    assert rig.engine.watch("x", {}, [wrote.etag or ""], LONG_S).versions
    assert rig.engine.wait_for_acks((rig.store.replica_id, 1), WriteConcern(3, LONG_S)) == (1, False)
    rig.pool.shutdown()


def test_a_deferred_request_passes_its_missing_dots_in_any_order(rig: Rig) -> None:
    others = [CausalStore(f"o{number}@0000000000000001") for number in range(4)]
    updates = [write(other, f"k{number}", b"1") for number, other in enumerate(others)]
    reading = rig.ask(rig.engine.get, "k0", {update.origin: 1 for update in updates})
    rig.deferred(1)
    for update in (updates[2], updates[0], updates[3]):
        rig.receive(update)
    assert not reading.done()
    rig.receive(updates[1])
    assert result(reading).versions


def test_a_joined_snapshot_wakes_deferred_requests_and_watches(rig: Rig) -> None:
    wrote = rig.engine.write(Change("x", b"1"), {})
    update = write(rig.other, "y", b"1")
    reading = rig.ask(rig.engine.get, "y", update.past)
    watching = rig.ask(rig.engine.watch, "x", {}, [wrote.etag or ""], LONG_S)
    rig.deferred(1)
    rig.watching(1)
    rig.other.receive([wrote.update] if wrote.update else [], NOW)
    rig.other.put(Change("x", b"2"), {}, NOW)
    with rig.engine.lock:
        rig.store.join(rig.other.snapshot(NOW), NOW)
    assert result(reading).versions[0].value == b"1"
    assert result(watching).versions[0].value == b"2"


def test_an_update_wakes_only_the_requests_that_it_concerns(rig: Rig) -> None:
    """One watch of its key wakes. A deferred request that lacks it and more moves to its next missing dot."""
    with rig.engine.lock:
        waiters = [Waiter(rig.engine.lock) for _ in range(400)]
        for number, waiter in enumerate(waiters[:200]):
            rig.engine.waiters.by_key.add(waiter, f"k{number}")
        for number, waiter in enumerate(waiters[200:]):
            rig.engine.waiters.by_dot.add(waiter, {"another": 9, f"o{number}": 1}, rig.store.clock)
        rig.engine.follow_store()
        other = CausalStore("o7")
        rig.store.receive([write(other, "k5", b"1")], NOW)
    assert [number for number, waiter in enumerate(waiters) if waiter.is_awake] == [5]


def test_a_watch_of_an_absent_key_ends_when_the_key_appears(rig: Rig) -> None:
    watching = rig.ask(rig.engine.watch, "x", {}, [ABSENT_ETAG], LONG_S)
    rig.watching(1)
    rig.engine.write(Change("y", b"1"), {})
    assert not watching.done()
    rig.engine.write(Change("x", b"2"), {})
    assert result(watching).versions[0].value == b"2"
    assert rig.engine.watch("none", {}, [ABSENT_ETAG], 0.01).versions == ()


def test_a_call_looks_for_losses_of_a_limited_number_of_requests_and_reaches_all_in_turn(rig: Rig) -> None:
    engine = rig.engine
    waiters = [Waiter(engine.lock) for _ in range(3 * LOSS_CHECKS)]
    with engine.lock:
        engine.waiters.deferred = Places[Waiter](len(waiters))
        for waiter in waiters:
            engine.waiters.enter(waiter, engine.waiters.deferred)
        rig.peers.unrecoverable_gaps = {"dead": (1, 3)}
        for call in range(1, 4):
            engine.wake_for_losses()
            assert sum(waiter.is_awake for waiter in waiters) == call * LOSS_CHECKS


def test_an_ack_looks_at_no_write_that_requires_more_acks_than_there_are_members() -> None:
    index = AckIndex()
    asked: list[str] = []

    def counters(origin: str) -> list[int]:
        asked.append(origin)
        return [0, 600]

    for members in range(2, 500):
        index.add(AckWaiter(("r", members), members))
    assert [(waiter.members, waiter.acks) for waiter in index.acknowledged(counters, int)] == [(2, 2)]
    assert asked == ["r"]


@pytest.mark.parametrize("counters", [[3, 5, 8], [0, 0, 0], [4, 4, 4], [9, 9, 9], []])
@pytest.mark.parametrize("order", [range(1, 10), range(9, 0, -1), (5, 1, 9, 5, 3, 3, 7)])
def test_exactly_the_writes_with_enough_acks_are_woken(counters: list[int], order: Sequence[int]) -> None:
    index = AckIndex()
    waiters = [AckWaiter((origin, n), members) for n in order for members in (2, 3, 4, 9) for origin in ("a", "b")]
    for waiter in waiters:
        index.add(waiter)
    enough = index.acknowledged(lambda origin: counters if origin == "a" else [], int)
    for waiter in waiters:
        acks = 1 + sum(n >= waiter.counter for n in counters) if waiter.origin == "a" else 1
        assert (waiter in enough) == (acks >= int(waiter.members))
        assert waiter.acks == (acks if waiter in enough else 0)
        index.remove(waiter)
    assert not index


def test_an_ack_waiter_wakes_once_and_may_be_woken_before_it_sleeps() -> None:
    waiter = AckWaiter(("a", 1), 2)
    waiter.wake()
    waiter.wake()
    began_s = time.monotonic()
    waiter.wait(LONG_S)
    assert time.monotonic() - began_s < LONG_S / 2
    waiter.wait(0.01)  # A second wait would sleep again.


def test_the_longest_waits_of_requests_that_hold_something_end_early() -> None:
    rig = make(StoreSettings(max_deferred=3, max_watchers=2, defer_timeout_s=LONG_S))
    first, second, third = (rig.ask(rig.engine.get, "x", {"other": 1}, wait_s=LONG_S) for _ in range(3))
    rig.deferred(3)
    with rig.engine.lock:
        threads = [waiter.thread for waiter in rig.engine.waiters.deferred]
    rig.engine.end_longest_waits({threads[1]: 5, threads[2]: 5}, 3)
    rig.deferred(2)
    rig.engine.end_longest_waits({threads[1]: 5, threads[2]: 5}, 100)
    rig.deferred(1)
    rig.engine.end_longest_waits(dict.fromkeys(threads, 1), 1)
    rig.deferred(0)
    for future in (first, second, third):
        with pytest.raises(DependenciesMissing):
            future.result(LONG_S)


def test_nothing_of_a_request_is_left_after_its_wait(rig: Rig) -> None:
    wrote = rig.engine.write(Change("x", b"1"), {})
    for number in range(20):
        with pytest.raises(DependenciesMissing):
            rig.engine.get("x", {f"invented{number}": 1, "other": 1}, wait_s=0.001)
        rig.engine.watch("x", {}, [wrote.etag or ""], 0.001)
        rig.engine.wait_for_acks((rig.store.replica_id, 1), WriteConcern(number + 2, 0.001))
    waiters = rig.engine.waiters
    assert not waiters.by_dot
    assert not waiters.by_key
    assert not waiters.by_concern
    assert rig.store.observer is None
    assert [len(places) for places in (waiters.deferred, waiters.watching, waiters.ack_waits)] == [0, 0, 0]
    assert not waiters._all


def test_a_closed_gate_wakes_and_rejects_waiting_requests(rig: Rig) -> None:
    reading = rig.ask(rig.engine.get, "x", {"other": 1})
    found = rig.engine.write(Change("y", b"1"), {})
    watching = rig.ask(rig.engine.watch, "y", {}, [found.etag or ""], LONG_S)
    rig.deferred(1)
    rig.watching(1)
    rig.close()
    for future in (reading, watching):
        with pytest.raises(NotServing):
            result(future)


def test_the_gate_is_checked_again_when_a_request_wakes(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    reading = rig.ask(rig.engine.get, "x", update.past)
    rig.deferred(1)
    with rig.engine.lock:
        rig.store.receive([update], NOW)
        rig.store.not_serving_reason = "closed"
        rig.engine.wake()
    with pytest.raises(NotServing):
        result(reading)


def test_a_deferral_fetches_its_past_once(rig: Rig) -> None:
    with pytest.raises(DependenciesMissing):
        rig.engine.get("x", {"other": 1}, wait_s=0.05)
    assert rig.peers.fetched == [{"other": 1}]
    assert set(rig.peers.tokens) == {1}
    rig.engine.get("x", {})
    assert len(rig.peers.fetched) == 1


# -- lost updates --------------------------------------------------------------------------------------------------


def test_unrecoverable_updates_are_dropped_from_the_past_and_reported(rig: Rig) -> None:
    reading = rig.ask(rig.engine.get, "x", {"dead": 3})
    rig.deferred(1)
    with rig.engine.lock:
        rig.peers.unrecoverable_gaps = {"dead": (1, 3)}
        rig.engine.wake_for_losses()
    found = result(reading)
    assert found.lost == {"dead": (1, 3)}
    assert found.metadata == {}


def test_earlier_updates_of_an_origin_with_lost_updates_stay_in_the_past(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    rig.receive(update)
    rig.peers.unrecoverable_gaps = {update.origin: (2, 5)}
    found = rig.engine.get("y", {update.origin: 5})
    assert found.metadata == {update.origin: 1}
    assert found.lost == {update.origin: (2, 5)}


def test_a_write_after_a_loss_does_not_depend_on_the_lost_updates(rig: Rig) -> None:
    rig.peers.unrecoverable_gaps = {"dead": (1, 3)}
    wrote = rig.engine.write(Change("x", b"1"), {"dead": 3})
    assert wrote.lost == {"dead": (1, 3)}
    assert wrote.metadata == {rig.store.replica_id: 1}


def test_a_request_waits_for_a_late_update_although_another_is_lost(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    rig.peers.unrecoverable_gaps = {"dead": (1, 1)}
    reading = rig.ask(rig.engine.get, "x", {"dead": 1, **update.past})
    rig.deferred(1)
    assert not reading.done()
    rig.receive(update)
    assert result(reading).lost == {"dead": (1, 1)}


def test_a_watch_continues_after_a_loss(rig: Rig) -> None:
    """When a watch wakes and reads again, it must not wait again for updates that its first read reported as lost."""
    wrote = rig.engine.write(Change("x", b"1"), {})
    rig.peers.unrecoverable_gaps = {"dead": (1, 3)}
    watching = rig.ask(rig.engine.watch, "x", {"dead": 3}, [wrote.etag or ""], LONG_S)
    rig.watching(1)
    rig.engine.write(Change("x", b"2"), {})
    found = result(watching)
    assert found.versions[0].value == b"2"
    assert found.lost == {"dead": (1, 3)}


# -- watching ------------------------------------------------------------------------------------------------------


def test_a_watch_returns_when_the_winner_changes(rig: Rig) -> None:
    first = rig.engine.write(Change("x", b"1"), {})
    watching = rig.ask(rig.engine.watch, "x", {}, [first.etag or ""], LONG_S)
    rig.watching(1)
    rig.engine.write(Change("unrelated", b"1"), {})
    assert not watching.done()
    rig.engine.write(Change("x", b"2"), {})
    assert result(watching).versions[0].value == b"2"
    assert len(rig.engine.waiters.watching) == 0


def test_a_watch_returns_after_a_delete_a_transaction_and_a_peers_update(rig: Rig) -> None:
    changes: list[Callable[[], Any]] = [
        lambda: rig.engine.write(Change("x", None), {}),
        lambda: rig.engine.transact([], [Change("x", b"2")], {}),
        lambda: rig.receive(write(rig.other, "x", b"3")),
    ]
    for change in changes:
        wrote = rig.engine.write(Change("x", b"1"), {})
        watching = rig.ask(rig.engine.watch, "x", {}, [wrote.etag or ""], LONG_S)
        rig.watching(1)
        if change is changes[-1]:
            rig.other.hybrid_clock.observe(rig.store.hybrid_clock.read(NOW) + 10**16, NOW)  # Makes its update win.
        change()
        result(watching)


def test_a_watch_returns_the_unchanged_version_after_its_timeout(rig: Rig) -> None:
    wrote = rig.engine.write(Change("x", b"1"), {})
    found = rig.engine.watch("x", {}, [wrote.etag or ""], 0.03)
    assert found.versions[0].etag == wrote.etag


def test_a_watch_returns_at_once_if_the_winner_differs_or_the_key_is_absent(rig: Rig) -> None:
    rig.engine.write(Change("x", b"1"), {})
    assert rig.engine.watch("x", {}, ['"another"'], LONG_S).versions
    assert not rig.engine.watch("absent", {}, ['"another"'], LONG_S).versions


def test_a_watch_returns_when_the_version_expires(rig: Rig) -> None:
    wrote = rig.engine.write(Change("x", b"1", ttl_us=50_000), {})
    assert rig.engine.watch("x", {}, [wrote.etag or ""], LONG_S).versions == ()


def test_a_watch_first_waits_for_its_causal_past(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    watching = rig.ask(rig.engine.watch, "x", update.past, ['"none"'], LONG_S)
    rig.deferred(1)
    rig.receive(update)
    assert result(watching).versions[0].value == b"1"


def test_above_max_watchers_the_watch_that_has_waited_longest_returns_unchanged(rig: Rig) -> None:
    wrote = rig.engine.write(Change("x", b"1"), {})
    watching = []
    for count in (1, 2):
        watching.append(rig.ask(rig.engine.watch, "x", {}, [wrote.etag or ""], LONG_S))
        rig.watching(count)
    watching.append(rig.ask(rig.engine.watch, "x", {}, [wrote.etag or ""], LONG_S))
    assert result(watching[0]).versions[0].value == b"1", "its place is taken: unchanged"
    rig.engine.write(Change("x", b"2"), {})
    assert [result(watch).versions[0].value for watch in watching[1:]] == [b"2", b"2"]


# -- calls of the port ---------------------------------------------------------------------------------------------


def test_replication_gets_each_issued_update_and_nothing_else(rig: Rig) -> None:
    rig.engine.write(Change("x", b"1"), {})
    rig.engine.write(Change("x", None), {})
    rig.engine.write(Change("x", None), {})
    rig.engine.transact(["x"], [], {})
    rig.engine.transact([], [Change("a", b"1"), Change("b", b"1")], {})
    rig.engine.get("a", {})
    rig.engine.list({})
    assert [update.counter for update in rig.peers.issued] == [1, 2, 3]
    assert [len(update.writes) for update in rig.peers.issued] == [1, 1, 2]


# -- a rejected call changes nothing -------------------------------------------------------------------------------


def fingerprint(store: CausalStore) -> Any:
    return (
        dict(store.clock),
        store.table.copy(),
        store.table.bytes,
        dict(store.delete_clock),
        store.log.count,
        store.log.bytes,
        len(store.pending),
        store.clock_changes,
        store.applied_count,
    )


REJECTIONS: list[tuple[str, type[StoreError]]] = [
    ("not reached", DependenciesMissing),
    ("closed", NotServing),
    ("mismatch", PreconditionFailed),
    ("memory", OutOfMemory),
]

CALLS: dict[str, Callable[[Engine, Clock, tuple[str, ...] | None], Any]] = {
    "put": lambda engine, past, tags: engine.write(Change("x", b"123456", if_match=tags), past, wait_s=0),
    "delete": lambda engine, past, tags: engine.write(Change("x", None, if_match=tags), past, wait_s=0),
    "transact": lambda engine, past, tags: engine.transact(
        ["x"], [Change("new", b"123456"), Change("x", b"123456", if_match=tags)], past, wait_s=0
    ),
    "get": lambda engine, past, tags: engine.get("x", past, wait_s=0),
    "list": lambda engine, past, tags: engine.list(past, wait_s=0),
}


@pytest.mark.parametrize(
    ("call", "why", "error"),
    [
        (call, why, error)
        for call in CALLS
        for why, error in REJECTIONS
        if not (call in {"get", "list"} and why in {"mismatch", "memory"}) and (call, why) != ("delete", "memory")
    ],
)
def test_a_rejected_call_changes_nothing(call: str, why: str, error: type[StoreError]) -> None:
    rig = make(StoreSettings(max_memory_bytes=800) if why == "memory" else SETTINGS)
    rig.engine.write(Change("x", b"1"), {})
    if why == "memory":
        rig.store.table.bytes = 800
    before, issued_before = fingerprint(rig.store), len(rig.peers.issued)
    if why == "closed":
        rig.store.not_serving_reason = "closed"
    with pytest.raises(error):
        CALLS[call](
            rig.engine, {"other": 1} if why == "not reached" else {}, ('"none"',) if why == "mismatch" else None
        )
    assert fingerprint(rig.store) == before
    assert len(rig.peers.issued) == issued_before
    rig.store.not_serving_reason = None
    if why != "memory":
        assert rig.engine.write(Change("x", b"2"), {}).metadata == {rig.store.replica_id: 2}
    rig.pool.shutdown()


def test_at_the_memory_limit_writes_that_free_memory_succeed() -> None:
    rig = make(StoreSettings(max_memory_bytes=1500))
    rig.engine.write(Change("x", b"1" * 100), {})
    with pytest.raises(OutOfMemory):
        rig.engine.write(Change("y", b"1" * 400), {})
    rig.engine.write(Change("x", b"1"), {})
    rig.engine.write(Change("x", None), {})
    rig.engine.write(Change("y", b"1" * 400), {})
    rig.pool.shutdown()


def test_one_failed_precondition_rejects_the_whole_transaction(rig: Rig) -> None:
    rig.engine.write(Change("x", b"1"), {})
    with pytest.raises(PreconditionFailed) as mismatch:
        rig.engine.transact([], [Change("y", b"1"), Change("x", b"2", if_none_match=True)], {})
    assert mismatch.value.etag == f'"{rig.store.replica_id}:1"'
    assert rig.engine.get("y", {}).versions == ()


# -- threads -------------------------------------------------------------------------------------------------------


def test_concurrent_writers_take_each_dot_once_and_lose_no_write(rig: Rig) -> None:
    barrier = threading.Barrier(4)

    def write_some(name: int) -> list[int]:
        barrier.wait()
        issued = (rig.engine.write(Change(f"{name}/{number}", b"1"), {}).update for number in range(100))
        return [update.counter for update in issued if update is not None]

    counters = [counter for future in [rig.ask(write_some, n) for n in range(4)] for counter in result(future)]
    assert sorted(counters) == list(range(1, 401))
    assert len(rig.store.table) == 400


def test_a_reader_never_sees_half_of_a_transaction(rig: Rig) -> None:
    stop = threading.Event()

    def write_pairs() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            value = b"%d" % number
            rig.engine.transact([], [Change("a", value), Change("b", value)], {})

    writing = rig.ask(write_pairs)
    for _ in range(300):
        values = rig.engine.transact(["a", "b"], [], {}).values
        assert values.get("a") == values.get("b")
        items = rig.engine.list({}).items
        assert items.get("a") == items.get("b")
    stop.set()
    result(writing)


def test_the_engine_uses_the_clock_that_it_is_given() -> None:
    moment = Instant(5.0, 1_000_000)
    engine = Engine(CausalStore("here@0000000000000001"), now=lambda: moment)
    wrote = engine.write(Change("x", b"1", ttl_us=2_000_000), {})
    assert wrote.update is not None
    assert wrote.update.writes[0].expires == 3_000_000
    moment = Instant(7.0, 2_999_999)
    assert engine.get("x", {}).versions
    moment = Instant(7.0, 3_000_000)
    assert engine.get("x", {}).versions == ()


def test_stats_count_data_and_waiting_requests(rig: Rig) -> None:
    rig.engine.write(Change("x", b"1"), {})
    reading = rig.ask(rig.engine.get, "x", {"other": 1})
    rig.deferred(1)
    stats = rig.engine.stats()
    assert (stats["keys"], stats["writes"], stats["deferred_now"], stats["deferred"]) == (1, 1, 1, 1)
    rig.close()
    with pytest.raises(NotServing):
        result(reading)
