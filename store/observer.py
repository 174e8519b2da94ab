"""What a ``CausalStore`` reports while it changes."""

from __future__ import annotations

from typing import Protocol

from store.clock import Clock
from store.versions import Update


class StoreObserver(Protocol):
    """What the store calls when its clock has changed."""

    def applied(self, update: Update, clock: Clock) -> None:
        """Note that ``update`` has been applied; ``clock`` covers it."""

    def expired(self, key: str) -> None:
        """Note that a version of ``key`` has expired."""

    def replaced(self, clock: Clock) -> None:
        """Note that a snapshot has been joined: any key may have changed, and ``clock`` may have jumped."""
