"""JSON error responses for requests that no view of the API serves.

Django's own 400, 403, 404 and 500 pages are HTML, but a client of a key-value store decodes JSON. The views of the API
render their own errors (store/api/errors.py).
"""

from __future__ import annotations

import msgspec
from django.http import HttpRequest, HttpResponse


def json_error(status: int, message: str) -> HttpResponse:
    """Return ``{"error": message}`` with ``status``."""
    body, headers = (
        msgspec.json.encode({"error": message}),
        {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"},
    )
    return HttpResponse(body, status=status, content_type="application/json", headers=headers)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler400``: Django rejected the request."""
    return json_error(400, "Bad request")


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler403``."""
    return json_error(403, "Forbidden")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler404``: no route matches the path."""
    return json_error(404, "Not found")


def unknown_file(request: HttpRequest, path: str) -> HttpResponse:
    """``/admin/static/…``: there is no such file."""
    return json_error(404, "Not found")


def server_error(request: HttpRequest) -> HttpResponse:
    """``handler500``: an unexpected exception, which Django has logged with its traceback."""
    return json_error(500, "Internal error")
