"""The response that the API's views return: a status, encoded bytes, and headers of plain text.

Django's ``HttpResponse`` also accepts iterators, text to encode, header values of any type, and cookies. The API uses
none of these, and the checks for them take ten times as long as the rest. The fast path sends an ``ApiResponse``
directly; Django's handler gets ``to_django()``.
"""

from __future__ import annotations

from collections.abc import Iterable
from http.client import responses
from typing import Final

from django.http import HttpResponse, StreamingHttpResponse
from django.http.response import ResponseHeaders

from store.api.event_stream import EventStream
from store.api.large_responses import AnyBody, OpenStream, ResponseStream

REASONS: Final = responses
"""Status code -> reason phrase."""


FIXED_HEADERS: Final = (("Cache-Control", "no-store"), ("X-Content-Type-Options", "nosniff"))
"""Headers of every response of the API: no cache may store it, and no browser may guess its type."""


class ApiResponse:
    """One HTTP response.

    ``headers``: without ``FIXED_HEADERS``, which are added when it is sent.
    ``body``: a large one is in parts, and becomes a stream before it leaves the view. An event stream has no end.
    Raises Django's ``BadHeaderError`` for a header value with a line end: it would let a client add headers.
    """

    __slots__ = ("body", "headers", "status_code")

    def __init__(self, status_code: int, body: AnyBody | OpenStream | EventStream, headers: dict[str, str]) -> None:
        text = "".join(headers.values())
        if not text.isascii() or "\n" in text or "\r" in text:
            # Rare. Django's rules decide how such a value is encoded, or reject it.
            headers = dict(ResponseHeaders(headers).items())
        self.status_code = status_code
        self.body: AnyBody | ResponseStream | EventStream = body
        self.headers = headers

    @property
    def reason_phrase(self) -> str:
        """The reason phrase of the status line."""
        return REASONS.get(self.status_code, "Unknown Status Code")

    @property
    def chunks(self) -> Iterable[bytes]:
        """The body for a WSGI server: complete in a list, or a stream that the server pulls and closes."""
        body = self.body
        return [body] if isinstance(body, bytes) else body

    @property
    def header_list(self) -> list[tuple[str, str]]:
        """All headers, for a WSGI server."""
        return [*self.headers.items(), *FIXED_HEADERS]

    def to_django(self) -> HttpResponse | StreamingHttpResponse:
        """Return the same response for Django's handler."""
        if isinstance(self.body, EventStream | OpenStream):
            return StreamingHttpResponse(self.body, status=self.status_code, headers=dict(self.header_list))
        response = HttpResponse(b"".join(self.chunks), status=self.status_code, headers=dict(self.header_list))
        if "Content-Type" not in self.headers:
            del response.headers["Content-Type"]  # Django adds a default.
        return response
