"""Requests of web pages (SPEC 5): which other origins may use the API from a browser, and that the rest may not.

A page may read an answer from elsewhere only if the answer names its origin, and may send PUT, DELETE or a JSON body
only after a preflight has allowed it: naming no origin is all it takes to forbid both. What a page may always send is
a POST without a type, blindly; on a laptop without secrets that would be a write by whatever page is open. So a write
that a browser says comes from a page of another origin (it always does say: ``Origin``) is refused unless it is named.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from kvsite.denied_responses import Turned
from replication.proof import SAFE_METHODS

Environ = dict[str, Any]
Headers = list[tuple[str, str]]

ORIGIN: Final = "HTTP_ORIGIN"
NOT_FOR_PAGES: Final = "/admin/"
"""The dashboard is for its own pages alone; Django checks where its forms come from."""

EXPOSED: Final = "X-Causal-Metadata, ETag, Retry-After, X-Request-ID"
_ALLOWED: Final = [
    ("Access-Control-Allow-Methods", "GET, HEAD, PUT, POST, DELETE"),
    (
        "Access-Control-Allow-Headers",
        "Authorization, Content-Type, If-Match, If-None-Match, X-Causal-Metadata, X-Request-ID",
    ),
    ("Access-Control-Max-Age", "600"),
    ("Content-Length", "0"),
]
_VARY: Final = ("Vary", "Origin")


class Cors:
    """The origins that ``KV_CORS_ORIGINS`` names. Credentials are tokens in headers; cookies never travel."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(as_browsers_say(origin) for origin in origins)
        self.always: Headers = [_VARY] if self._origins else []
        """For every answer: a cache must not give one origin's to another."""

    def headers(self, environ: Environ) -> Headers:
        """Return what the answer to a page's request says beside ``always``."""
        origin = environ[ORIGIN]
        if origin not in self._origins or environ["PATH_INFO"].startswith(NOT_FOR_PAGES):
            return []
        return [("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", EXPOSED)]

    def preflight(self, environ: Environ) -> Headers | None:
        """Return the headers of the answer to a preflight of a named origin, None for any other request."""
        asks = environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        named = self.headers(environ) if asks else []
        return [*named[:1], *_ALLOWED] if named else None

    def check(self, environ: Environ) -> None:
        """Raise ``Turned`` for a write of a page elsewhere that nobody has allowed."""
        if environ["REQUEST_METHOD"] in SAFE_METHODS or environ["PATH_INFO"].startswith(NOT_FOR_PAGES):
            return
        origin = environ[ORIGIN]
        # Scheme aside (TLS may end at a proxy), a page of the host and port that it writes to is no page elsewhere.
        is_own = origin.partition("://")[2] == environ.get("HTTP_HOST", "").lower() != ""
        if origin not in self._origins and not is_own:
            raise Turned(403, "Refused: a write of a web page of another origin; see KV_CORS_ORIGINS")


def as_browsers_say(origin: str) -> str:
    """Return an origin in the one spelling that browsers send: lower case, no default port."""
    scheme, _, rest = origin.lower().partition("://")
    return f"{scheme}://{rest.removesuffix({'http': ':80', 'https': ':443'}[scheme])}"
