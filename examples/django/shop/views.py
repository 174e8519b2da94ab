"""Views of the example: a cart in the session, and prices in the cache."""

from __future__ import annotations

import os

from django.core.cache import cache
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_http_methods, require_POST, require_safe


@require_safe
def cart(request: HttpRequest) -> JsonResponse:
    """Show the cart."""
    return JsonResponse({"cart": request.session.get("cart", []), "worker": os.getpid()})


@require_POST
def add(request: HttpRequest, item: str) -> JsonResponse:
    """Put an item into the cart, and count it."""
    request.session["cart"] = [*request.session.get("cart", []), item][-20:]
    return JsonResponse({"cart": request.session["cart"], "items": count("items"), "worker": os.getpid()})


def count(name: str) -> int | None:
    """Increase a counter and return it; None if no replica has answered, so that it is not known whether it counted."""
    cache.get_or_set(name, 0, timeout=None)  # makes a counter: increments at several replicas all count
    try:
        return cache.incr(name)
    except ValueError:
        return None


@require_http_methods(["GET", "PUT"])
async def price(request: HttpRequest, item: str) -> JsonResponse:
    """Show the price of an item, or set it: an async view, with the cache's async methods."""
    if request.method == "PUT":
        await cache.aset(f"price/{item}", request.GET["is"], timeout=3600)
    return JsonResponse({"price": await cache.aget(f"price/{item}"), "worker": os.getpid()})
