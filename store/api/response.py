"""The response that the API's views return: a status, encoded bytes, and headers of plain text.

Django's ``HttpResponse`` also accepts iterators, text to encode, header values of any type, and cookies. The API uses
none of these, and the checks for them take ten times as long as the rest. The fast path sends an ``ApiResponse``
directly; Django's handler gets ``to_django()``.
"""

from __future__ import annotations

from http.client import responses
from typing import Final

from django.http import HttpResponse
from django.http.response import ResponseHeaders

REASONS: Final = responses
"""Status code -> reason phrase."""


class ApiResponse:
    """One HTTP response, complete when it is built. No cache may store it, and no browser may guess its type.

    Raises Django's ``BadHeaderError`` for a header value with a line end: it would let a client add headers.
    """

    __slots__ = ("body", "headers", "status_code")

    def __init__(self, status_code: int, body: bytes, headers: dict[str, str]) -> None:
        text = "".join(headers.values())
        if not text.isascii() or "\n" in text or "\r" in text:
            # Rare. Django's rules decide how such a value is encoded, or reject it.
            headers = dict(ResponseHeaders(headers).items())
        headers["Cache-Control"] = "no-store"
        headers["X-Content-Type-Options"] = "nosniff"
        self.status_code = status_code
        self.body = body
        self.headers = headers

    @property
    def reason_phrase(self) -> str:
        """The reason phrase of the status line."""
        return REASONS.get(self.status_code, "Unknown Status Code")

    def to_django(self) -> HttpResponse:
        """Return the same response for Django's handler."""
        response = HttpResponse(self.body, status=self.status_code, headers=self.headers)
        if "Content-Type" not in self.headers:
            del response.headers["Content-Type"]  # Django adds a default.
        return response
