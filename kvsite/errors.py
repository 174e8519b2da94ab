"""JSON error responses for requests that no view of the API serves.

Django's own 400, 403, 404 and 500 pages are HTML, but a client of a key-value store decodes JSON. The views of the API
render their own errors (store/api/errors.py).
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Final

import msgspec
from django.http import HttpRequest, HttpResponse

DESCRIBED: Final = "GET /schema/ describes every request that this replica accepts; /docs/ shows the same."
MAX_COMPARED: Final = 64
"""Characters of an unknown path that are compared with the paths that exist."""

PATHS: Final = ("/kvs/KEY", "/kvs", "/changes", "/view", "/healthz", "/readyz", "/replication/status", "/metrics")

_BY_FIRST_NAME: Final = {path.split("/")[1]: path for path in (*PATHS, "/schema/", "/docs/", "/admin/")}


def json_error(status: int, message: str, hint: str = "") -> HttpResponse:
    """Return ``{"error": message, "hint": hint}`` with ``status``; without a hint if it is empty."""
    content = {"error": message, "hint": hint} if hint else {"error": message}
    body, headers = (
        msgspec.json.encode(content),
        {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )
    return HttpResponse(body, status=status, content_type="application/json", headers=headers)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler400``: Django rejected the request."""
    return json_error(400, "Bad request", DESCRIBED)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler403``."""
    return json_error(403, "Forbidden", DESCRIBED)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler404``: no route matches the path."""
    first, _, rest = request.path.casefold()[1 : MAX_COMPARED + 1].partition("/")
    close = get_close_matches(first, _BY_FIRST_NAME, n=1)
    meant = _BY_FIRST_NAME[close[0]] if close else ""
    question = f"Did you mean {'/kvs/KEY' if meant == '/kvs' and rest else meant}? " if meant else ""
    return json_error(404, "Not found", f"{question}Paths are {', '.join(PATHS)}. {DESCRIBED}")


def unknown_file(request: HttpRequest, path: str) -> HttpResponse:
    """``/admin/static/…``: there is no such file."""
    return json_error(404, "Not found", "The dashboard is at /admin/.")


def server_error(request: HttpRequest) -> HttpResponse:
    """``handler500``: an unexpected exception, which Django has logged with its traceback."""
    return json_error(500, "Internal error")
