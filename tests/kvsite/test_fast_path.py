"""The fast path (kvsite/fast_path.py) responds exactly as Django's own handler does.

Each case is sent through both, each with a fresh replica. Status, headers, body and log lines must be equal.
"""

from __future__ import annotations

import gc
import io
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import pytest
from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.core.signals import request_finished, request_started
from django.db import reset_queries
from django.dispatch import Signal
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver

from kvsite.config import Config
from kvsite.fast_path import API_ROUTES, FastPath, Router
from kvsite.guard import Guard
from kvsite.wsgi import Edge
from store.api.base import ApiView
from store.api.context import CONTEXT
from store.api.request import ApiRequest
from store.api.response import ApiResponse
from store.api.views import KeyView
from store.api_tokens import ApiToken
from store.causal import CausalStore
from store.clock import Instant
from store.engine import Engine
from store.settings import RequestLimits
from store.versions import Change, Update, Write
from tests.support.api import OWN_ID, PEER_ID, make_context, make_store
from tests.support.fake_node import FakeNode

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]
Wrap = Callable[[Engine], Application]

PATHS = {
    # exact paths and prefixes of the API, and similar paths
    "/kvs", "/kvs/", "/kvs/a", "/kvs/a/", "/kvs//", "//kvs/a", "/kvsa", "/KVS/a", "kvs/a", "/kvs/a/b/../c", "/kvs/.",
    "/kvs/absent", "/view", "/view/", "/healthz", "/healthz/", "/readyz", "/metrics/", "/replication/status",
    "/replication/exchange", "/replication/exchange/", "/replication/snapshot", "/replication/explain",
    "/replication/explain/", "/replication/explain/a/b",
    # bytes, which WSGI decodes as Latin-1
    "/kvs/\xff", "/kvs/%FF", "/kvs/%25FF", "/kvs/\xc3\xa4", "/kvs/\n", "/kvs/a\nb", "/kvs/\x00", "/kvs/\xed\xa0\x80",
    "/view\xff", "/\xff", "/kvs/" + "k" * 513,
    # paths outside of the API
    "", "/", "/nothing", "/schema/", "/schema",
}  # fmt: skip
METHODS = ["GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "BREW", "get", ""]


class Case(NamedTuple):
    method: str = "GET"
    path: str = "/kvs/a"
    body: bytes | None = None
    environ: dict[str, str] = {}


JSON = {"CONTENT_TYPE": "application/json"}
VALUE = b'{"value": 1}'
CASES = {
    "written": Case("PUT", body=VALUE, environ=JSON),
    "written anew": Case("PUT", "/kvs/new", VALUE, JSON),
    "written by POST": Case("POST", body=VALUE, environ=JSON),
    "deleted": Case("DELETE"),
    "no type": Case("PUT", body=VALUE),
    "charset": Case("PUT", body=VALUE, environ={"CONTENT_TYPE": "application/json; charset=utf-8"}),
    "odd charset": Case("PUT", body=VALUE, environ={"CONTENT_TYPE": "application/json; charset=utf-16"}),
    "no such charset": Case("PUT", body=VALUE, environ={"CONTENT_TYPE": "application/json; charset=x"}),
    "loud type": Case("PUT", body=VALUE, environ={"CONTENT_TYPE": "Application/JSON"}),
    "form": Case("PUT", body=b"value=1", environ={"CONTENT_TYPE": "application/x-www-form-urlencoded"}),
    "multipart": Case("PUT", body=b"--x--", environ={"CONTENT_TYPE": "multipart/form-data; boundary=x"}),
    "broken type": Case("PUT", body=VALUE, environ={"CONTENT_TYPE": "; = ;"}),
    "type, no body": Case("GET", environ={"CONTENT_TYPE": "text/plain"}),
    "no value": Case("PUT", body=b"{}", environ=JSON),
    "no JSON": Case("PUT", body=b"{", environ=JSON),
    "no UTF-8": Case("PUT", body=b'{"value": "\xff"}', environ=JSON),
    "no body": Case("PUT", environ=JSON),
    "deep": Case("PUT", body=b'{"value":' + b"[" * 5000 + b"]" * 5000 + b"}", environ=JSON),
    "too long": Case("PUT", body=b" " * 2001, environ=JSON),
    "breaks off": Case("PUT", body=VALUE, environ={**JSON, "CONTENT_LENGTH": "999"}),
    "more than was said": Case("PUT", body=VALUE + b"}", environ={**JSON, "CONTENT_LENGTH": "12"}),
    "length 0": Case("PUT", body=VALUE, environ={**JSON, "CONTENT_LENGTH": "0"}),
    "length empty": Case("PUT", body=VALUE, environ={**JSON, "CONTENT_LENGTH": ""}),
    "length negative": Case("PUT", body=VALUE, environ={**JSON, "CONTENT_LENGTH": "-1"}),
    "length spaced": Case("PUT", body=VALUE, environ={**JSON, "CONTENT_LENGTH": " 12"}),
    "length nonsense": Case("PUT", body=VALUE, environ={**JSON, "CONTENT_LENGTH": "²"}),
    "chunked": Case("PUT", body=VALUE, environ={"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}),
    "chunked, long": Case("PUT", body=b" " * 3000, environ={"CONTENT_LENGTH": "", "HTTP_TRANSFER_ENCODING": "chunked"}),
    "body of a GET": Case("GET", body=b'{"causal-metadata": {}}', environ=JSON),
    "past in the header": Case(environ={"HTTP_X_CAUSAL_METADATA": '{"other@1": 0}'}),
    "past not reached": Case(environ={"HTTP_X_CAUSAL_METADATA": '{"other@1": 5}'}),
    "past with odd ids": Case(environ={"HTTP_X_CAUSAL_METADATA": '{"\xc3\xa4\x7f": 5}'}),
    "past malformed": Case(environ={"HTTP_X_CAUSAL_METADATA": "[]"}),
    "past in the query": Case(environ={"QUERY_STRING": "causal-metadata=%7B%7D"}),
    "query broken": Case(environ={"QUERY_STRING": "wait=\xff"}),
    "query wrong": Case(environ={"QUERY_STRING": "wait=never"}),
    "siblings": Case(path="/kvs/conflict"),
    "listing": Case(path="/kvs", environ={"QUERY_STRING": "values=true&prefix=%C3%A4"}),
    "transaction": Case("POST", "/kvs", b'{"reads": ["a"], "writes": [{"key": "b", "value": 2}]}', JSON),
    "transaction, wrong": Case("POST", "/kvs", b'{"reads": 1}', JSON),
    "known version": Case(environ={"HTTP_IF_NONE_MATCH": "*"}),
    "precondition failed": Case("PUT", body=VALUE, environ={**JSON, "HTTP_IF_MATCH": '"other"'}),
    "precondition malformed": Case("PUT", body=VALUE, environ={**JSON, "HTTP_IF_MATCH": "other"}),
    "acks": Case("PUT", body=b'{"value": 1, "w": 2, "w-timeout": 0}', environ=JSON),
    "host unknown": Case(environ={"HTTP_HOST": "evil.example"}),
    "host unknown, PUT": Case("PUT", body=VALUE, environ={**JSON, "HTTP_HOST": "evil.example"}),
    "host unknown, health": Case(path="/healthz", environ={"HTTP_HOST": "evil.example"}),
    "host with underscore": Case(environ={"HTTP_HOST": "my_replica:8090"}),
    "host absent": Case(environ={"HTTP_HOST": ""}),
    "member added": Case("PUT", "/view", b'{"socket-address": "127.0.0.1:9"}', JSON),
    "member bad": Case("PUT", "/view", b'{"socket-address": "127.0.0.1"}', JSON),
    "exchange": Case("POST", "/replication/exchange", b"\x93abc", {"CONTENT_TYPE": "application/msgpack"}),
    "exchange, no message": Case("POST", "/replication/exchange", b"abc", {"CONTENT_TYPE": "application/msgpack"}),
    "exchange in JSON": Case("POST", "/replication/exchange", b"{}", JSON),
    "fault in a view": Case(path="/replication/status"),
    "fault in a view, POST": Case("POST", "/replication/snapshot", b"\x93", {}),
    "page of elsewhere": Case("POST", environ={"HTTP_ORIGIN": "https://evil.example"}),
    "page that is named": Case(environ={"HTTP_ORIGIN": "https://app.example"}),
    "preflight": Case(
        "OPTIONS", environ={"HTTP_ORIGIN": "https://app.example", "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "PUT"}
    ),
    "mounted elsewhere": Case(environ={"SCRIPT_NAME": "/sub"}),
    "mounted elsewhere, absent": Case(path="/kvs/absent", environ={"SCRIPT_NAME": "/sub"}),
    "cookies": Case(environ={"HTTP_COOKIE": "sessionid=x; csrftoken=y"}),
}  # fmt: skip


class FailingNode(FakeNode):
    """A node whose status and snapshots raise an exception."""

    def status(self, **_options: Any) -> dict[str, Any]:
        raise LookupError("no status")

    def snapshot(self, body: bytes) -> bytes:
        raise LookupError("no snapshot")


class Outcome(NamedTuple):
    """Everything that a client and an operator see of one request. The order of headers does not count."""

    status: str
    headers: list[tuple[str, str]]
    body: bytes
    log: list[tuple[str, str, str, Any, str]]


def environ_of(case: Case) -> Environ:
    """Return the WSGI environment as granian makes it."""
    body = case.body or b""
    declared = {} if case.body is None else {"CONTENT_LENGTH": str(len(body))}
    return {
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8090",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "SCRIPT_NAME": "",
        "REQUEST_METHOD": case.method,
        "PATH_INFO": case.path,
        "QUERY_STRING": "",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "HTTP_HOST": "127.0.0.1:8090",
        "HTTP_X_REQUEST_ID": "from-client",
        **declared,
        **case.environ,
    }


def send(wrap: Wrap, case: Case, caplog: pytest.LogCaptureFixture) -> Outcome:
    """Send ``case`` to a fresh replica that has a key and a conflict, through an edge that ``wrap`` makes."""
    store = make_store()
    _fill(store)
    application = wrap(Engine(store))
    caplog.clear()
    started: list[Any] = []
    with caplog.at_level(logging.INFO):
        body = b"".join(application(environ_of(case), lambda *args: started.extend(args)))
    log = [
        (record.name, record.levelname, record.getMessage(), getattr(record, "status_code", None),
         str(record.exc_info and record.exc_info[0]))
        for record in caplog.records
    ]  # fmt: skip
    return Outcome(started[0], sorted(started[1]), body, log)


def _fill(store: CausalStore) -> None:
    now = Instant(1.0, 1_700_000_000_000_000)
    for key in ("a", "conflict"):
        store.put(Change(key, b"1"), {}, now)
    store.receive([Update(PEER_ID, 1, 1_700_000_000_000_001, {}, (Write("conflict", b"2"),))], now)


def both(config: Config | None = None) -> tuple[Wrap, Wrap]:
    """Return functions that make an edge around Django's handler, and around the fast path."""
    made = config or Config(cors_origins=("https://app.example",))

    def edge(application: Application, engine: Engine) -> Edge:
        limits = RequestLimits(max_body_bytes=2000, max_value_bytes=1000)
        context = make_context(engine, node=FailingNode(), limits=limits, config=made)
        return Edge(application, context, Guard.for_config(made, OWN_ID))

    return partial(edge, WSGIHandler()), partial(edge, FastPath(WSGIHandler()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_at_every_path(method: str, caplog: pytest.LogCaptureFixture) -> None:
    full, fast = both()
    for path in sorted(PATHS):
        for body in (None, VALUE):
            case = Case(method, path, body)
            assert send(fast, case, caplog) == send(full, case, caplog), case


@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_request(name: str, caplog: pytest.LogCaptureFixture) -> None:
    full, fast = both()
    assert send(fast, CASES[name], caplog) == send(full, CASES[name], caplog)


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer reading-token", "Bearer writing-token", "Bearer prefixed-token", "Bearer wrong", "Basic x"],
)
def test_tokens(authorization: str, caplog: pytest.LogCaptureFixture) -> None:
    tokens = (
        ApiToken("r", "reading-token", "read"),
        ApiToken("w", "writing-token", "write"),
        ApiToken("p", "prefixed-token", "write", ("a", "\xe4")),
    )
    full, fast = both(Config(api_tokens=tokens, cluster_secret="a secret of some length"))
    own = Case("POST", "/kvs", b'{"reads": ["ab"], "writes": [{"key": "a", "value": 2}]}', JSON)
    foreign = Case("POST", "/kvs", b'{"writes": [{"key": "b", "value": 2}]}', JSON)
    paths = [Case(path=path) for path in sorted(PATHS)]
    for case in (*CASES.values(), own, foreign, *paths):
        request = case._replace(environ={**case.environ, "HTTP_AUTHORIZATION": authorization})
        assert send(fast, request, caplog) == send(full, request, caplog), request


def test_the_cases_cover_every_kind_of_response(caplog: pytest.LogCaptureFixture) -> None:
    fast = both()[1]
    statuses = {send(fast, case, caplog).status[:3] for case in CASES.values()}
    assert statuses >= {"200", "201", "202", "204", "304", "400", "403", "404", "412", "413", "415", "500", "503"}


@pytest.mark.parametrize("attribute", ["respond", "get"])
def test_an_exception_that_no_view_catches(
    attribute: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        """Raise outside of a handler; a handler that returns None makes its view raise."""
        if attribute == "respond":
            raise LookupError("in the view")

    monkeypatch.setattr(KeyView, attribute, broken)
    full, fast = both()
    outcome = send(fast, Case(), caplog)
    assert outcome.status == "500 Internal Server Error"
    assert [entry[:2] for entry in outcome.log] == [("django.request", "ERROR")]
    assert outcome == send(full, Case(), caplog)


def test_a_header_that_a_handler_adds(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    get = KeyView.get

    def get_with_header(self: KeyView, *args: Any, **kwargs: Any) -> ApiResponse:
        response = get(self, *args, **kwargs)
        response.headers["X-Added"] = "b"
        return response

    monkeypatch.setattr(KeyView, "get", get_with_header)
    full, fast = both()
    outcome = send(fast, Case(), caplog)
    assert ("X-Added", "b") in outcome.headers
    assert outcome == send(full, Case(), caplog)


# --- what takes the fast path -----------------------------------------------------------------------------------------


def api_patterns() -> list[URLPattern]:
    """Return the patterns of Django's URL configuration whose view is one of the API's."""
    included = [p for p in get_resolver().url_patterns if isinstance(p, URLResolver) and not str(p.pattern)]
    patterns = [pattern for resolver in included for pattern in resolver.url_patterns]
    return [p for p in patterns if isinstance(p, URLPattern) and issubclass(p.callback.cls, ApiView)]  # type: ignore[attr-defined]


def test_every_route_of_the_api_takes_the_fast_path_and_nothing_else_does() -> None:
    assert [route.name for route in API_ROUTES] == [pattern.name for pattern in api_patterns()]

    passed: list[str] = []

    def django(environ: Environ, start_response: Callable[..., Any]) -> list[bytes]:
        passed.append(environ["PATH_INFO"])
        return []

    entry = FastPath(django)
    context = make_context(node=FailingNode())
    elsewhere = ["", "/", "/schema/", "/docs/", "/admin/", "/admin/login/", "/admin/static/x", "/view/", "/kvsa"]
    for path in ("/kvs", "/kvs/a", "/kvs/", "/view", "/healthz", "/readyz", "/replication/explain/a", *elsewhere):
        entry({**environ_of(Case(path=path)), CONTEXT: context}, lambda *_: None)
    assert passed == elsewhere


@pytest.mark.parametrize("path", sorted(PATHS))
def test_routes_are_found_as_django_finds_them(path: str) -> None:
    request = WSGIRequest(environ_of(Case(path=path)))
    found = Router(API_ROUTES).find(request.path_info)
    if found is None:
        callbacks = {pattern.callback for pattern in api_patterns()}
        with suppress(Resolver404):
            assert get_resolver().resolve(request.path_info).func not in callbacks
    else:
        match = get_resolver().resolve(request.path_info)
        assert found == (match.func.cls, tuple(match.kwargs.values()))  # type: ignore[attr-defined]
        assert match.args == ()


@pytest.mark.parametrize("name", CASES)
def test_the_request_equals_that_of_django(name: str) -> None:
    case = CASES[name]._replace(environ={**CASES[name].environ, "SCRIPT_NAME": ""})
    theirs, ours = WSGIRequest(environ_of(case)), ApiRequest(environ_of(case), case.path)
    assert (ours.method, ours.path, ours.media_type) == (theirs.method, theirs.path_info, theirs.content_type)
    same = ApiRequest.from_django(theirs)
    assert (same.method, same.path, same.media_type) == (ours.method, ours.path, ours.media_type)


@pytest.mark.parametrize("signal", [request_started, request_finished])
@pytest.mark.parametrize("fails", [False, True])
def test_receivers_of_django_signals_are_called(signal: Signal, fails: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def receive(**_: Any) -> None:
        calls.append(1)

    def respond(*_: Any) -> None:
        raise LookupError("outside of a handler")

    if fails:
        monkeypatch.setattr(KeyView, "respond", respond)
    signal.connect(receive)
    try:
        edge = both()[1](Engine(make_store()))
        b"".join(edge(environ_of(Case()), lambda *_: None))
    finally:
        signal.disconnect(receive)
    assert calls == [1]


def test_idle_signal_receivers_are_disconnected() -> None:
    assert not request_started.disconnect(reset_queries)
    assert not request_finished.disconnect(close_caches)
    assert not request_finished.disconnect(reset_urlconf)


def test_a_request_leaves_no_garbage_for_the_collector() -> None:
    fast = both()[1](Engine(make_store()))
    cases = [Case(), Case("HEAD"), Case("PUT", body=VALUE, environ=JSON), Case(path="/kvs/absent"), Case(path="/kvs")]
    for case in cases:
        b"".join(fast(environ_of(case), lambda *_: None))
    gc.disable()
    gc.freeze()  # Ignore what other tests left; threads of their servers may still be ending.
    try:
        for case in cases:
            b"".join(fast(environ_of(case), lambda *_: None))
        assert gc.collect() == 0
    finally:
        gc.unfreeze()
        gc.enable()
