"""A response that is finished when it is made: Django's, for a body of bytes and headers of plain text.

Django's own response takes whatever a site may hand it: content to iterate over or to encode, header values of any type
to convert, a charset to work out. For a body that is encoded and headers that are text, all of that is looked at and
none of it is done, eight times as long as what is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.http import HttpResponse
from django.http.cookie import SimpleCookie
from django.http.response import ResponseHeaders


class PlainHeaders(ResponseHeaders):
    """Django's headers; a value that is printable ASCII is taken as it is, which is what Django's check comes to."""

    _store: dict[str, tuple[str, str]]

    def __init__(self, headers: Mapping[str, str]) -> None:
        self._store = {}
        for name, value in headers.items():
            if value.isascii() and value.isprintable():
                self._store[name.lower()] = (name, value)
            else:
                super().__setitem__(name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        if isinstance(value, str) and value.isascii() and value.isprintable():
            self._store[name.lower()] = (name, value)
        else:
            super().__setitem__(name, value)

    def items(self) -> Any:
        return self._store.values()


class Finished(HttpResponse):
    """A response with ``status``, ``body`` and ``headers``, to which headers may be added."""

    def __init__(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        # Not super().__init__(): see the module's text. tests/test_response.py holds the attributes against Django's.
        self.status_code = status
        self.headers = PlainHeaders(headers)
        self.cookies = SimpleCookie()
        self.closed = False
        self._charset = None
        self._reason_phrase = None
        self._handler_class = None
        self._resource_closers: list[Any] = []
        self._container = [body]
