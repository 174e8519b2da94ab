"""Large responses of Django's handler: pages of the dashboard, the schema, and the files of both.

They are sent as the API's large responses are (store/api/large_responses.py): in pieces, and within limits. Otherwise
clients that do not read them would fill the memory and hold the threads of the server.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec
from django.http import FileResponse, HttpResponse

from kvsite.errors import ERROR_PAGE_HEADERS, error_page, wants_page
from replication.api.context import ReplicaContext
from store.api.context import CONTEXT
from store.api.large_responses import LARGE_BODY_BYTES, ResponseStream, TooManyLargeResponses

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
Application = Callable[[Environ, StartResponse], Iterable[bytes]]

REJECTION: Final = "Too many large responses are in progress; try again later"


def with_bounds(application: Application) -> Application:
    """Return ``application``, which is Django's handler, with bounds for large responses."""

    def serve(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        environ.pop("wsgi.file_wrapper", None)  # With it, Django would pass open files to the server.
        started: list[Any] = []
        response = application(environ, lambda *args: started.extend(args))
        context: ReplicaContext | None = environ.get(CONTEXT)
        if context is None or not isinstance(response, HttpResponse | FileResponse) or not _is_large(response):
            start_response(*started)
            return response
        status, headers = started[:2]
        try:
            return _stream(response, context, lambda length: start_response(status, _with_length(headers, length)))
        except TooManyLargeResponses:
            is_page = wants_page(environ)
            rejection = error_page(503, REJECTION) if is_page else msgspec.json.encode({"error": REJECTION})
            page_headers = ERROR_PAGE_HEADERS if is_page else {"Cache-Control": "no-store"}
            start_response(
                "503 Service Unavailable",
                [
                    ("Content-Type", "text/html; charset=utf-8" if is_page else "application/json"),
                    ("Content-Length", str(len(rejection))),
                    ("Retry-After", "1"),
                    *page_headers.items(),
                ],
            )
            return [rejection]
        finally:
            response.close()

    return serve


def _stream(
    response: HttpResponse | FileResponse, context: ReplicaContext, start: Callable[[int], None]
) -> Iterable[bytes]:
    """Call ``start`` with the length of the body, and return the body as a stream. Raises ``TooManyLargeResponses``."""
    with context.large_operator_responses.reservation() as reservation:
        reservation.take(_length(response), may_wait=True)  # before a file is read
        body = b"".join(response)
        start(len(body))
        stream = reservation.stream(body)
        return stream if isinstance(stream, ResponseStream) else [body]


def _is_large(response: HttpResponse | FileResponse) -> bool:
    return _length(response) > LARGE_BODY_BYTES


def _length(response: HttpResponse | FileResponse) -> int:
    if isinstance(response, HttpResponse):
        return len(response.content)
    return int(response.headers.get("Content-Length", LARGE_BODY_BYTES + 1))


def _with_length(headers: list[tuple[str, str]], length: int) -> list[tuple[str, str]]:
    return [
        *((name, value) for name, value in headers if name.lower() != "content-length"),
        ("Content-Length", str(length)),
    ]
