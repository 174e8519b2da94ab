"""The places for exports (store/api/export.py).

A client that reads slowly could hold a place for hours, and two of them would keep everybody else from a backup. So if
there is no place for a further export, one that is read slowly is aborted in favour of it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

MAX_EXPORTS: Final = 2
"""Exports in progress at once. Each makes a write a little slower: the store has to ask it about each change."""

SLOW_READ_S: Final = 2.0
SLOW_READ_BYTES: Final = 512 * 1024
"""An export that has waited this long for its client to take this many bytes is read slowly."""


class TooManyExports(Exception):
    """As many exports are in progress as may. The API answers 503 with ``Retry-After``."""


class Place:
    """The place of one export, and how long that has waited for its client.

    ``abort``: ends the export; it must not refer to the response, which may become garbage.
    """

    def __init__(self) -> None:
        self.abort: Callable[[], None] = lambda: None
        self._since_s: float | None = time.monotonic()
        """Since when the export waits for its client; None while it works."""
        self._waited_s = 0.0
        self._taken_bytes = 0

    def timed(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """Yield ``parts``, and note how long the client takes for them."""
        self._since_s = None
        for part in parts:
            began_s = self._since_s = time.monotonic()
            yield part
            self._since_s = None
            self._waited_s += time.monotonic() - began_s
            self._taken_bytes += len(part)
            if self._taken_bytes >= SLOW_READ_BYTES:
                self._waited_s, self._taken_bytes = 0.0, 0

    def waited_s(self, now_s: float) -> float:
        """Return how long the export has waited for its client to take ``SLOW_READ_BYTES``."""
        since_s = self._since_s
        return self._waited_s + (0.0 if since_s is None else now_s - since_s)


class Exports:
    """The exports of one replica in progress. Thread-safe."""

    def __init__(self) -> None:
        # Reentrant, because a stream that becomes garbage is closed at any point of any thread.
        self._lock = threading.RLock()
        self._places: set[Place] = set()

    def __len__(self) -> int:
        return len(self._places)

    def enter(self) -> Place:
        """Return a place; it may be that of an export that is read slowly. Raises ``TooManyExports``."""
        slowest = None
        with self._lock:
            if len(self._places) >= MAX_EXPORTS:
                now_s = time.monotonic()
                slowest = max(list(self._places), key=lambda place: place.waited_s(now_s))
                if slowest.waited_s(now_s) < SLOW_READ_S:
                    raise TooManyExports
                self._places.discard(slowest)
            place = Place()
            self._places.add(place)
        if slowest is not None:
            slowest.abort()
        return place

    def leave(self, place: Place) -> None:
        """Give a place back. May be called several times."""
        with self._lock:
            self._places.discard(place)
