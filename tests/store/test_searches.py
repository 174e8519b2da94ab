"""Searches of the change feed among many changes: without the engine's lock, one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from store.causal import CausalStore
from store.engine import Changes, Engine, FeedToken
from store.errors import TooManySearches
from store.feed import MAX_DIRECT, Search
from store.versions import Change
from tests.support.waiting import wait_until

TIMEOUT_S = 20.0


@dataclass
class Rig:
    """An engine of a replica without peers, and threads for requests."""

    engine: Engine
    pool: ThreadPoolExecutor


@pytest.fixture
def rig() -> Iterator[Rig]:
    with ThreadPoolExecutor(8) as pool:
        store = CausalStore("here@0000000000000001")
        store.not_serving_reason = None
        yield Rig(Engine(store), pool)


def follow(rig: Rig, token: FeedToken | None, wait_s: float = 0) -> Changes:
    return rig.engine.changes("p/", token, {}, wait_s=wait_s, max_bytes=1 << 20)


def put_many(rig: Rig, count: int) -> None:
    for number in range(count):
        rig.engine.write(Change(f"p/{number:04}", b"1"), {})


def test_a_search_among_many_changes_does_not_hold_the_lock(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another request writes while it runs, and the response has that write too."""
    token = follow(rig, None).token
    put_many(rig, MAX_DIRECT + 1)
    run = Search.run

    def run_beside_a_write(search: Search) -> None:
        rig.pool.submit(rig.engine.write, Change("p/meanwhile", b"2"), {}).result(10)
        run(search)

    monkeypatch.setattr(Search, "run", run_beside_a_write)
    found = follow(rig, token)
    assert len(found.keys) == MAX_DIRECT + 2
    assert "p/meanwhile" in found.keys


def test_few_changes_need_no_search(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    token = follow(rig, None).token
    put_many(rig, MAX_DIRECT)
    monkeypatch.delattr(Search, "run")
    assert len(follow(rig, token).keys) == MAX_DIRECT


def test_searches_run_one_at_a_time_and_few_wait(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    token = follow(rig, None).token
    put_many(rig, MAX_DIRECT + 1)
    monkeypatch.setattr("store.searches.MAX_WAITING", 3)
    may_end, running, most = threading.Event(), [0], [0]
    run = Search.run

    def slow(search: Search) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        may_end.wait(10)
        run(search)
        running[0] -= 1

    monkeypatch.setattr(Search, "run", slow)
    waiting = [rig.pool.submit(follow, rig, token) for _ in range(3)]
    wait_until(lambda: rig.engine.searches.count == 3)
    with pytest.raises(TooManySearches):
        follow(rig, token)
    assert len(follow(rig, None).keys) == MAX_DIRECT + 1, "a request without a search does not wait"
    may_end.set()
    assert [len(future.result(TIMEOUT_S).keys) for future in waiting] == [MAX_DIRECT + 1] * 3
    assert most[0] == 1
    assert rig.engine.searches.count == 0


def test_a_waiting_poll_looks_at_what_others_wrote_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    token = follow(rig, None).token
    for number in range(MAX_DIRECT + 1):
        rig.engine.write(Change(f"q/{number}", b"1"), {})
    searches: list[Search] = []
    run = Search.run

    def counted(search: Search) -> None:
        searches.append(search)
        run(search)

    monkeypatch.setattr(Search, "run", counted)
    poll = rig.pool.submit(follow, rig, token, 10)
    wait_until(lambda: len(rig.engine.waiters.watching) == 1)
    rig.engine.write(Change("p/a", b"1"), {})
    assert list(poll.result(TIMEOUT_S).keys) == ["p/a"]
    assert len(searches) == 1
