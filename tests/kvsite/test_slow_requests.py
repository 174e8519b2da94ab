"""The log of slow requests: which requests count as slow, and the content of a line."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Callable, Iterable
from contextvars import copy_context
from typing import Any

import pytest

from kvsite import wsgi
from kvsite.config import Config
from kvsite.fast_path import FastPath
from kvsite.logs import HumanFormatter, JsonFormatter
from kvsite.wsgi import Edge
from tests.support.api import Api, api, make_context

__all__ = ["api"]

LOGGER = "causeway.requests"
Start = Callable[..., Any]


class Clock:
    """The clock that measures requests. A test moves it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 100.0
        monkeypatch.setattr(wsgi, "monotonic", lambda: self.now_s)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def ask(clock: Clock, work_s: float, hold_s: float = 0.0, *, path: str = "/kvs/a", **config: Any) -> None:
    """Send a request that takes ``work_s`` and waits ``hold_s`` in addition."""
    context = make_context(config=Config(**config))

    def application(environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        clock.now_s += work_s + hold_s
        context.engine.hold_time.seconds += hold_s
        start_response("404 Not Found", [])
        return [b'{"value": "a secret"}']

    environ = {
        "REQUEST_METHOD": "GET",
        "PATH_INFO": path,
        "wsgi.input": io.BytesIO(b'{"value": "a secret"}'),
        "HTTP_X_REQUEST_ID": "from-client",
    }
    b"".join(Edge(application, context, None)(environ, lambda *_: None))


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name == LOGGER]


@pytest.mark.parametrize(
    ("work_s", "hold_s", "limit", "logged"),
    [
        (0.9, 0.0, {}, False),
        (1.1, 0.0, {}, True),
        (0.9, 30.0, {}, False),  # the client asked to wait
        (1.1, 30.0, {}, True),
        (0.3, 0.0, {"slow_request_s": 0.25}, True),
        (3000.0, 0.0, {"slow_request_s": 0.0}, False),
    ],
)
def test_work_counts_and_hold_time_does_not(
    work_s: float, hold_s: float, limit: Any, logged: bool, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    ask(clock, work_s, hold_s, **limit)
    assert len(lines(caplog)) == logged


def test_the_hold_time_of_an_earlier_request_does_not_count(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    ask(clock, 0.0, 5.0)
    ask(clock, 1.1)
    assert len(lines(caplog)) == 1


def test_a_line_identifies_the_request_and_has_no_value(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    ask(clock, 1.25, 2.5, path="/kvs/\xc3\xa4\n\xff" + "k" * 500)
    (record,) = lines(caplog)
    assert record.levelname == "WARNING"
    # In a context of its own: the lines of a request share one limit.
    human = copy_context().run(HumanFormatter().format, record)
    fields = json.loads(JsonFormatter().format(record))
    assert "GET '/kvs/ä\\n\\\\xff" in human
    assert human.endswith("took 1.250 s, plus 2.500 s hold time; status 404 [from-client]")
    assert "secret" not in human + str(fields)
    assert fields["path"].startswith("/kvs/ä\n\\xffkkk")
    assert len(fields["path"]) == 200
    assert {name: fields[name] for name in ("method", "status", "duration_s", "hold_s", "request_id")} == {
        "method": "GET",
        "status": 404,
        "duration_s": 1.25,
        "hold_s": 2.5,
        "request_id": "from-client",
    }


@pytest.mark.parametrize(
    ("method", "path", "query", "body", "header"),
    [
        ("GET", "/kvs/a", "wait=0.2", b"", {"HTTP_X_CAUSAL_METADATA": '{"other@1": 1}'}),
        ("GET", "/kvs/a", "wait=0.2", b"", {"HTTP_IF_NONE_MATCH": "its own"}),
        ("PUT", "/kvs/a", "", b'{"value": 1, "w": 2, "w-timeout": 0.2}', {}),
    ],
    ids=["deferred", "watching", "acks"],
)
def test_every_kind_of_wait_counts_as_hold_time(
    method: str, path: str, query: str, body: bytes, header: dict[str, str], api: Api
) -> None:
    etag = api.put("/kvs/a", 1).headers["ETag"]
    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "CONTENT_LENGTH": str(len(body)),
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8090",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        **{name: text.replace("its own", etag) for name, text in header.items()},
    }
    hold_time = api.engine.hold_time
    hold_time.seconds = 0.0
    b"".join(Edge(FastPath(lambda *_: []), api.context, None)(environ, lambda *_: None))
    assert hold_time.seconds >= 0.15  # The client allows 0.2 s; the time before the wait does not count.
