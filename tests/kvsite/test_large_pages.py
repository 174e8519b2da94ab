"""Large pages and files of Django's handler are sent in pieces, within limits (contract 6)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpResponse
from django.test import RequestFactory

from kvsite.context import ServerContext
from kvsite.fast_path import FastPath
from kvsite.large_pages import with_bounds
from kvsite.wsgi import Edge
from store.api import large_responses
from store.api.context import CONTEXT
from store.api.large_responses import LARGE_BODY_BYTES, LargeBody, LargeResponses, ResponseStream
from tests.support.api import make_context

FILE = "/admin/static/drf_spectacular_sidecar/swagger-ui-dist/swagger-ui-bundle.js"


@pytest.fixture
def context() -> ServerContext:
    return make_context()


def ask(context: ServerContext, path: str) -> tuple[int, dict[str, str], Iterable[bytes]]:
    """Return status, headers and body of a GET, as a server gets them."""
    started: list[Any] = []
    application = Edge(FastPath(WSGIHandler()), context, None)
    body = application(RequestFactory().get(path).environ, lambda *args: started.extend(args))
    return int(started[0][:3]), dict(started[1]), body


def test_a_large_file_is_a_stream_with_its_length(context: ServerContext) -> None:
    status, headers, body = ask(context, FILE)
    room = context.large_operator_responses
    assert (status, len(room)) == (200, 1)
    assert isinstance(body, ResponseStream)
    pieces = list(body)
    body.close()
    assert max(map(len, pieces)) <= LARGE_BODY_BYTES < len(b"".join(pieces)) == int(headers["Content-Length"])
    assert (len(room), room.bytes) == (0, 0)


def test_a_large_file_without_room_gets_503(context: ServerContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_responses, "WAIT_S", 0.05)
    room = LargeResponses(1_000_000, max_count=1)
    context = replace(context, large_operator_responses=room)
    held = room.send(LargeBody([b"x"], 1))
    status, headers, body = ask(context, FILE)
    assert (status, headers["Retry-After"]) == (503, "1")
    assert b"Too many large responses" in b"".join(body)
    held.close()
    assert ask(context, FILE)[0] == 200


def test_a_large_page_is_a_stream_with_its_length(context: ServerContext) -> None:
    page = b"x" * 100_000

    def application(_: Any, start_response: Any) -> Any:
        start_response("200 OK", [("Content-Type", "text/html")])
        return HttpResponse(page)

    started: list[Any] = []
    body = with_bounds(application)({CONTEXT: context}, lambda *args: started.extend(args))
    assert started == ["200 OK", [("Content-Type", "text/html"), ("Content-Length", "100000")]]
    assert isinstance(body, ResponseStream)
    assert b"".join(body) == page
    assert len(context.large_operator_responses) == 1
    body.close()
    assert len(context.large_operator_responses) == 0


def test_a_small_page_needs_no_room(context: ServerContext) -> None:
    status, _, body = ask(context, "/docs/")
    assert status == 200
    assert isinstance(body, list)
