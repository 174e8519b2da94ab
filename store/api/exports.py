"""The places for exports (store/api/export.py)."""

from __future__ import annotations

import threading
from typing import Final

MAX_EXPORTS: Final = 2
"""Exports in progress at once. Each makes a write a little slower: the store has to ask it about each change."""


class TooManyExports(Exception):
    """As many exports are in progress as may. The API answers 503 with ``Retry-After``."""


class Exports:
    """The exports of one replica in progress. Thread-safe."""

    def __init__(self) -> None:
        # Reentrant, because a stream that becomes garbage is closed at any point of any thread.
        self._lock = threading.RLock()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def enter(self) -> None:
        """Take a place. Raises ``TooManyExports``."""
        with self._lock:
            if self._count >= MAX_EXPORTS:
                raise TooManyExports
            self._count += 1

    def leave(self) -> None:
        """Give the place back."""
        with self._lock:
            self._count -= 1
