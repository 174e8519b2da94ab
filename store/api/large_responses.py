"""Large responses: sent in pieces, at the speed of the client, within a budget for all of them.

A small body is one ``bytes`` object that the server takes at once. A large one (above ``LARGE_BODY_BYTES``) consists of
parts, mostly values that the store holds anyway, so building it copies nothing. The server pulls it piece by piece and
stops while the client does not read. An unread response costs little then, but not nothing: a value that is overwritten
meanwhile stays in memory until the response has ended, and the response holds a thread of the server.

So the bytes and the number of large responses in progress are limited. A further one waits for a moment, and is then
rejected (503 with ``Retry-After``). If there is no room, a response of which the server has taken no piece for
``STALLED_AFTER_S`` is aborted: its connection is closed in the middle of the body, so its client knows that it is not
complete. A client that reads, but slowly, could still hold a place for hours. So while room is short, connections of
slow readers are closed (kvsite/connections.py).
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Final, Self

from store.api.event_stream import EventStream
from store.values import JsonText

LARGE_BODY_BYTES: Final = 64 * 1024
"""A longer body is a large response. Also the size of the pieces in which it is sent."""

MAX_IN_PROGRESS: Final = 64
"""Large responses in progress at once. Each holds a thread until the client has read it or is gone."""

BUDGET_RESPONSES: Final = 8
"""Bytes of all large responses in progress, as a multiple of ``KV_MAX_RESPONSE_BYTES``."""

WAIT_S: Final = 1.0
"""How long a large response waits for room before it is rejected."""

MAX_WAITING: Final = 32
"""Large responses that may wait for room at once. Each holds a thread. Further ones are rejected at once."""

CONTESTED_S: Final = 5.0
"""How long room counts as short after a response has found none at once."""

STALLED_AFTER_S: Final = 2.0
"""A response of which no piece was taken for this long may be aborted in favour of others."""


class TooManyLargeResponses(Exception):
    """There is no room for another large response. The API answers 503 with ``Retry-After``. ``size``: its bytes."""

    def __init__(self, size: int) -> None:
        super().__init__("too many large responses are in progress")
        self.size = size


class LargeBody:
    """A body in parts. ``size``: their total length. Parts that are not encoded yet are when the body is read."""

    __slots__ = ("parts", "size")

    def __init__(self, parts: Sequence[JsonText], size: int) -> None:
        self.parts = parts
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from part


def body_of(parts: Sequence[JsonText]) -> AnyBody:
    """Return a body that consists of ``parts``: one ``bytes`` object if it is small."""
    size = sum(map(len, parts))
    return LargeBody(parts, size) if size > LARGE_BODY_BYTES else b"".join(map(bytes, parts))


AnyBody = bytes | LargeBody


def _parts_of(body: AnyBody) -> Iterable[bytes]:
    return body if isinstance(body, LargeBody) else [body]


class _Room:
    """The room of one response in progress, and what is left of the response. ``address``: of its client, if known.

    ``last_taken_s``: when a piece was last taken, monotonic seconds. ``is_aborted``: the bytes are returned, and the
    data is gone. The place is still taken, because the response holds a thread until the server has closed it.
    """

    __slots__ = ("address", "is_aborted", "last_taken_s", "pieces", "size")

    def __init__(self, size: int, address: str) -> None:
        self.size = size
        self.address = address
        self.pieces: Iterator[bytes] = iter(())
        self.last_taken_s = time.monotonic()
        self.is_aborted = False


class ResponseStream:
    """The body of one large response, as an iterator of pieces. The server closes it at the end, or before it.

    Its room is returned when it is closed, or when it is garbage: ``LargeResponses`` does not refer to it.
    """

    def __init__(self, responses: LargeResponses, room: _Room, parts: Iterable[bytes]) -> None:
        self._responses = responses
        self._room = room
        if not room.is_aborted:
            room.pieces = _pieces(parts)

    def __iter__(self) -> Self:
        return self

    def __len__(self) -> int:
        return self._room.size

    def __next__(self) -> bytes:
        # An aborted response has no more pieces. Its body is shorter than its Content-Length, so the server closes the
        # connection.
        self._room.last_taken_s = time.monotonic()
        return next(self._room.pieces)

    @property
    def is_aborted(self) -> bool:
        """Whether the response ended early in favour of others."""
        return self._room.is_aborted

    def close(self) -> None:
        """End the response. May be called several times."""
        self._responses.leave(self._room)

    def __del__(self) -> None:
        self.close()


class OpenStream(ResponseStream):
    """The body of a large response that is made while it is sent, such as an export: its length is not known.

    What it keeps in memory counts against the budget. ``resize`` changes how many bytes that are, and returns False if
    there is no room for more; it never waits. ``abort`` ends the response early in favour of others. Neither refers to
    this object. ``on_close``: called once, when the
    response ends. An aborted one is shorter than its content says.
    """

    def __init__(
        self, responses: LargeResponses, room: _Room, parts: Iterable[bytes], on_close: Callable[[], None]
    ) -> None:
        self._on_close: Callable[[], None] | None = on_close
        super().__init__(responses, room, parts)
        self.resize: Callable[[int], bool] = partial(responses.resize, room)
        self.abort: Callable[[], None] = partial(responses.abort, room)

    def close(self) -> None:
        """End the response. May be called several times."""
        super().close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()


class Reservation:
    """Room that is taken before the response exists: a write cannot be rejected after it was made.

    The room is returned at the end of the ``with`` block, unless ``stream`` has passed it on.
    """

    def __init__(self, responses: LargeResponses, address: str) -> None:
        self._responses = responses
        self._address = address
        self._room: _Room | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._return()

    def take(self, size: int, *, may_wait: bool = False) -> None:
        """Reserve ``size`` bytes if that makes a large response. Raises ``TooManyLargeResponses``.

        Without ``may_wait`` it can be called under the engine's lock.
        """
        if size > LARGE_BODY_BYTES and (self._room is None or size > self._room.size):
            self._return()
            self._room = self._responses.enter(size, WAIT_S if may_wait else 0, self._address)

    def stream(self, body: AnyBody | ResponseStream | EventStream) -> AnyBody | ResponseStream | EventStream:
        """Return the stream of a large response; ``body`` itself if it is small or no room was reserved."""
        if self._room is None or len(body) <= LARGE_BODY_BYTES or isinstance(body, ResponseStream | EventStream):
            return body
        room, self._room = self._room, None
        return ResponseStream(self._responses, room, _parts_of(body))

    def _return(self) -> None:
        if self._room is not None:
            self._responses.leave(self._room)
            self._room = None


class LargeResponses:
    """The large responses of one replica in progress: at most ``max_count``, of ``max_bytes`` together. Thread-safe.

    A response that is larger than ``max_bytes`` is admitted while there is no other. ``on_contest``: called when a
    response finds no room.
    """

    def __init__(self, max_bytes: int, max_count: int = MAX_IN_PROGRESS) -> None:
        self._max_bytes = max_bytes
        self._max_count = max_count
        # Reentrant, because a stream that becomes garbage is closed at any point of any thread.
        self._changed = threading.Condition(threading.RLock())
        self._rooms: set[_Room] = set()
        self._contested_s = -math.inf
        self.on_contest: Callable[[], None] = lambda: None
        self.bytes = 0
        """Bytes of the responses in progress, without aborted ones."""
        self.waiting = 0
        """Number of responses that wait for room."""
        self.rejected = 0
        """Number of responses for which there was no room."""
        self.aborted = 0
        """Number of responses that were aborted in favour of others."""

    def __len__(self) -> int:
        return len(self._rooms)

    @property
    def is_crowded(self) -> bool:
        """Whether at least half of the room is taken, so that slow readers should be observed."""
        return 2 * len(self._rooms) >= self._max_count or 2 * self.bytes >= self._max_bytes

    @property
    def is_contested(self) -> bool:
        """Whether a response has found no room at once lately."""
        return time.monotonic() < self._contested_s + CONTESTED_S

    def addresses(self) -> set[str]:
        """Return the addresses of the clients of the responses in progress."""
        with self._changed:
            return {room.address for room in self._rooms}

    def reservation(self, address: str = "") -> Reservation:
        """Return a reservation for one response, without room at first. ``address``: of its client."""
        return Reservation(self, address)

    def send(self, body: AnyBody, address: str = "", *, may_wait: bool = True) -> ResponseStream:
        """Return the stream of one response. Raises ``TooManyLargeResponses``, after ``WAIT_S`` if ``may_wait``."""
        room = self.enter(len(body), WAIT_S if may_wait else 0, address)
        return ResponseStream(self, room, _parts_of(body))

    def open(self, size: int, parts: Iterable[bytes], on_close: Callable[[], None], address: str = "") -> OpenStream:
        """Return the stream of a response whose length is not known. ``size``: bytes that it keeps at first.

        Raises ``TooManyLargeResponses``.
        """
        return OpenStream(self, self.enter(size, WAIT_S, address), parts, on_close)

    def enter(self, size: int, wait_s: float, address: str = "") -> _Room:
        """Return the room for a response. Raises ``TooManyLargeResponses`` if there is none for ``wait_s`` seconds."""
        deadline_s = time.monotonic() + wait_s
        with self._changed:
            while not self._has_room(size):
                now_s = time.monotonic()
                remaining_s = deadline_s - now_s
                self._contested_s = now_s
                self.on_contest()
                if remaining_s <= 0 or self.waiting >= MAX_WAITING:
                    self.rejected += 1
                    raise TooManyLargeResponses(size)
                self.waiting += 1
                try:
                    self._changed.wait(remaining_s)
                finally:
                    self.waiting -= 1
            room = _Room(size, address)
            self._rooms.add(room)
            self.bytes += size
            return room

    def resize(self, room: _Room, size: int) -> bool:
        """Change the bytes of a response in progress. Return False if there is no room for more, or it was aborted.

        Never waits, so it can be called under the engine's lock.
        """
        with self._changed:
            if room.is_aborted or room not in self._rooms:
                return False
            if size > room.size and not self._has_room(size - room.size, but_not=room):
                return False
            self.bytes += size - room.size
            room.size = size
            self._changed.notify_all()
            return True

    def abort(self, room: _Room) -> None:
        """End a response in progress early in favour of others."""
        with self._changed:
            if room in self._rooms and not room.is_aborted:
                self._abort(room)
                self._changed.notify_all()

    def leave(self, room: _Room) -> None:
        """Return the room of a response and let go of its data. May be called several times."""
        with self._changed:
            if room in self._rooms:
                self._rooms.discard(room)
                if not room.is_aborted:
                    self.bytes -= room.size
                room.pieces = iter(())
                self._changed.notify_all()

    def _has_room(self, size: int, but_not: _Room | None = None) -> bool:
        """Return whether there is room for ``size`` bytes. Abort stalled responses if that makes the room.

        ``but_not``: the response that wants more room, which has a place already and is not aborted for itself.
        """
        if but_not is None and len(self._rooms) >= self._max_count:
            return False
        stalled_since_s = time.monotonic() - STALLED_AFTER_S
        while not self._fits(size):
            running = [room for room in list(self._rooms) if not room.is_aborted and room is not but_not]
            oldest = min(running, key=lambda room: room.last_taken_s, default=None)
            if oldest is None or oldest.last_taken_s > stalled_since_s:
                return False
            self._abort(oldest)
        return True

    def _abort(self, room: _Room) -> None:
        room.is_aborted = True
        room.pieces = iter(())
        self.bytes -= room.size
        self.aborted += 1

    def _fits(self, size: int) -> bool:
        return self.bytes + size <= self._max_bytes or self.bytes == 0


def _pieces(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the content of ``parts`` in pieces of ``LARGE_BODY_BYTES``; the last one may be shorter."""
    collected: list[memoryview] = []
    missing = LARGE_BODY_BYTES
    for part in parts:
        rest = memoryview(part)
        while len(rest) >= missing:
            collected.append(rest[:missing])
            yield b"".join(collected)
            rest = rest[missing:]
            collected, missing = [], LARGE_BODY_BYTES
        if rest:
            collected.append(rest)
            missing -= len(rest)
    if collected:
        yield b"".join(collected)
