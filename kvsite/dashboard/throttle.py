"""Limits the rate of login attempts per source: a few free attempts, then pauses that grow with every attempt.

The counts are in memory, per replica, so n replicas allow n times as many attempts. A source is an IPv4 address or
the /64 network of an IPv6 address, which is what a provider assigns to one subscriber. All clients behind a proxy are
one source.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import threading
import time

from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

from kvsite.errors import error_response

FREE_ATTEMPTS = 5
"""Attempts without a pause, for typing errors."""

MAX_PAUSE_S = 60.0
FORGET_AFTER_S = 900.0
MAX_SOURCES = 4096

LOGIN_PATH = "/admin/login/"

logger = logging.getLogger("causeway.guard")


class Throttle:
    """Counts login attempts since the last successful one, per source. Thread-safe."""

    def __init__(self, max_sources: int = MAX_SOURCES) -> None:
        self._max_sources = max_sources
        self._lock = threading.Lock()
        self._attempts: dict[str, tuple[int, float, float]] = {}
        """Source -> (attempts, time of the last one, earliest time of the next one), least recent source first."""

    def attempt(self, source: str, now_s: float) -> float:
        """Count an attempt and return 0, or return how many seconds to wait if it comes too early.

        ``now_s``: monotonic seconds.

        An attempt counts before its outcome is known: many simultaneous attempts must not pass as one.
        """
        with self._lock:
            attempts, last_s, next_s = self._attempts.get(source, (0, now_s, now_s))
            if now_s < next_s:
                return next_s - now_s
            attempts = 1 if now_s - last_s > FORGET_AFTER_S else attempts + 1
            pause_s = 0.0 if attempts < FREE_ATTEMPTS else min(MAX_PAUSE_S, 2.0 ** min(attempts - FREE_ATTEMPTS, 10))
            self._attempts.pop(source, None)
            while len(self._attempts) >= self._max_sources:
                del self._attempts[next(iter(self._attempts))]  # the source with the oldest attempt
            self._attempts[source] = attempts, now_s, now_s + pause_s
            return 0.0

    def reset(self, source: str) -> None:
        """Reset the count of a source after a successful login."""
        with self._lock:
            self._attempts.pop(source, None)


throttle = Throttle()


def source_of(request: HttpRequest) -> str:
    """Return the source of a request. Proxy headers are ignored, because an attacker can set them."""
    text = request.META.get("REMOTE_ADDR") or ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return text


class LoginThrottle(MiddlewareMixin):
    """Responds 429 to a login attempt that comes too soon after the previous ones."""

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        """Count a login attempt, or reject it."""
        if request.path_info != LOGIN_PATH or request.method in {"GET", "HEAD", "OPTIONS"}:
            return None
        wait_s = throttle.attempt(source_of(request), time.monotonic())
        if not wait_s:
            return None
        logger.warning("too many login attempts from %s", source_of(request))
        response = error_response(request, 429, f"Too many login attempts; retry in {math.ceil(wait_s)} s")
        response["Retry-After"] = str(math.ceil(wait_s))
        return response
