"""An engine for tests of waiting requests: requests run in real threads, and the test does what they wait for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from store.causal import CausalStore
from store.clock import MAX_COUNTER, Clock, Dot
from store.engine import Engine
from store.results import LostUpdates
from store.settings import StoreSettings
from store.versions import Update
from tests.support.waiting import wait_until
from tests.support.wire import NOW

LONG_S = 20.0
"""Longer than any test takes: a request that returns earlier was woken."""


@dataclass
class Peers:
    """A ``Replication`` that returns what the test sets, and records its calls."""

    engine: Engine | None = None
    issued: list[Update] = field(default_factory=list)
    fetched: list[Clock] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    expected: list[tuple[Dot, int]] = field(default_factory=list)
    unrecoverable_gaps: LostUpdates = field(default_factory=dict)
    acked: int = 1
    members: int = 3

    def update_issued(self, update: Update) -> None:
        self._check_lock()
        self.issued.append(update)

    def fetch(self, past: Clock) -> int:
        self._check_lock()
        self.fetched.append(past)
        return len(self.fetched)

    fetch_for_retry = fetch

    def unrecoverable(self, past: Clock, token: int) -> LostUpdates:
        self._check_lock()
        self.tokens.append(token)
        return {id_: gap for id_, gap in self.unrecoverable_gaps.items() if past.get(id_, 0) >= gap[0]}

    def can_report_loss(self, token: int) -> bool:
        self._check_lock()
        return bool(self.unrecoverable_gaps)

    def expect_acks(self, dot: Dot, required: int) -> None:
        self._check_lock()
        self.expected.append((dot, required))

    def ack_counters(self, origin: str) -> list[int]:
        self._check_lock()
        return [0] * (self.members - self.acked) + [MAX_COUNTER] * (self.acked - 1)

    def acks_required(self, write_concern: str) -> int:
        return self.members if write_concern == "all" else self.members // 2 + 1

    def _check_lock(self) -> None:
        assert self.engine is not None
        assert self.engine.lock._is_owned()  # type: ignore[attr-defined]


SETTINGS = StoreSettings(max_deferred=2, max_watchers=2, defer_timeout_s=LONG_S)


@dataclass
class Rig:
    """An engine, another replica that issues updates, and threads for requests."""

    store: CausalStore
    engine: Engine
    peers: Peers
    pool: ThreadPoolExecutor
    other: CausalStore = field(default_factory=lambda: CausalStore("other@0000000000000001"))

    def ask(self, request: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        return self.pool.submit(request, *args, **options)

    def deferred(self, count: int) -> None:
        wait_until(lambda: len(self.engine.waiters.deferred) == count)

    def watching(self, count: int) -> None:
        wait_until(lambda: len(self.engine.waiters.watching) == count)

    def waiting_for_acks(self, count: int) -> None:
        wait_until(lambda: len(self.engine.waiters.ack_waits) == count)

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
