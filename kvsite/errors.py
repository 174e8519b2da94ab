"""What answers where no view does: always JSON, never a page.

Django's own 400, 403, 404 and 500 pages are HTML, and a client of a key-value store wants to decode an answer. (The
views of the API map the store's errors themselves: see store/api.)
"""

from __future__ import annotations

import msgspec
from django.http import HttpRequest, HttpResponse


def json_error(status: int, message: str) -> HttpResponse:
    """Return ``{"error": message}`` with ``status``."""
    return HttpResponse(msgspec.json.encode({"error": message}), status=status, content_type="application/json")


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler400``: what Django itself finds wrong with a request."""
    return json_error(400, "Bad request")


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler403``."""
    return json_error(403, "Forbidden")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """``handler404``: no route."""
    return json_error(404, "Not found")


def server_error(request: HttpRequest) -> HttpResponse:
    """``handler500``: an unexpected fault. Django has logged it with its traceback; the replica goes on."""
    return json_error(500, "Internal error")
