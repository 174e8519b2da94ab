"""The edge: bodies of unknown length, original paths, and exceptions outside of views."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from typing import Any

import pytest
from django.http import HttpResponse, StreamingHttpResponse

from kvsite.wsgi import Application, Edge, Environ, StartResponse
from store.api.keys import RAW_PATH
from store.settings import RequestLimits
from tests.support.api import make_context


class Trickle(io.BytesIO):
    """A stream that returns at most three bytes per read, as that of a slow client does."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3 if size is None or size < 0 else min(3, size))


def call(application: Application, limit: Any = 100, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    started: list[Any] = []
    environ_: Environ = {"REQUEST_METHOD": "PUT", "PATH_INFO": "/kvs/a", "wsgi.input": io.BytesIO(), **environ}
    context = make_context(limits=RequestLimits(max_body_bytes=limit))
    body = b"".join(Edge(application, context, None)(environ_, lambda *args: started.extend(args[:2])))
    return started[0], dict(started[1]), body


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Return the body, read as Django reads it: up to the declared length."""
    start_response("200 OK", [])
    return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]


def chunked(body: bytes) -> dict[str, Any]:
    return {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": Trickle(body), "wsgi.input_terminated": True}


@pytest.mark.parametrize(("sent", "read"), [(0, 0), (7, 7), (100, 100), (101, 101), (5000, 101)])
def test_a_chunked_body_is_read_up_to_one_byte_above_the_limit(sent: int, read: int) -> None:
    assert call(echo, **chunked(b"x" * sent))[2] == b"x" * read


def test_a_body_with_a_length_is_not_read() -> None:
    assert call(echo, CONTENT_LENGTH="3", **{"wsgi.input": io.BytesIO(b"abcdef")})[2] == b"abc"


def test_without_a_known_end_a_chunked_body_is_rejected() -> None:
    status, _, body = call(echo, HTTP_TRANSFER_ENCODING="chunked")
    assert status == "411 Length Required"
    assert "error" in json.loads(body)


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
