"""The edge: bodies of unknown length, original paths, and exceptions outside of views."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse, StreamingHttpResponse

from kvsite.config import Config
from kvsite.fast_path import FastPath
from kvsite.guard import Guard
from kvsite.wsgi import Application, Edge, Environ, StartResponse
from store.api.keys import RAW_PATH
from store.api_tokens import parse_api_tokens
from store.settings import RequestLimits
from tests.support.api import make_context


class Unread:
    """A body that must not be read."""

    def read(self, size: int | None = None) -> bytes:
        raise AssertionError("the body was read")


def call(application: Application, limit: Any = 100, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    started: list[Any] = []
    environ_: Environ = {"REQUEST_METHOD": "PUT", "PATH_INFO": "/kvs/a", "wsgi.input": io.BytesIO(), **environ}
    context = make_context(limits=RequestLimits(max_body_bytes=limit))
    body = b"".join(Edge(application, context, None)(environ_, lambda *args: started.extend(args[:2])))
    return started[0], dict(started[1]), body


def ok(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b"ok"]


CHUNKED = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input_terminated": True}


@pytest.mark.parametrize("framing", [{"CONTENT_LENGTH": "5"}, CHUNKED])
@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/healthz", 200),
        ("GET", "/readyz", 200),
        ("PUT", "/healthz", 405),
        ("OPTIONS", "/kvs/a", 204),
    ],
)
def test_no_body_is_read_where_none_is_needed(framing: dict[str, Any], method: str, path: str, status: int) -> None:
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "1", "QUERY_STRING": ""}
    started: list[Any] = []
    edge = Edge(FastPath(WSGIHandler()), make_context(), None)
    edge({**environ, "wsgi.input": Unread(), **framing}, lambda *args: started.extend(args[:2]))
    assert started[0].startswith(str(status))


@pytest.mark.parametrize(
    "headers", [{}, {"HTTP_AUTHORIZATION": "Bearer wrong-token"}, {"HTTP_X_CAUSEWAY_PROOF": "1 x"}]
)
def test_no_body_of_a_rejected_request_is_read(headers: dict[str, str]) -> None:
    config = Config(cluster_secret="a secret of the cluster", api_tokens=parse_api_tokens("a:token-one:write"))
    context = make_context(config=config)
    started: list[Any] = []
    environ = {"REQUEST_METHOD": "PUT", "PATH_INFO": "/kvs/a", "wsgi.input": Unread(), "CONTENT_LENGTH": "5", **headers}
    Edge(ok, context, Guard.for_config(config, "x"))(environ, lambda *args: started.extend(args[:2]))
    assert started[0][:3] in ("401", "403")


def test_without_a_known_end_a_chunked_body_is_rejected() -> None:
    status, _, body = call(ok, HTTP_TRANSFER_ENCODING="chunked")
    assert status == "411 Length Required"
    assert "error" in json.loads(body)


def test_a_request_is_known_while_it_is_in_progress_and_gives_back_its_memory() -> None:
    context = make_context()
    bodies = context.bodies

    def application(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        assert list(bodies.in_progress.values()) == [environ]
        bodies.read(environ, 10**6)
        assert bodies._free_bytes < bodies._budget
        raise LookupError

    environ = {
        "REQUEST_METHOD": "PUT",
        "PATH_INFO": "/",
        "wsgi.input": io.BytesIO(b"x" * 10**5),
        "CONTENT_LENGTH": "100000",
    }
    Edge(application, context, None)(environ, lambda *_: None)
    assert not bodies.in_progress
    assert bodies._free_bytes == bodies._budget


def test_the_original_path_is_kept() -> None:
    def path(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        environ["PATH_INFO"] = "rewritten"
        return [environ[RAW_PATH].encode("latin-1")]

    assert call(path, PATH_INFO="/kvs/\xff%FF")[2] == b"/kvs/\xff%FF"


def test_an_exception_outside_of_a_view_is_a_logged_json_500(caplog: pytest.LogCaptureFixture) -> None:
    def broken(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        raise LookupError("no such thing")

    status, headers, body = call(broken)
    assert (status, json.loads(body)) == ("500 Internal Server Error", {"error": "Internal error"})
    assert headers.pop("X-Request-ID")
    assert headers == {
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
    }
    assert "no such thing" in caplog.text


def test_a_complete_response_becomes_one_list_and_is_closed() -> None:
    closed: list[bool] = []
    response = HttpResponse(b"whole")
    response.close = lambda: closed.append(True)  # type: ignore[method-assign]
    assert Edge(lambda *_: response, make_context(), None)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, print) == [
        b"whole"
    ]
    assert closed == [True]


def test_a_streaming_response_stays_unchanged() -> None:
    response = StreamingHttpResponse([b"a", b"b"])
    assert (
        Edge(lambda *_: response, make_context(), None)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, print) is response
    )


PEER = {"REQUEST_METHOD": "POST", "HTTP_HOST": "127.0.0.1:21500", "REMOTE_ADDR": "10.0.0.9", "QUERY_STRING": ""}
CLAIM = {"HTTP_X_CAUSEWAY_SENDER": "10.0.0.9:8090"}
EXCHANGE, GREETING = {"PATH_INFO": "/replication/exchange"}, {"PATH_INFO": "/healthz", "REQUEST_METHOD": "GET"}
PROOF = {"HTTP_X_CAUSEWAY_PROOF": "2 - 0 0 0 0"}
SECRET = Config(cluster_secret="a secret of the cluster")


@pytest.mark.parametrize(
    ("config", "request_", "kinds"),
    [
        (SECRET, EXCHANGE | CLAIM, ["secret"]),
        (SECRET, GREETING | PROOF | CLAIM, ["secret"]),
        (Config(), GREETING | PROOF | CLAIM, ["secret"]),
        (Config(), EXCHANGE | CLAIM | {"HTTP_HOST": "elsewhere"}, ["name"]),
        (Config(), EXCHANGE | CLAIM, ["message"]),
        (SECRET, EXCHANGE, []),
        (SECRET, {"PATH_INFO": "/kvs/a", "REQUEST_METHOD": "PUT"} | CLAIM, []),
        (Config(), GREETING | CLAIM, []),
    ],
)
def test_who_claims_to_have_sent_a_rejected_message_of_a_replica_is_noted(
    config: Config, request_: dict[str, str], kinds: list[str]
) -> None:
    """A replica without a secret rejects nothing in a greeting, but its sender rejects the response."""
    context = make_context(config=config)
    edge = Edge(FastPath(WSGIHandler()), context, Guard.for_config(config, "x"))
    environ = {"SERVER_NAME": "x", "SERVER_PORT": "1", "wsgi.input": io.BytesIO(), **PEER, **request_}
    b"".join(edge(environ, lambda *_: None))
    noted = context.node.rejected_senders.all()
    assert [(each.address, each.kind, each.source) for each in noted] == [
        ("10.0.0.9:8090", kind, "10.0.0.9") for kind in kinds
    ]
