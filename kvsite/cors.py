"""Cross-origin requests of web pages (contract 5): which origins may use the API from a browser.

A browser lets a page read a response of another origin only if the response names the page's origin. It lets the page
send PUT, DELETE or a JSON body only after a preflight request has allowed it. So responses that name no origin forbid
both. But a page can always send a POST without a content type, although it cannot read the response. On a laptop
without secrets, any open page could write that way. Browsers add an ``Origin`` header to such a request, so a write
from another origin is rejected unless ``KV_CORS_ORIGINS`` contains that origin.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from kvsite.denied_responses import RequestDenied
from replication.proof import SAFE_METHODS

Environ = dict[str, Any]
Headers = list[tuple[str, str]]

ORIGIN: Final = "HTTP_ORIGIN"
DASHBOARD: Final = "/admin/"
"""No other origin may use the dashboard. Django checks the origin of its forms."""

EXPOSED: Final = "X-Causal-Metadata, ETag, X-Conflicts, X-Expires, X-Lost, Retry-After, X-Request-ID"
_ALLOWED: Final = [
    ("Access-Control-Allow-Methods", "GET, HEAD, PUT, POST, PATCH, DELETE"),
    (
        "Access-Control-Allow-Headers",
        "Authorization, Content-Type, If-Match, If-None-Match, traceparent, X-Causal-Metadata, X-Request-ID",
    ),
    ("Access-Control-Max-Age", "600"),
    ("Content-Length", "0"),
]
_VARY: Final = ("Vary", "Origin")


class Cors:
    """The rules for ``origins`` (``KV_CORS_ORIGINS``). Credentials are tokens in headers; cookies are never allowed."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(normalize_origin(origin) for origin in origins)
        self.common_headers: Headers = [_VARY] if self._origins else []
        """Headers of every response. ``Vary`` keeps caches from giving one origin's response to another."""

    def headers(self, environ: Environ) -> Headers:
        """Return the headers, beyond ``common_headers``, of the response to a request with an Origin."""
        origin = environ[ORIGIN]
        if origin not in self._origins or environ["PATH_INFO"].startswith(DASHBOARD):
            return []
        return [("Access-Control-Allow-Origin", origin), ("Access-Control-Expose-Headers", EXPOSED)]

    def preflight(self, environ: Environ) -> Headers | None:
        """Return the headers of the response to a preflight request of an allowed origin; None for other requests."""
        is_preflight = environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ
        allow_origin = self.headers(environ)[:1] if is_preflight else []
        return [*allow_origin, *_ALLOWED] if allow_origin else None

    def check(self, environ: Environ) -> None:
        """Raise ``RequestDenied`` for a write that a page of another, not allowed origin sends."""
        if environ["REQUEST_METHOD"] in SAFE_METHODS or environ["PATH_INFO"].startswith(DASHBOARD):
            return
        origin = environ[ORIGIN]
        # A page that this replica serves may write to it. The scheme is ignored, because a proxy may add TLS.
        is_own_page = origin.partition("://")[2] == environ.get("HTTP_HOST", "").lower() != ""
        if origin not in self._origins and not is_own_page:
            raise RequestDenied(
                403,
                "Rejected: a write by a web page of another origin; see KV_CORS_ORIGINS",
                hint="Set KV_CORS_ORIGINS of the replica to the page's origin, or send no Origin header.",
            )


def normalize_origin(origin: str) -> str:
    """Return an origin as browsers send it: lower case, without a default port."""
    scheme, _, rest = origin.lower().partition("://")
    return f"{scheme}://{rest.removesuffix({'http': ':80', 'https': ':443'}[scheme])}"
