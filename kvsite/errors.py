"""Error responses for requests that no view of the API serves: JSON for clients of the API, HTML for browsers.

Django's own 400, 403, 404 and 500 pages are HTML, but a client of a key-value store decodes JSON. The views of the API
render their own errors (store/api/errors.py). Whoever opens a page of the dashboard in a browser gets a page that says
what went wrong and leads back.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from html import escape
from http import HTTPStatus
from typing import Any, Final

import msgspec
from django.http import HttpRequest, HttpResponse

View = Callable[..., HttpResponse]

PAGE_PREFIXES: Final = ("/admin", "/docs")
"""Paths below which browsers expect pages."""

PAGE: Final = """<!doctype html>
<html lang="en">
<head>
  <meta charset="utf-8">
  <meta name="viewport" content="width=device-width, initial-scale=1">
  <title>{title} | Causeway</title>
  <link rel="icon" href="data:,">
  <link rel="stylesheet" href="/admin/static/dashboard/error.css">
</head>
<body>
  <main>
    <h1>{title}</h1>
    <p>{message}</p>
    <p><a href="/admin/">Go to the dashboard</a></p>
  </main>
</body>
</html>
"""

ERROR_PAGE_HEADERS: Final = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}


def accepts_html(environ: Mapping[str, Any]) -> bool:
    """Return whether a request names HTML among what it accepts, as browsers do. ``*/*`` is not enough."""
    return "text/html" in environ.get("HTTP_ACCEPT", "")


def wants_page(environ: Mapping[str, Any]) -> bool:
    """Return whether an error should be HTML: a browser has opened a page of the dashboard or of the documentation."""
    return environ.get("PATH_INFO", "").startswith(PAGE_PREFIXES) and accepts_html(environ)


def error_page(status: int, message: str, hint: str = "") -> bytes:
    """Return the HTML page of an error. It needs no template, so it works where Django does not."""
    title = f"{status} {HTTPStatus(status).phrase}"
    return PAGE.format(title=escape(title), message=escape(f"{message}. {hint}".strip())).encode()


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


def error_response(request: HttpRequest, status: int, message: str, hint: str = "") -> HttpResponse:
    """Return an error: a page for a browser on a page's path, or else JSON."""
    if not wants_page(request.META):
        return json_error(status, message, hint)
    page = error_page(status, message, hint)
    return HttpResponse(page, status=status, content_type="text/html; charset=utf-8", headers=ERROR_PAGE_HEADERS)


def read_only(view: View) -> View:
    """Return ``view``, which only GET and HEAD reach."""

    @functools.wraps(view)
    def serve(request: HttpRequest, *args: Any, **parts: Any) -> HttpResponse:
        if request.method in ("GET", "HEAD"):
            return view(request, *args, **parts)
        response = error_response(request, 405, f"Method {request.method} is not allowed: this page is read-only")
        response["Allow"] = "GET, HEAD"
        return response

    return serve


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler400``: Django rejected the request."""
    return error_response(request, 400, "Bad request", DESCRIBED)


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler403``."""
    return error_response(request, 403, "Forbidden", DESCRIBED)


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    """``CSRF_FAILURE_VIEW``: a form was sent without the cookie or the token of the page that has the form."""
    return error_response(request, 403, "Open the login page again and send its form: the browser must accept cookies")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler404``: no route matches the path."""
    first, _, rest = request.path.casefold()[1 : MAX_COMPARED + 1].partition("/")
    close = get_close_matches(first, _BY_FIRST_NAME, n=1)
    meant = _BY_FIRST_NAME[close[0]] if close else ""
    question = f"Did you mean {'/kvs/KEY' if meant == '/kvs' and rest else meant}? " if meant else ""
    return error_response(request, 404, "Not found", f"{question}Paths are {', '.join(PATHS)}. {DESCRIBED}")


def unknown_file(request: HttpRequest, path: str) -> HttpResponse:
    """``/admin/static/…``: there is no such file."""
    return error_response(request, 404, "Not found", "The dashboard is at /admin/.")


def server_error(request: HttpRequest) -> HttpResponse:
    """``handler500``: an unexpected exception, which Django has logged with its traceback."""
    return error_response(request, 500, "Internal error")
