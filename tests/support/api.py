"""What the tests of the API share: a real engine behind Django's test client, and a picture of its state.

The replica is alone and its clock is that of the machine. Requests do not wait for their causal past (a test would
only be slow) unless they say so by ``wait``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from django.test import Client

from replication.address import parse_address
from store.api import context
from store.api.keys import RAW_PATH
from store.causal import CausalStore
from store.clock import Instant, replica_id
from store.engine import Engine, read_clocks
from store.settings import RequestLimits, StoreSettings
from store.versions import Update, Write

OWN_ID = replica_id(parse_address("127.0.0.1:21500"), 1)
PEER_ID = replica_id(parse_address("127.0.0.1:21501"), 2)

LIMITS = RequestLimits(max_body_bytes=2_000_000, max_value_bytes=10_000, max_clock_entries=8, max_batch=10)
"""Small, so that a test passes them quickly; the body's is above what a test of deep nesting sends."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One response. ``body``: decoded JSON, None where there is none."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def metadata(self) -> Any:
        return self.body["causal-metadata"]


class Api:
    """A client of one replica. ``edge``: whether the server's WSGI wrapper is played, which tells the path's bytes."""

    def __init__(self, store: CausalStore, *, edge: bool = True) -> None:
        self.store = store
        self._edge = edge
        self._client = Client(raise_request_exception=False)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        content_type: str | None = "application/json",
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send one request; ``body`` goes as JSON, ``raw`` as it is. ``path`` is percent-encoded."""
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        extra: dict[str, Any] = {RAW_PATH: _path_info(path)} if self._edge else {}
        if content_type is None:
            extra["CONTENT_TYPE"] = ""
        response = self._client.generic(
            method, path, data, content_type or "application/json", headers=headers or {}, **extra
        )
        content = json.loads(response.content) if response.content else None
        return Answer(response.status_code, content, dict(response.headers))

    def get(self, path: str, past: Any = None, **options: Any) -> Answer:
        return self.ask("GET", path, {"causal-metadata": past}, **options)

    def put(self, path: str, value: Any, past: Any = None, **options: Any) -> Answer:
        return self.ask("PUT", path, {"value": value, "causal-metadata": past}, **options)

    def delete(self, path: str, past: Any = None, **options: Any) -> Answer:
        return self.ask("DELETE", path, {"causal-metadata": past}, **options)

    def state(self) -> tuple[Any, ...]:
        """Return all that a request could change."""
        store = self.store
        return dict(store.clock), dict(store.delete_clock), store.table.copy(), store.clock_changes

    def hear(self, key: str, value: bytes | None, *, counter: int = 1, deps: dict[str, int] | None = None) -> None:
        """Let a peer's update arrive that knows of nothing but ``deps``; its timestamp is above all here."""
        update = Update(PEER_ID, counter, 2**61 + counter, deps or {}, (Write(key, value),))
        self.store.receive([update], self.store_now())

    def store_now(self) -> Any:
        return read_clocks()


def _path_info(path: str) -> str:
    from urllib.parse import unquote_to_bytes

    return unquote_to_bytes(path.partition("?")[0]).decode("latin-1")


def make_store(*, now: Callable[[], Instant] = read_clocks, **settings: Any) -> CausalStore:
    """Return the data of a lone replica, served by the views from now on."""
    store = CausalStore(OWN_ID, StoreSettings(**{"defer_timeout_s": 0.0, **settings}))
    context.bind(Engine(store, now=now), LIMITS)
    return store


@contextmanager
def fresh_api(now: Callable[[], Instant] = read_clocks) -> Iterator[Api]:
    """A client of a fresh replica, which the views serve for so long."""
    unbound = context._engine, context._limits
    yield Api(make_store(now=now))
    context._engine, context._limits = unbound


@pytest.fixture
def api() -> Iterator[Api]:
    """A client of a fresh replica."""
    with fresh_api() as client:
        yield client
