"""Searches of the change feed among many recent changes, one at a time and without the engine's lock.

A search copies up to 100,000 keys and looks at each of them (store/feed.py, ``Search``). Without a limit, a client with
an old token and many connections could fill the memory with copies. Python runs one thread at a time anyway, so other
searches lose nothing by waiting. Those that wait occupy threads of the server, so their number is limited too.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Final

from store.errors import TooManySearches
from store.feed import Search

MAX_WAITING: Final = 32
"""Most requests that wait for the search of another one, or search."""


class Searches:
    """The searches of one engine. ``lock``: that of the engine. ``count``: requests that search, or wait to."""

    def __init__(self, lock: threading.RLock) -> None:
        self._lock = lock
        self._one = threading.Lock()
        self.count = 0

    def run(self, begin: Callable[[], Search | None]) -> Search | None:
        """Run the search that ``begin`` returns; return it. None if it returns none, because it is not necessary.

        Call this under the engine's lock, once. It is released meanwhile, except while ``begin`` runs.
        Raises ``TooManySearches``.
        """
        if self.count >= MAX_WAITING:
            raise TooManySearches
        self.count += 1
        self._lock.release()
        try:
            with self._one:
                with self._lock:
                    search = begin()
                if search is not None:
                    search.run()
        finally:
            self._lock.acquire()
            self.count -= 1
        return search
