"""Guessing the dashboard's password is slow: a few attempts, then one at a time with growing pauses, per source.

In memory, and so per replica: n replicas take n times the guesses. A source is an IPv4 address, or the /64 network of
an IPv6 address, which is what one subscriber has; behind a proxy all are one source.
"""

from __future__ import annotations

import ipaddress
import logging
import math
import threading
import time

from django.http import HttpRequest, HttpResponse
from django.utils.deprecation import MiddlewareMixin

from kvsite.errors import json_error

FREE_ATTEMPTS = 5
"""Typing errors are not punished."""

MAX_PAUSE_S = 60.0
FORGET_AFTER_S = 900.0
MAX_SOURCES = 4096

LOGIN_PATH = "/admin/login/"

logger = logging.getLogger("causeway.guard")


class Throttle:
    """Counts attempts that did not end in a login. Thread-safe; ``now_s`` is any clock that does not jump."""

    def __init__(self, max_sources: int = MAX_SOURCES) -> None:
        self._max_sources = max_sources
        self._lock = threading.Lock()
        self._attempts: dict[str, tuple[int, float, float]] = {}  # source -> attempts, when the last, when the next

    def attempt(self, source: str, now_s: float) -> float:
        """Return how many seconds to wait; 0 where the attempt may go on, which is counted then.

        It is counted before its outcome is known: many at the same moment must not pass as one.
        """
        with self._lock:
            attempts, last_s, next_s = self._attempts.get(source, (0, now_s, now_s))
            if now_s < next_s:
                return next_s - now_s
            attempts = 1 if now_s - last_s > FORGET_AFTER_S else attempts + 1
            pause_s = 0.0 if attempts < FREE_ATTEMPTS else min(MAX_PAUSE_S, 2.0 ** min(attempts - FREE_ATTEMPTS, 10))
            self._attempts.pop(source, None)
            while len(self._attempts) >= self._max_sources:
                del self._attempts[next(iter(self._attempts))]  # the one that has been quiet for longest
            self._attempts[source] = attempts, now_s, now_s + pause_s
            return 0.0

    def forgive(self, source: str) -> None:
        """Forget a source that has logged in."""
        with self._lock:
            self._attempts.pop(source, None)


throttle = Throttle()


def source_of(request: HttpRequest) -> str:
    """Return whom an attempt counts for. Headers of proxies are not believed: whoever guesses writes them."""
    text = request.META.get("REMOTE_ADDR") or ""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv6Address):
        return str(address.ipv4_mapped or ipaddress.ip_network((address, 64), strict=False))
    return text


class LoginThrottle(MiddlewareMixin):
    """Answer 429 to a login that comes too soon after others."""

    def process_request(self, request: HttpRequest) -> HttpResponse | None:
        """Refuse, or let the attempt be made."""
        if request.path_info != LOGIN_PATH or request.method in {"GET", "HEAD", "OPTIONS"}:
            return None
        wait_s = throttle.attempt(source_of(request), time.monotonic())
        if not wait_s:
            return None
        logger.warning("too many logins of %s", source_of(request))
        response = json_error(429, f"Too many attempts: wait {math.ceil(wait_s)} s")
        response["Retry-After"] = str(math.ceil(wait_s))
        return response
