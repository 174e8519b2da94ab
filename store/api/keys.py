"""Keys at the edge: from a request's path, or from a body, to text that the store may keep.

A key is percent-decoded UTF-8 and may hold anything, ``/``, NUL and newlines included. Bytes that are no
UTF-8 are refused, never replaced: two different keys must not become one.
"""

from __future__ import annotations

import re
from typing import Final

from django.http import HttpRequest
from rest_framework.exceptions import ParseError

RAW_PATH: Final = "causeway.raw_path"
"""WSGI variable with PATH_INFO as the server gave it, set by the WSGI wrapper. Django's request overwrites PATH_INFO
with its own reading, in which the byte FF (``%FF``) and the text "%FF" (``%25FF``) are the same."""

_REPERCENTED: Final = re.compile(r"%[89A-F][0-9A-F]")


def key_from_path(request: HttpRequest, rest: str, max_bytes: int) -> str:
    """Return the key that the path names; ``rest`` is what the URL pattern captured of it.

    Raises ``ParseError`` where the path is no UTF-8, and as ``check_key`` does.
    """
    if "%" in rest:  # Django writes a broken byte as %XX, so only a rest with a percent sign can mislead.
        rest = _exact(request, rest)
    return check_key(rest, max_bytes)


def check_key(key: str, max_bytes: int) -> str:
    """Return ``key``, which is UTF-8 text. Raises ``ParseError`` where it is empty or above ``max_bytes``."""
    if not key:
        raise ParseError("Key is empty")
    # A character takes one to four bytes: count them only where that matters.
    if len(key) > max_bytes or (len(key) * 4 > max_bytes and len(key.encode()) > max_bytes):
        raise ParseError("Key is too long")
    return key


def _exact(request: HttpRequest, rest: str) -> str:
    raw = request.META.get(RAW_PATH)
    if raw is None:
        # Served without our wrapper: which of the two it was cannot be told any more, so take neither.
        if _REPERCENTED.search(rest):
            raise ParseError("Key is not valid UTF-8")
        return rest
    try:
        path: str = raw.encode("latin-1").decode()
    except UnicodeError:
        raise ParseError("Key is not valid UTF-8") from None
    # What stands before the rest is a URL pattern's ASCII: as long in this reading as in Django's.
    return path[len(request.path_info) - len(rest) :]
