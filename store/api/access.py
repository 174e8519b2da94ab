"""The access rules that views apply, because the method and the path of a request do not decide.

The edge applies all other rules, before any view runs (kvsite/guard.py). Only the body of a transaction shows whether
it writes, and only the query of an export which keys it reads.
"""

from __future__ import annotations

from typing import Final

from rest_framework.exceptions import PermissionDenied

from store.api.query import Query
from store.api.request import ApiRequest
from store.api.usage import with_hint

NEEDS_WRITE: Final = "Send a token that may write: KV_API_TOKENS has it as name:token:write."

READ_ONLY: Final = "causeway.read_only"
"""WSGI variable: name of the request's token if that token may only read. The guard sets it."""


def require_write_access(request: ApiRequest) -> None:
    """Raise ``PermissionDenied`` if the request's token may only read."""
    name = request.environ.get(READ_ONLY)
    if name is not None:
        raise with_hint(PermissionDenied(f"Token {name!r} may only read"), NEEDS_WRITE)


def prefix_to_read(request: ApiRequest, query: Query) -> str:
    """Return the prefix of the keys that the request reads as a whole. Every token may read every key."""
    return query.get("prefix", "")
