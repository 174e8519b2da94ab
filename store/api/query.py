"""Query parameters: converts text to typed values. An invalid one raises a 400 that names the parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl

import msgspec
from rest_framework.exceptions import ParseError

from store.api.request import ApiRequest
from store.api.usage import with_hint

MAX_WAIT_S: Final = 60.0
"""Largest value of ``wait`` (contract 2.6)."""

DEFAULT_PAGE_KEYS: Final = 100
MAX_PAGE_KEYS: Final = 1000
"""Keys on one page of a listing: the default of ``limit`` and its maximum (contract 2.4)."""

_MAX_PARAMETERS: Final = 32

METADATA: Final = "causal-metadata"

ENCODING_HINT: Final = "Encode the text in UTF-8, then percent-encode it: ä is %C3%A4."
METADATA_HINT: Final = (
    "Percent-encode the JSON of the latest response as the value of one parameter, or send it in the header "
    "X-Causal-Metadata."
)

Query = Mapping[str, str]


def bad_parameter(name: str, what: str, example: object) -> ParseError:
    """Return the error for a parameter of the query that has to be ``what``, such as ``example``."""
    hint = f"{name} is a parameter of the query, as in ?{name}={example}. Leave it out for its default."
    return with_hint(ParseError(f"{name} has to be {what}"), hint)


def parameters(request: ApiRequest) -> Query:
    """Return the query parameters; the last value of a repeated one. Raises ``ParseError`` if they are not UTF-8.

    Django's ``request.GET`` replaces invalid bytes silently, which could turn one prefix into another.
    """
    text = request.environ.get("QUERY_STRING")
    if not text:
        return {}
    try:
        text = text.encode("latin-1").decode()
        query = dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=_MAX_PARAMETERS))
    except UnicodeError:
        raise with_hint(ParseError("Query is not valid UTF-8"), ENCODING_HINT) from None
    except ValueError:
        error = ParseError(f"Query has more than {_MAX_PARAMETERS} parameters")
        raise with_hint(error, "GET /schema/ names the parameters of each request. Send only those.") from None
    for name in query:
        if name.startswith(METADATA) and name != METADATA:
            # Some libraries encode an object as one parameter for each entry: without them the request means less.
            raise with_hint(ParseError(f"{METADATA} has to be one parameter, with JSON"), METADATA_HINT)
    return query


def flag(query: Query, name: str) -> bool:
    """Return the value of a boolean parameter; False if it is absent."""
    text = query.get(name, "false")
    if text not in ("true", "false"):
        raise bad_parameter(name, "true or false", "true")
    return text == "true"


def positive_int(query: Query, name: str, *, default: int, maximum: int) -> int:
    """Return a whole number from 1 to ``maximum``; ``default`` if the parameter is absent or empty."""
    text = query.get(name)
    if not text:
        return default
    try:
        number = msgspec.json.decode(text, type=int)
    except (msgspec.DecodeError, UnicodeError):
        number = 0
    if not 1 <= number <= maximum:
        raise bad_parameter(name, f"a whole number from 1 to {maximum}", maximum)
    return number


def wait_s(query: Query) -> float | None:
    """Return the value of ``wait``: how many seconds the request may wait. None if the parameter is absent or empty."""
    text = query.get("wait")
    if not text:
        return None
    try:
        seconds = msgspec.json.decode(text, type=float)
    except (msgspec.DecodeError, UnicodeError):
        seconds = -1.0
    if not 0 <= seconds <= MAX_WAIT_S:
        raise bad_parameter("wait", f"a number of seconds from 0 to {MAX_WAIT_S:.0f}", 5)
    return seconds
