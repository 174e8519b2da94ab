"""Keys: reads them from a request's path and checks them.

A key is percent-decoded UTF-8 and may contain any character, ``/``, NUL and line ends included. Bytes that are not
UTF-8 are rejected and never replaced, so that two different keys cannot become one.
"""

from __future__ import annotations

import re
from typing import Final

from rest_framework.exceptions import ParseError

from store.api.request import ApiRequest
from store.api.usage import with_hint

RAW_PATH: Final = "causeway.raw_path"
"""WSGI variable: PATH_INFO as the server passed it. The edge sets it.

Django overwrites PATH_INFO with its own decoding, in which the invalid byte FF (``%FF`` in the URL) and the text "%FF"
(``%25FF`` in the URL) look the same.
"""

EMPTY_HINT: Final = (
    "Name a key: in the path, /kvs/KEY; in a transaction, a text of at least one character. GET /kvs lists keys."
)
ENCODING_HINT: Final = "Encode the key in UTF-8, then percent-encode it: ä is %C3%A4."

_REPERCENTED: Final = re.compile(r"%[89A-F][0-9A-F]")
"""What Django writes in place of a byte that is not UTF-8."""


def key_from_path(request: ApiRequest, rest: str, max_bytes: int) -> str:
    """Return the key that the path names. ``rest``: the part of the path after the route's prefix.

    Raises ``ParseError`` if the path is not UTF-8, and for the reasons of ``check_key``.
    """
    if "%" in rest:  # Django writes an invalid byte as %XX, so without a percent sign ``rest`` is exact.
        rest = _exact_rest(request, rest)
    return check_key(rest, max_bytes)


def check_key(key: str, max_bytes: int) -> str:
    """Return ``key``. Raises ``ParseError`` if it is empty or longer than ``max_bytes`` in UTF-8."""
    if not key:
        raise with_hint(ParseError("Key is empty"), EMPTY_HINT)
    # A character takes one to four bytes. Encode the key only if its length in characters does not decide.
    if len(key) > max_bytes or (len(key) * 4 > max_bytes and len(key.encode()) > max_bytes):
        raise with_hint(
            ParseError("Key is too long"), f"A key has at most {max_bytes} bytes in UTF-8 (KV_MAX_KEY_BYTES)."
        )
    return key


def _exact_rest(request: ApiRequest, rest: str) -> str:
    raw = request.environ.get(RAW_PATH)
    if raw is None:
        # The request did not pass the edge. An invalid byte and its percent-encoded text cannot be told apart here,
        # so reject both.
        if _REPERCENTED.search(rest):
            raise with_hint(ParseError("Key is not valid UTF-8"), ENCODING_HINT)
        return rest
    try:
        path: str = raw.encode("latin-1").decode()
    except UnicodeError:
        raise with_hint(ParseError("Key is not valid UTF-8"), ENCODING_HINT) from None
    # The prefix before ``rest`` is ASCII, so it has the same length in both decodings.
    return path[len(request.path) - len(rest) :]
