"""``AsyncSession`` behind the methods of ``Session``, so that both pass the same tests."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Iterator
from typing import Any, Self

from causeway_client import AsyncSession, Session


class Loop:
    """An event loop that runs in a thread of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, awaitable: Any) -> Any:
        """Run a coroutine there, and return its result."""

        async def call() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class BlockingAsyncSession:
    """Calls an ``AsyncSession`` that lives in a loop of its own, or, for a fork, in that of its parent."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._loop = Loop()
        self._is_fork = False
        self._iterators: list[Any] = []
        self._session = AsyncSession(*args, **options)

    def fork(self, **options: Any) -> BlockingAsyncSession:
        child = BlockingAsyncSession.__new__(BlockingAsyncSession)
        child._loop, child._is_fork, child._session = self._loop, True, self._session.fork(**options)
        child._iterators = []
        return child

    def close(self) -> None:
        for items in self._iterators:
            self._loop.run(items.aclose())
        self._loop.run(self._session.close())
        if not self._is_fork:
            self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        if inspect.isasyncgenfunction(found):
            return functools.partial(self._iterate, found)
        if inspect.iscoroutinefunction(found):
            return lambda *args, **options: self._loop.run(found(*args, **options))
        return found

    def _iterate(self, function: Any, *args: Any, **options: Any) -> Iterator[Any]:
        items = function(*args, **options)
        self._iterators.append(items)
        while True:
            try:
                item = self._loop.run(anext(items))
            except StopAsyncIteration:
                return
            yield item


SESSIONS: dict[str, Any] = {"requests": Session, "aiohttp": BlockingAsyncSession}
"""Name of the transport -> class of sessions."""
