"""The engine: requests that wait, and what wakes them. Real threads; what they wait for is done by the test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from store.causal import CausalStore, LostUpdates
from store.clock import Clock, Dot, Instant
from store.engine import Engine, WriteConcern
from store.errors import (
    DependenciesMissing,
    NotServing,
    OutOfMemory,
    PreconditionFailed,
    StoreError,
    TooManyAckWaits,
    TooManyDeferred,
    TooManyWatchers,
)
from store.settings import StoreSettings
from store.versions import Change, Update
from tests.support.waiting import wait_until
from tests.support.wire import NOW, write

LONG_S = 20.0
"""Longer than any test takes: what ends before it was woken."""


@dataclass
class Peers:
    """Dependencies that say what the test wants, and note what they are asked."""

    engine: Engine | None = None
    written: list[Update] = field(default_factory=list)
    asked: list[Clock] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    gone: LostUpdates = field(default_factory=dict)
    acked: int = 1
    members: int = 3

    def update_issued(self, update: Update) -> None:
        self._check_lock()
        self.written.append(update)

    def fetch(self, past: Clock) -> int:
        self._check_lock()
        self.asked.append(past)
        return len(self.asked)

    fetch_for_retry = fetch

    def unrecoverable(self, past: Clock, token: int) -> LostUpdates:
        self._check_lock()
        self.tokens.append(token)
        return {id_: gap for id_, gap in self.gone.items() if past.get(id_, 0) >= gap[0]}

    def acks(self, dot: Dot) -> int:
        self._check_lock()
        return self.acked

    def acks_required(self, write_concern: str) -> int:
        return self.members if write_concern == "all" else self.members // 2 + 1

    def _check_lock(self) -> None:
        assert self.engine is not None
        assert self.engine.lock._is_owned()  # type: ignore[attr-defined]


SETTINGS = StoreSettings(max_deferred=2, max_watchers=2, defer_timeout_s=LONG_S)


@dataclass
class Rig:
    """An engine, the other replica that its updates come from, and threads for requests."""

    store: CausalStore
    engine: Engine
    peers: Peers
    pool: ThreadPoolExecutor
    other: CausalStore = field(default_factory=lambda: CausalStore("other@0000000000000001"))

    def ask(self, request: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        return self.pool.submit(request, *args, **options)

    def deferred(self, count: int) -> None:
        wait_until(lambda: self.engine.deferred == count)

    def watching(self, count: int) -> None:
        wait_until(lambda: self.engine.watchers == count)

    def receive(self, *updates: Update) -> None:
        with self.engine.lock:
            self.store.receive(updates, NOW)
            self.engine.wake()

    def close(self) -> None:
        with self.engine.lock:
            self.store.not_serving_reason = "closed"
            self.engine.wake()


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = make(SETTINGS)
    yield made
    made.close()
    made.pool.shutdown()


def make(settings: StoreSettings) -> Rig:
    store, peers = CausalStore("here@0000000000000001", settings), Peers()
    peers.engine = Engine(store, peers)
    return Rig(store, peers.engine, peers, ThreadPoolExecutor(8))


def result(future: Future[Any]) -> Any:
    return future.result(timeout=5.0)


# -- deferral ------------------------------------------------------------------------------------------------------


def test_a_deferred_read_is_answered_when_its_causal_past_arrives(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    reading = rig.ask(rig.engine.get, "x", update.past)
    rig.deferred(1)
    assert not reading.done()
    rig.receive(update)
    assert result(reading).versions[0].value == b"1"
    assert rig.engine.deferred == 0


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


def test_only_those_are_woken_whose_past_is_here(rig: Rig) -> None:
    first, second = write(rig.other, "x", b"1"), write(rig.other, "x", b"2")
    early, late = (rig.ask(rig.engine.get, "x", update.past) for update in (first, second))
    rig.deferred(2)
    rig.receive(first)
    assert result(early).versions[0].value == b"1"
    assert not late.done()
    rig.receive(second)
    assert result(late).versions[0].value == b"2"


def test_a_past_that_does_not_arrive_is_reported_when_the_time_is_over(rig: Rig) -> None:
    started = time.monotonic()
    with pytest.raises(DependenciesMissing) as unreached:
        rig.engine.get("x", {"other": 3}, wait_s=0.05)
    assert 0.05 <= time.monotonic() - started < 1.0
    assert unreached.value.missing == {"other": (0, 3)}
    assert rig.engine.deferred == 0
    assert rig.engine.counts["refused"] == 1


def test_no_time_to_wait_is_refused_at_once(rig: Rig) -> None:
    with pytest.raises(DependenciesMissing):
        rig.engine.get("x", {"other": 1}, wait_s=0)
    assert rig.engine.counts["deferred"] == 0


def test_the_default_wait_is_the_setting(rig: Rig) -> None:
    short = make(StoreSettings(defer_timeout_s=0.02))
    with pytest.raises(DependenciesMissing):
        short.engine.get("x", {"other": 1})
    short.pool.shutdown()


def test_one_more_than_may_be_deferred_is_refused_at_once_and_the_others_are_not(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    waiting = [rig.ask(rig.engine.get, "x", update.past) for _ in range(2)]
    rig.deferred(2)
    with pytest.raises(TooManyDeferred) as busy:
        rig.engine.get("x", update.past)
    assert busy.value.missing == {update.origin: (0, 1)}
    assert rig.engine.get("x", {}).versions == ()  # Those that wait starve nobody.
    rig.engine.write(Change("y", b"1"), {})
    rig.receive(update)
    assert all(result(reading).versions for reading in waiting)
    assert rig.engine.get("x", update.past).versions


def test_a_closed_gate_wakes_those_that_wait_and_refuses_them(rig: Rig) -> None:
    reading = rig.ask(rig.engine.get, "x", {"other": 1})
    found = rig.engine.write(Change("y", b"1"), {})
    watching = rig.ask(rig.engine.watch, "y", {}, [found.etag or ""], LONG_S)
    rig.deferred(1)
    rig.watching(1)
    rig.close()
    for future in (reading, watching):
        with pytest.raises(NotServing):
            result(future)


def test_the_gate_is_checked_again_when_a_request_wakes_although_its_past_is_here_now(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    reading = rig.ask(rig.engine.get, "x", update.past)
    rig.deferred(1)
    with rig.engine.lock:
        rig.store.receive([update], NOW)
        rig.store.not_serving_reason = "closed"
        rig.engine.wake()
    with pytest.raises(NotServing):
        result(reading)


def test_a_deferral_asks_whoever_may_have_it_once(rig: Rig) -> None:
    with pytest.raises(DependenciesMissing):
        rig.engine.get("x", {"other": 1}, wait_s=0.05)
    assert rig.peers.asked == [{"other": 1}]
    assert set(rig.peers.tokens) == {1}
    rig.engine.get("x", {})
    assert len(rig.peers.asked) == 1


# -- lost past -----------------------------------------------------------------------------------------------------


def test_what_is_lost_is_dropped_from_the_past_and_told(rig: Rig) -> None:
    reading = rig.ask(rig.engine.get, "x", {"dead": 3})
    rig.deferred(1)
    with rig.engine.lock:
        rig.peers.gone = {"dead": (1, 3)}
        rig.engine.wake()
    found = result(reading)
    assert found.lost == {"dead": (1, 3)}
    assert found.metadata == {}


def test_of_a_replica_whose_last_updates_are_lost_the_others_stay_in_the_past(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    rig.receive(update)
    rig.peers.gone = {update.origin: (2, 5)}
    found = rig.engine.get("y", {update.origin: 5})
    assert found.metadata == {update.origin: 1}
    assert found.lost == {update.origin: (2, 5)}


def test_a_write_after_a_loss_does_not_depend_on_what_is_lost(rig: Rig) -> None:
    rig.peers.gone = {"dead": (1, 3)}
    wrote = rig.engine.write(Change("x", b"1"), {"dead": 3})
    assert wrote.lost == {"dead": (1, 3)}
    assert wrote.metadata == {rig.store.replica_id: 1}


def test_while_one_is_lost_and_another_is_only_late_the_request_waits(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    rig.peers.gone = {"dead": (1, 1)}
    reading = rig.ask(rig.engine.get, "x", {"dead": 1, **update.past})
    rig.deferred(1)
    assert not reading.done()
    rig.receive(update)
    assert result(reading).lost == {"dead": (1, 1)}


def test_a_watch_goes_on_after_a_loss(rig: Rig) -> None:
    """The second look, when the watch wakes, must not ask for what the first one was told to be lost."""
    wrote = rig.engine.write(Change("x", b"1"), {})
    rig.peers.gone = {"dead": (1, 3)}
    watching = rig.ask(rig.engine.watch, "x", {"dead": 3}, [wrote.etag or ""], LONG_S)
    rig.watching(1)
    rig.engine.write(Change("x", b"2"), {})
    found = result(watching)
    assert found.versions[0].value == b"2"
    assert found.lost == {"dead": (1, 3)}


# -- watching ------------------------------------------------------------------------------------------------------


def test_a_watch_is_answered_when_the_winner_changes(rig: Rig) -> None:
    first = rig.engine.write(Change("x", b"1"), {})
    watching = rig.ask(rig.engine.watch, "x", {}, [first.etag or ""], LONG_S)
    rig.watching(1)
    rig.engine.write(Change("unrelated", b"1"), {})
    assert not watching.done()
    rig.engine.write(Change("x", b"2"), {})
    assert result(watching).versions[0].value == b"2"
    assert rig.engine.watchers == 0


def test_a_watch_is_answered_by_a_delete_by_a_transaction_and_by_a_peers_update(rig: Rig) -> None:
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
            rig.other.hybrid_clock.observe(rig.store.hybrid_clock.read(NOW) + 10**16, NOW)  # So that it wins.
        change()
        result(watching)


def test_a_watch_whose_time_is_over_is_answered_with_what_is_there(rig: Rig) -> None:
    wrote = rig.engine.write(Change("x", b"1"), {})
    found = rig.engine.watch("x", {}, [wrote.etag or ""], 0.03)
    assert found.versions[0].etag == wrote.etag


def test_a_watch_is_answered_at_once_where_the_winner_is_another_or_the_key_is_absent(rig: Rig) -> None:
    rig.engine.write(Change("x", b"1"), {})
    assert rig.engine.watch("x", {}, ['"another"'], LONG_S).versions
    assert not rig.engine.watch("absent", {}, ['"another"'], LONG_S).versions


def test_a_watch_is_answered_when_the_version_expires(rig: Rig) -> None:
    wrote = rig.engine.write(Change("x", b"1", ttl_us=50_000), {})
    assert rig.engine.watch("x", {}, [wrote.etag or ""], LONG_S).versions == ()


def test_a_watch_first_waits_for_its_causal_past(rig: Rig) -> None:
    update = write(rig.other, "x", b"1")
    watching = rig.ask(rig.engine.watch, "x", update.past, ['"none"'], LONG_S)
    rig.deferred(1)
    rig.receive(update)
    assert result(watching).versions[0].value == b"1"


def test_one_more_than_may_watch_is_refused_at_once(rig: Rig) -> None:
    wrote = rig.engine.write(Change("x", b"1"), {})
    watching = [rig.ask(rig.engine.watch, "x", {}, [wrote.etag or ""], LONG_S) for _ in range(2)]
    rig.watching(2)
    with pytest.raises(TooManyWatchers):
        rig.engine.watch("x", {}, [wrote.etag or ""], LONG_S)
    assert rig.engine.get("x", {}).versions
    rig.engine.write(Change("x", b"2"), {})
    assert [result(watch).versions[0].value for watch in watching] == [b"2", b"2"]


# -- acks ----------------------------------------------------------------------------------------------------------


def acked(rig: Rig, count: int) -> None:
    with rig.engine.lock:
        rig.peers.acked = count
        rig.engine.wake()


@pytest.mark.parametrize(("members", "needed"), [(2, 2), ("majority", 2), ("all", 3)])
def test_a_write_waits_for_as_many_acks_as_it_wants(rig: Rig, members: int | str, needed: int) -> None:
    writing = rig.ask(
        rig.engine.write_with_concern, WriteConcern(members, LONG_S), rig.engine.write, Change("x", b"1"), {}
    )
    wait_until(lambda: len(rig.engine._waiters) == 1)
    assert rig.engine.get("x", {}).versions  # It stands here already.
    acked(rig, needed - 1)
    assert not writing.done()
    acked(rig, needed)
    wrote, acks = result(writing)
    assert wrote.created
    assert acks == (needed, True)
    assert rig.engine.ack_waits == 0


def test_fewer_acks_than_wanted_in_time_are_told_and_the_write_stands(rig: Rig) -> None:
    _, acks = rig.engine.write_with_concern(WriteConcern("all", 0.03), rig.engine.write, Change("x", b"1"), {})
    assert acks == (1, False)
    assert rig.engine.get("x", {}).versions


def test_one_ack_is_ones_own_and_waits_for_nobody(rig: Rig) -> None:
    _, acks = rig.engine.write_with_concern(WriteConcern(1, LONG_S), rig.engine.write, Change("x", b"1"), {})
    assert acks == (1, True)


def test_what_issued_nothing_has_no_acks(rig: Rig) -> None:
    wrote, acks = rig.engine.write_with_concern(
        WriteConcern("all", LONG_S), rig.engine.write, Change("absent", None), {}
    )
    assert not wrote.deleted
    assert acks is None
    assert rig.engine.write_with_concern(None, rig.engine.write, Change("x", b"1"), {})[1] is None


def test_a_wait_for_acks_ends_when_the_gate_closes(rig: Rig) -> None:
    writing = rig.ask(rig.engine.write_with_concern, WriteConcern(3, LONG_S), rig.engine.write, Change("x", b"1"), {})
    wait_until(lambda: len(rig.engine._waiters) == 1)
    rig.close()
    assert result(writing)[1] == (1, False)


def test_one_more_than_may_wait_for_acks_is_refused_before_it_is_made(rig: Rig) -> None:
    for key in ("a", "b"):
        rig.ask(rig.engine.write_with_concern, WriteConcern(3, LONG_S), rig.engine.write, Change(key, b"1"), {})
    wait_until(lambda: rig.engine.ack_waits == 2 and len(rig.engine._waiters) == 2)
    with pytest.raises(TooManyAckWaits):
        rig.engine.write_with_concern(WriteConcern(3, LONG_S), rig.engine.write, Change("c", b"1"), {})
    assert rig.engine.get("c", {}).versions == ()
    rig.engine.write_with_concern(WriteConcern(1, LONG_S), rig.engine.write, Change("c", b"1"), {})
    acked(rig, 3)


def test_a_write_that_fails_gives_its_place_among_the_ack_waits_back(rig: Rig) -> None:
    for _ in range(3):
        with pytest.raises(PreconditionFailed):
            rig.engine.write_with_concern(
                WriteConcern(3, LONG_S), rig.engine.write, Change("x", b"1", if_match=('"none"',)), {}
            )
    assert rig.engine.ack_waits == 0


# -- what peers are told -------------------------------------------------------------------------------------------


def test_peers_are_told_of_each_update_and_of_nothing_else(rig: Rig) -> None:
    rig.engine.write(Change("x", b"1"), {})
    rig.engine.write(Change("x", None), {})
    rig.engine.write(Change("x", None), {})
    rig.engine.transact(["x"], [], {})
    rig.engine.transact([], [Change("a", b"1"), Change("b", b"1")], {})
    rig.engine.get("a", {})
    rig.engine.list({})
    assert [update.counter for update in rig.peers.written] == [1, 2, 3]
    assert [len(update.writes) for update in rig.peers.written] == [1, 1, 2]


# -- nothing moves after a refused call ----------------------------------------------------------------------------


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


REFUSALS: list[tuple[str, type[StoreError]]] = [
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
        for why, error in REFUSALS
        if not (call in {"get", "list"} and why in {"mismatch", "memory"}) and (call, why) != ("delete", "memory")
    ],
)
def test_after_a_refused_call_nothing_has_moved(call: str, why: str, error: type[StoreError]) -> None:
    rig = make(StoreSettings(max_memory_bytes=500) if why == "memory" else SETTINGS)
    rig.engine.write(Change("x", b"1"), {})
    if why == "memory":
        rig.store.table.bytes = 500
    before, told = fingerprint(rig.store), len(rig.peers.written)
    if why == "closed":
        rig.store.not_serving_reason = "closed"
    with pytest.raises(error):
        CALLS[call](
            rig.engine, {"other": 1} if why == "not reached" else {}, ('"none"',) if why == "mismatch" else None
        )
    assert fingerprint(rig.store) == before
    assert len(rig.peers.written) == told
    rig.store.not_serving_reason = None
    if why != "memory":
        assert rig.engine.write(Change("x", b"2"), {}).metadata == {rig.store.replica_id: 2}
    rig.pool.shutdown()


def test_at_the_memory_limit_what_frees_memory_is_let_through() -> None:
    rig = make(StoreSettings(max_memory_bytes=900))
    rig.engine.write(Change("x", b"1" * 100), {})
    with pytest.raises(OutOfMemory):
        rig.engine.write(Change("y", b"1" * 400), {})
    rig.engine.write(Change("x", b"1"), {})
    rig.engine.write(Change("x", None), {})
    rig.engine.write(Change("y", b"1" * 400), {})
    rig.pool.shutdown()


def test_one_mismatch_in_a_transaction_and_none_of_it_is_written(rig: Rig) -> None:
    rig.engine.write(Change("x", b"1"), {})
    with pytest.raises(PreconditionFailed) as mismatch:
        rig.engine.transact([], [Change("y", b"1"), Change("x", b"2", if_none_match=True)], {})
    assert mismatch.value.etag == f'"{rig.store.replica_id}:1"'
    assert rig.engine.get("y", {}).versions == ()


# -- threads -------------------------------------------------------------------------------------------------------


def test_writes_of_many_threads_take_each_dot_once_and_all_stand(rig: Rig) -> None:
    barrier = threading.Barrier(4)

    def write_some(name: int) -> list[int]:
        barrier.wait()
        issued = (rig.engine.write(Change(f"{name}/{number}", b"1"), {}).update for number in range(100))
        return [update.counter for update in issued if update is not None]

    counters = [counter for future in [rig.ask(write_some, n) for n in range(4)] for counter in result(future)]
    assert sorted(counters) == list(range(1, 401))
    assert len(rig.store.table) == 400


def test_a_reader_that_follows_writers_of_pairs_never_sees_half_a_pair(rig: Rig) -> None:
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


def test_the_engine_reads_the_clocks_that_it_was_given() -> None:
    moment = Instant(5.0, 1_000_000)
    engine = Engine(CausalStore("here@0000000000000001"), now=lambda: moment)
    wrote = engine.write(Change("x", b"1", ttl_us=2_000_000), {})
    assert wrote.update is not None
    assert wrote.update.writes[0].expires == 3_000_000
    moment = Instant(7.0, 2_999_999)
    assert engine.get("x", {}).versions
    moment = Instant(7.0, 3_000_000)
    assert engine.get("x", {}).versions == ()


def test_stats_name_what_is_there_and_what_waits(rig: Rig) -> None:
    rig.engine.write(Change("x", b"1"), {})
    reading = rig.ask(rig.engine.get, "x", {"other": 1})
    rig.deferred(1)
    stats = rig.engine.stats()
    assert (stats["keys"], stats["writes"], stats["deferred_now"], stats["deferred"]) == (1, 1, 1, 1)
    rig.close()
    with pytest.raises(NotServing):
        result(reading)
