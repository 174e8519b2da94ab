"""The place of one waiting request: what it does with the engine's lock and counters while it waits."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from store.waiting import Places, Waiter

if TYPE_CHECKING:
    from store.engine import Engine


class Place:
    """The place of one waiting request, taken at its first wait and freed at the end of the block."""

    def __init__(self, engine: Engine, places: Places[Waiter]) -> None:
        self.waiter = Waiter(engine.lock)
        self.is_lost = False
        self._engine = engine
        self._places = places
        self._is_taken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_taken:
            self._engine.waiters.leave(self.waiter, self._places)
            self._engine.follow_store()

    def wait(self, timeout_s: float) -> None:
        """Release the lock until the waiter is woken, at most ``timeout_s`` seconds.

        ``is_lost`` says afterwards whether another request has taken the place.
        """
        engine = self._engine
        if not self._is_taken:
            self._is_taken = True
            engine.waiters.enter(self.waiter, self._places)
        engine.follow_store()
        began_s = time.monotonic()
        try:
            self.waiter.wait(timeout_s)
        finally:
            engine.hold_time.seconds += time.monotonic() - began_s
        self.is_lost = self.waiter not in self._places
