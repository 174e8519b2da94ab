"""The access rules that views apply, because only the query or the body of a request shows which keys it is about.

The edge applies all other rules by method and path, before any view runs (kvsite/guard.py): credentials, and the key in
the path. What a view reads or writes beyond that key, it has to ask for here:

* ``requested_prefix``: a listing, a feed, an export or a range delete.
* ``require_keys``: a transaction.
* ``hidden_keys``: a response that names keys which the request has not named.

A request is rejected before it reaches the engine. So neither its answer nor its duration depends on keys outside the
token's prefixes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from rest_framework.exceptions import PermissionDenied

from store.api.query import Query
from store.api.request import ApiRequest
from store.api.usage import with_hint
from store.api_tokens import ApiToken

NEEDS_WRITE: Final = "Send a token that may write: KV_API_TOKENS has it as name:token:write."
OUTSIDE: Final = (
    "Name keys with a prefix of this token; a listing, a feed, an export or a range delete needs such a prefix in its "
    "query (?prefix=). Other keys need another token of KV_API_TOKENS."
)

TOKEN: Final = "causeway.token"  # noqa: S105  # the name of a variable
"""WSGI variable: the ``ApiToken`` of the request; absent if it needs none. The guard sets it."""

PROVEN: Final = "causeway.proven"
"""WSGI variable: True if the request carries valid proof of the cluster secret. The guard sets it."""


def read_only(token: ApiToken) -> str:
    """Return the error of a write with ``token``, which may only read."""
    return f"Token {token.name!r} may only read"


def outside(token: ApiToken) -> str:
    """Return the error of a request for keys that ``token`` does not permit. It is the same for all such keys."""
    return f"Token {token.name!r} is only for keys that begin with {token.scope}"


def require_write_access(request: ApiRequest) -> None:
    """Raise ``PermissionDenied`` if the request's token may only read."""
    token: ApiToken | None = request.environ.get(TOKEN)
    if token is not None and token.access == "read":
        raise with_hint(PermissionDenied(read_only(token)), NEEDS_WRITE)


def require_keys(request: ApiRequest, keys: Iterable[str]) -> None:
    """Raise ``PermissionDenied`` unless the request's token permits all ``keys``."""
    token: ApiToken | None = request.environ.get(TOKEN)
    if token is not None and not all(map(token.covers, keys)):
        raise with_hint(PermissionDenied(outside(token)), OUTSIDE)


def requested_prefix(request: ApiRequest, query: Query) -> str:
    """Return the prefix of the keys that the request reads or deletes; an empty text means all keys.

    Raises ``PermissionDenied`` if the request's token does not permit all keys with this prefix.
    """
    prefix = query.get("prefix", "")
    require_keys(request, (prefix,))
    return prefix


def hidden_keys(request: ApiRequest) -> Callable[[str], bool] | None:
    """Return which keys a response must not name: a function of a key, or None if it may name all."""
    token: ApiToken | None = request.environ.get(TOKEN)
    if token is None or not token.prefixes:
        return None
    covers = token.covers
    return lambda key: not covers(key)
