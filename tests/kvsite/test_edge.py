"""The edge around Django: bodies of unknown length, paths as they came, and faults that no view sees."""

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
    """A stream that never returns more than three bytes at once, as a slow client's does."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(3 if size is None or size < 0 else min(3, size))


def call(application: Application, limit: Any = 100, **environ: Any) -> tuple[str, dict[str, str], bytes]:
    told: list[Any] = []
    full: Environ = {"REQUEST_METHOD": "PUT", "PATH_INFO": "/kvs/a", "wsgi.input": io.BytesIO(), **environ}
    context = make_context(limits=RequestLimits(max_body_bytes=limit))
    body = b"".join(Edge(application, context, None)(full, lambda *args: told.extend(args[:2])))
    return told[0], dict(told[1]), body


def echo(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
    """Answer with the body, read as Django reads it: up to the length that was declared."""
    start_response("200 OK", [])
    return [environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))]


def chunked(body: bytes) -> dict[str, Any]:
    return {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": Trickle(body), "wsgi.input_terminated": True}


@pytest.mark.parametrize(("sent", "read"), [(0, 0), (7, 7), (100, 100), (101, 101), (5000, 101)])
def test_a_chunked_body_is_read_to_its_end_or_to_one_byte_above_the_limit(sent: int, read: int) -> None:
    assert call(echo, **chunked(b"x" * sent))[2] == b"x" * read


def test_a_body_with_a_length_is_left_alone() -> None:
    assert call(echo, CONTENT_LENGTH="3", **{"wsgi.input": io.BytesIO(b"abcdef")})[2] == b"abc"


def test_a_server_that_cannot_tell_where_a_chunked_body_ends_does_not_wait_for_it() -> None:
    status, _, body = call(echo, HTTP_TRANSFER_ENCODING="chunked")
    assert status == "411 Length Required"
    assert "error" in json.loads(body)


def test_the_path_is_kept_as_it_came() -> None:
    def path(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        environ["PATH_INFO"] = "rewritten"
        return [environ[RAW_PATH].encode("latin-1")]

    assert call(path, PATH_INFO="/kvs/\xff%FF")[2] == b"/kvs/\xff%FF"


def test_a_fault_outside_of_a_view_is_a_logged_json_500(caplog: pytest.LogCaptureFixture) -> None:
    def broken(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        raise LookupError("no such thing")

    status, headers, body = call(broken)
    assert (status, json.loads(body)) == ("500 Internal Server Error", {"error": "Internal error"})
    assert headers.pop("X-Request-ID")
    assert headers == {"Content-Type": "application/json", "Content-Length": str(len(body))}
    assert "no such thing" in caplog.text


def test_a_complete_response_goes_out_as_one_list_and_is_closed() -> None:
    closed: list[bool] = []
    response = HttpResponse(b"whole")
    response.close = lambda: closed.append(True)  # type: ignore[method-assign]
    assert Edge(lambda *_: response, make_context(), None)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, print) == [
        b"whole"
    ]
    assert closed == [True]


def test_a_streaming_response_stays_one() -> None:
    response = StreamingHttpResponse([b"a", b"b"])
    assert (
        Edge(lambda *_: response, make_context(), None)({"REQUEST_METHOD": "GET", "PATH_INFO": "/"}, print) is response
    )
