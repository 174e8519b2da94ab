"""A response that is finished when it is made: Django's, for a body of bytes and headers of plain text.

Django's own response takes whatever a site may hand it: content to iterate over or to encode, header values of any type
to convert, a charset to work out, cookies. For a body that is encoded and headers that are text, all of that is looked
at and none of it is done, ten times as long as what is left. Here it is there when somebody asks for it.
"""

from __future__ import annotations

from typing import Any

from django.core.signals import request_finished
from django.http import HttpResponse
from django.http.cookie import SimpleCookie
from django.http.response import ResponseHeaders


class Finished(HttpResponse):
    """A response with ``status``, ``body`` and ``headers``, to which headers may be added.

    Raises Django's ``BadHeaderError`` for a header with a line end.
    """

    closed = False
    _charset = None
    _reason_phrase = None
    _handler_class = None
    _headers: ResponseHeaders | None = None
    _cookies: SimpleCookie | None = None

    def __init__(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        # Not super().__init__(): see the module. tests/store/api/test_response.py compares them with Django's.
        self.status_code = status
        self._container = [body]
        self._resource_closers: list[Any] = []
        self._plain = headers
        text = "".join(headers.values())
        if not text.isascii() or "\n" in text or "\r" in text:
            # All other text Django's own headers take as it is. This they convert, or raise.
            self.headers = ResponseHeaders(headers)

    @property
    def headers(self) -> ResponseHeaders:  # which Django writes; here it is made if asked
        if self._headers is None:
            self._headers = ResponseHeaders(self._plain)
        return self._headers

    @headers.setter
    def headers(self, headers: ResponseHeaders) -> None:
        self._headers = headers

    @property
    def cookies(self) -> SimpleCookie:  # the same
        if self._cookies is None:
            self._cookies = SimpleCookie()
        return self._cookies

    @cookies.setter
    def cookies(self, cookies: SimpleCookie) -> None:
        self._cookies = cookies

    def close(self) -> None:
        """End the response, as Django's does; mostly there is nothing to close and nobody to tell."""
        if self._resource_closers or request_finished.receivers:
            super().close()
        else:
            self.closed = True

    @property
    def plain(self) -> dict[str, str] | None:
        """The headers as they were given; None where somebody may have changed them, or set cookies."""
        return self._plain if self._headers is None and self._cookies is None else None


def wsgi_headers(response: HttpResponse) -> list[tuple[str, str]]:
    """Return the headers of any response as they go to the server, those of cookies among them."""
    plain = response.plain if isinstance(response, Finished) else None
    if plain is not None:
        return list(plain.items())
    cookies = [("Set-Cookie", cookie.output(header="")) for cookie in response.cookies.values()]
    return [*response.items(), *cookies]
