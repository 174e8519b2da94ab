"""Support for tests of the API: a real engine behind Django's test client, and contexts for the edge.

The replica has no peers and uses this machine's clock. Requests do not wait for their causal past unless they have
``wait``: waiting would only make tests slow.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import Client, RequestFactory

from kvsite.config import Config
from kvsite.context import ServerContext
from kvsite.fast_path import FastPath
from kvsite.wsgi import Edge
from replication.node import Node
from store.address import parse_address
from store.api.context import CONTEXT
from store.causal import CausalStore
from store.clock import Instant, replica_id
from store.engine import Engine, read_clocks
from store.settings import RequestLimits, StoreSettings
from store.versions import Update, Write
from tests.support.fake_node import FakeNode

OWN_ID = FakeNode.id
PEER_ID = replica_id(parse_address("127.0.0.1:21501"), 2)

LIMITS = RequestLimits(max_body_bytes=2_000_000, max_value_bytes=10_000, max_clock_entries=8, max_batch=10)
"""Small, so that a test exceeds them quickly. The body's limit is above what the test of deep nesting sends."""


@dataclass(frozen=True, slots=True)
class Response:
    """One response. ``body``: decoded JSON, or bytes if the response says so; None if there is no body."""

    status: int
    body: Any
    headers: dict[str, str]

    @property
    def metadata(self) -> Any:
        return self.body["causal-metadata"]


def make_context(
    engine: Engine | None = None,
    *,
    node: Any = None,
    limits: RequestLimits = LIMITS,
    config: Config | None = None,
) -> ServerContext:
    """Return a context. By default: a fresh store, a fake node, and an open replica."""
    return ServerContext(
        engine=engine or Engine(make_store()),
        limits=limits,
        node=cast("Node", node or FakeNode()),
        config=config or Config(),
    )


class Api:
    """A client of one replica.

    ``ask`` and the methods that use it send requests through the edge and the fast path, as a server does. With
    ``edge`` False, and through ``_client``, Django's handler serves them.
    """

    def __init__(
        self, store: CausalStore, *, engine: Engine | None = None, node: Any = None, edge: bool = True
    ) -> None:
        self.store = store
        self.context = make_context(engine or Engine(store), node=node)
        self._edge = edge
        self._client = Client(raise_request_exception=False)
        self.use()

    @property
    def engine(self) -> Engine:
        return self.context.engine

    def use(self, **parts: Any) -> None:
        """Replace parts of the context for all further requests."""
        self.context = replace(self.context, **parts)
        self._application = Edge(FastPath(_django()), self.context, None)
        self._client.defaults[CONTEXT] = self.context  # type: ignore[assignment]  # environ may hold any object

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        raw: bytes | None = None,
        content_type: str | None = "application/json",
        headers: dict[str, str] | None = None,
    ) -> Response:
        """Send one request. ``body`` is sent as JSON, ``raw`` unchanged. ``path`` is percent-encoded."""
        data = raw if raw is not None else b"" if body is None else json.dumps(body).encode()
        extra: dict[str, Any] = {"CONTENT_TYPE": ""} if content_type is None else {}
        options = (method, path, data, content_type or "application/json")
        if not self._edge:
            response = self._client.generic(*options, headers=headers or {}, **extra)
            return _response(response.status_code, dict(response.headers), response.content)
        environ = RequestFactory().generic(*options, headers=headers or {}, **extra).environ
        environ["PATH_INFO"] = unquote_to_bytes(path.partition("?")[0]).decode("latin-1")
        started: list[Any] = []
        content = b"".join(self._application(environ, lambda *args: started.extend(args)))
        return _response(int(started[0][:3]), dict(started[1]), b"" if method == "HEAD" else content)

    def open(self, path: str, headers: dict[str, str]) -> Any:
        """Send a GET through the edge, and return its body as the server gets it, without reading it."""
        environ = RequestFactory().generic("GET", path, headers=headers).environ
        return self._application(environ, lambda *args: None)

    def stop_serving(self) -> None:
        """Close the gate, as when the replica leaves the view."""
        with self.engine.lock:
            self.store.not_serving_reason = "Replica is not in the view"
            self.engine.wake()

    def get(self, path: str, past: Any = None, **options: Any) -> Response:
        return self.ask("GET", path, {"causal-metadata": past}, **options)

    def put(self, path: str, value: Any, past: Any = None, **options: Any) -> Response:
        return self.ask("PUT", path, {"value": value, "causal-metadata": past}, **options)

    def delete(self, path: str, past: Any = None, **options: Any) -> Response:
        return self.ask("DELETE", path, {"causal-metadata": past}, **options)

    def state(self) -> tuple[Any, ...]:
        """Return everything that a request could change."""
        store = self.store
        return dict(store.clock), dict(store.delete_clock), store.table.copy(), store.clock_changes

    def receive_update(
        self, key: str, value: bytes | None, *, counter: int = 1, deps: dict[str, int] | None = None
    ) -> None:
        """Receive an update of a peer with the dependencies ``deps``; its timestamp is above all others."""
        update = Update(PEER_ID, counter, 2**61 + counter, deps or {}, (Write(key, value),))
        self.store.receive([update], self.store_now())

    def store_now(self) -> Any:
        return read_clocks()


@functools.cache
def _django() -> WSGIHandler:
    return WSGIHandler()


def _response(status: int, headers: dict[str, str], content: bytes) -> Response:
    is_bytes = headers.get("Content-Type") == "application/octet-stream"
    return Response(status, None if not content else content if is_bytes else json.loads(content), headers)


def make_store(**settings: Any) -> CausalStore:
    """Return the store of a replica without peers. Requests do not wait for their causal past by default."""
    return CausalStore(OWN_ID, StoreSettings(**{"defer_timeout_s": 0.0, **settings}))


def fresh_api(now: Callable[[], Instant] = read_clocks) -> Api:
    """Return a client of a fresh replica."""
    store = make_store()
    return Api(store, engine=Engine(store, now=now))


@pytest.fixture
def api() -> Api:
    """A client of a fresh replica."""
    return fresh_api()
