"""A minimal Django view and its URL configuration: the cost of Django without a store behind it (see baselines.py)."""

from __future__ import annotations

import msgspec
from django.http import HttpRequest, HttpResponse
from django.urls import path

CONTENT = {"result": "found", "value": "0123456789abcdef0123456789abcdef"}


def respond(request: HttpRequest, key: str) -> HttpResponse:
    """Decode the body if there is one, and respond with a constant value; nothing is stored."""
    if body := request.body:
        msgspec.json.decode(body)
    encoded = msgspec.json.encode(CONTENT)
    return HttpResponse(encoded, content_type="application/json", headers={"Content-Length": str(len(encoded))})


urlpatterns = [path("kvs/<path:key>", respond)]
