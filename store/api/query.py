"""Query parameters: text to typed values, with a 400 that names the parameter where it is not what it should be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from django.http import HttpRequest
from rest_framework.exceptions import ParseError

MAX_WAIT_S: Final = 60.0
"""SPEC 2.6: the longest that a request may ask to be held."""

DEFAULT_PAGE_KEYS: Final = 100
MAX_PAGE_KEYS: Final = 1000
"""Keys on one page of a listing: the default of ``limit`` and its maximum (contract 2.4)."""

_MAX_PARAMETERS: Final = 32

Query = Mapping[str, str]


def parameters(request: HttpRequest) -> Query:
    """Return the query parameters; of a repeated one the last. Raises ``ParseError`` where they are no UTF-8.

    Django's ``request.GET`` replaces broken bytes silently, which would turn one prefix into another.
    """
    text = request.META.get("QUERY_STRING")
    if not text:
        return {}
    try:
        text = text.encode("latin-1").decode()
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS))
    except UnicodeError:
        raise ParseError("Query is not valid UTF-8") from None
    except ValueError:
        raise ParseError(f"Query has more than {_MAX_PARAMETERS} parameters") from None


def flag(query: Query, name: str) -> bool:
    """Return a parameter that is ``true`` or ``false``, which it also is when it is absent."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise ParseError(f"{name} has to be true or false")
    return text == "true"


def whole(query: Query, name: str, *, default: int, most: int) -> int:
    """Return a parameter that is a whole number from 1 to ``most``; absent or blank, ``default``."""
    text = query.get(name)
    if not text:
        return default
    try:
        number = msgspec.json.decode(text, type=int)
    except (msgspec.DecodeError, UnicodeError):
        number = 0
    if not 1 <= number <= most:
        raise ParseError(f"{name} has to be a whole number from 1 to {most}")
    return number


def wait_s(query: Query) -> float | None:
    """Return how many seconds the request may be held; None where it does not say."""
    text = query.get("wait")
    if not text:
        return None
    try:
        seconds = msgspec.json.decode(text, type=float)
    except (msgspec.DecodeError, UnicodeError):
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_S:
        raise ParseError(f"wait has to be a number of seconds from 0 to {MAX_WAIT_S:.0f}")
    return seconds
