"""A bare Django view, as urls of its own: what any view pays before it does anything (see limits.py)."""

from __future__ import annotations

import msgspec
from django.http import HttpRequest, HttpResponse
from django.urls import path

ANSWER = {"result": "found", "value": "0123456789abcdef0123456789abcdef"}


def answer(request: HttpRequest, key: str) -> HttpResponse:
    """Decode the body where there is one, and answer with a value: nothing is kept."""
    if body := request.body:
        msgspec.json.decode(body)
    encoded = msgspec.json.encode(ANSWER)
    return HttpResponse(encoded, content_type="application/json", headers={"Content-Length": str(len(encoded))})


urlpatterns = [path("kvs/<path:key>", answer)]
