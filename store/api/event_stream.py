"""Event streams: the change feed as server-sent events (contract 2.9; HTML Standard, section 9.2).

A stream is a generator that the server pulls: it asks the engine for the next changes when the client has taken the
last ones. So a slow client gets merged changes, and nothing waits for it in memory. Each stream holds a thread while it
is open, so their number is limited. The server closes a stream whose client is gone when it sends the next event: a
heartbeat at the latest.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Any, Final, Self

from rest_framework.exceptions import APIException

HEARTBEAT_S: Final = 15.0
"""A stream sends something at least this often."""

EVENT_BYTES: Final = 64 * 1024
"""An event has at most this many bytes of changes, or one change. Further changes follow in the next event."""

RETRY_MS: Final = 1000
"""After this time a browser connects again when the stream has ended."""


class TooManyStreams(APIException):
    """As many event streams are open as the replica allows (``KV_MAX_STREAMS``)."""

    status_code = 503
    default_detail = "Too many event streams are open (KV_MAX_STREAMS); use another replica, or poll with wait"
    default_code = "too_many_streams"


class Streams:
    """The open event streams of one replica: at most ``limit``. Thread-safe."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def open(self, events: Callable[[], Generator[bytes, None, None]]) -> EventStream:
        """Return a stream of ``events``. Raises ``TooManyStreams``."""
        with self._lock:
            if self._count >= self._limit:
                raise TooManyStreams
            self._count += 1
        return EventStream(events(), self._leave)

    def _leave(self) -> None:
        with self._lock:
            self._count -= 1


class EventStream:
    """The body of one response: an iterator of events. The server closes it at the end, or when the client is gone."""

    def __init__(self, events: Generator[bytes, None, None], on_close: Callable[[], None]) -> None:
        self._events = events
        self._on_close: Callable[[], None] | None = on_close

    def __iter__(self) -> Self:
        return self

    def __len__(self) -> int:
        return 0  # not known: it is never a large response

    def __next__(self) -> bytes:
        try:
            return next(self._events)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Free the place of the stream. May be called several times."""
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()
            # While another thread makes an event, the generator cannot be closed; it is when it becomes garbage.
            with suppress(ValueError):
                self._events.close()

    def __del__(self) -> None:
        self.close()


def event(token: str, data: Any) -> list[bytes]:
    """Return the parts of one event. ``data``: parts of one line of JSON."""
    return [b"id: ", token.encode(), b"\ndata: ", *data, b"\n\n"]


def heartbeat(token: str) -> bytes:
    """Return a comment, and a new id without an event: a browser resumes from it."""
    return b":\nid: " + token.encode() + b"\n\n"
