"""Reads request bodies, within bounds for all bodies together (docs/limits.md).

The server's ``wsgi.input.read`` blocks its thread, without a timeout, until enough bytes have arrived or the body has
ended. So a client that sends half a body holds a thread and the memory of that half. ``Bodies`` bounds both:

* Threads: at most ``MAX_BODY_READS`` bodies are read at the same time. A body without progress loses its connection
  (kvsite/connections.py), and loses it earlier if many bodies are read.
* Memory: bodies above ``SMALL_BYTES`` reserve their length until their request is answered. All reservations together
  stay within a budget. Smaller bodies need no reservation, because the number of reads bounds them.

A request that finds no room waits for it up to ``ROOM_WAIT_S`` and then gets 503. Its body is not read. Requests that
wait in the engine could hold all memory for a minute. So when there is no room, those that have waited longest are
answered early (``end_waits``).

The server reports a malformed chunk, and a connection that ends before the last chunk, as the end of the body. Only a
read without a length shows the difference: it then returns nothing. So chunked bodies are read that way. Such a read
has no limit of its own: the monitor of kvsite/connections.py closes connections that send too much. Where there is no
monitor (``reads_whole`` False), chunked bodies are read with a limit, and a broken one may pass as complete.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from threading import get_ident
from time import monotonic
from typing import Any, Final

from rest_framework.exceptions import APIException, ParseError

from store.api.usage import with_hint
from store.settings import MAX_BODY_READS, MAX_BODY_WAITS

Environ = dict[str, Any]

SMALL_BYTES: Final = 64 * 1024
"""Bodies up to this length reserve no memory. Longer ones are read in pieces of this length."""

CROWDED_READS: Final = 256
"""From this number of reads on, bodies without progress lose their connections early, to make room."""

BUDGET_BYTES: Final = 64 * 1024 * 1024
"""Memory for the bodies above ``SMALL_BYTES`` of all requests in progress."""

ROOM_WAIT_S: Final = 1.5
"""How long a request waits for room. Bodies that block it lose their connections within that time."""

COUNT_REQUESTS: Final = 64
"""Requests after which connections are counted again, if there were few. Otherwise they are counted once a second, and
in a second a thousand connections could be opened and kept."""

WHOLE_BODY: Final = (
    "Send the whole body without long pauses: as many bytes as Content-Length says, or chunks up to the last, empty "
    "one."
)
RECEIVED: Final = "causeway.received"
"""WSGI variable: when this process last received a part of the request (monotonic seconds)."""

INTERRUPTED: Final = "causeway.interrupted"
"""WSGI variable: set if the connection of the request may have been closed because its body made no progress."""

RESERVED: Final = "causeway.reserved_bytes"
"""WSGI variable: the memory that the request has reserved. Absent if none."""


class NoRoom(APIException):
    """Too many bodies are read at this moment. The request's body was not read."""

    status_code = 503
    default_detail = "Too many request bodies at once; try again"
    default_code = "no_room"


class BodyTimeout(APIException):
    """The body made no progress for ``KV_BODY_TIMEOUT``; its connection is closed."""

    status_code = 408
    default_detail = "Body made no progress; see KV_BODY_TIMEOUT"
    default_code = "body_timeout"


class Bodies:
    """The requests in progress, the bodies that are being read, and the memory they use. Thread-safe.

    ``in_progress``: thread -> environ of its request. ``reading``: thread -> environ of the request whose body it reads
    at this moment. ``reading_chunked``: those of them that have no length. The dicts are changed by single operations,
    so they need no lock. ``on_change``: called when a body finds little or no room, when the first chunked body is
    read, and when connections should be counted. ``end_waits``: ends waits of requests in progress; gets thread ->
    reserved bytes, and how many are wanted.
    ``has_many_connections``: whether many connections are open, so that those with large requests should not be kept.
    ``uncounted_requests``: requests since connections were counted last. Each may have been the first of a connection.
    """

    def __init__(self, budget_bytes: int = BUDGET_BYTES) -> None:
        self.in_progress: dict[int, Environ] = {}
        self.reading: dict[int, Environ] = {}
        self.reading_chunked: dict[int, Environ] = {}
        self.on_change: Callable[[], None] = lambda: None
        self.end_waits: Callable[[Mapping[int, int], int], None] = lambda reserved, wanted: None
        self.has_many_connections = False
        self.uncounted_requests = 0
        self.reads_whole = False
        self._budget = self._free_bytes = budget_bytes
        self._waiting = 0
        self._room = threading.Condition()

    def note_request(self) -> None:
        """Count a request. Calls ``on_change`` once for every ``COUNT_REQUESTS``, unless many connections are open.

        Two threads may count the same number. That makes the next count a little later, and costs no lock.
        """
        count = self.uncounted_requests + 1
        self.uncounted_requests = count
        if count % COUNT_REQUESTS == 0 and not self.has_many_connections:
            self.on_change()

    @property
    def is_crowded(self) -> bool:
        """Whether bodies without progress should lose their connections early."""
        return self._waiting > 0 or len(self.reading) >= CROWDED_READS

    def read(self, environ: Environ, max_bytes: int) -> bytes:
        """Return the body of a request. Of a chunked body longer than ``max_bytes``, the beginning may be enough.

        Raises ``ParseError`` if the body ended early, ``BodyTimeout``, and ``NoRoom``.
        """
        declared = environ.get("CONTENT_LENGTH")
        if not declared:
            return self._read_chunked(environ, max_bytes + 1)
        length = int(declared)
        body = self._read_piece(environ, length) if length <= SMALL_BYTES else self._read_pieces(environ, length)
        if len(body) < length:
            raise _cut_short(environ, "Body ended before its Content-Length")
        return body

    def release(self, environ: Environ) -> None:
        """Give back the memory that a request has reserved. Called when the request is answered."""
        reserved = environ.pop(RESERVED, 0)
        if reserved:
            with self._room:
                self._free_bytes += reserved
                self._room.notify_all()

    def discard(self, environ: Environ, length: int) -> None:
        """Read and drop a rejected body of ``length`` bytes."""
        while length > 0 and (piece := self._read_piece(environ, min(length, SMALL_BYTES))):
            length -= len(piece)

    def _read_pieces(self, environ: Environ, length: int) -> bytes:
        self._reserve(environ, length)
        pieces = []
        while length > 0 and (piece := self._read_piece(environ, min(length, SMALL_BYTES))):
            pieces.append(piece)
            length -= len(piece)
        return b"".join(pieces)

    def _read_chunked(self, environ: Environ, limit: int) -> bytes:
        self._reserve(environ, limit)
        thread = get_ident()
        is_first = not self.reading_chunked
        self.reading_chunked[thread] = environ
        if is_first:
            self.on_change()
        try:
            body = self._read_piece(environ, None) if self.reads_whole else self._read_pieces(environ, limit)
        finally:
            del self.reading_chunked[thread]
        if not body or INTERRUPTED in environ:
            raise _cut_short(environ, "Body is empty, ended before its last chunk, or has a malformed chunk")
        return body

    def _read_piece(self, environ: Environ, length: int | None) -> bytes:
        reading = self.reading
        if len(reading) >= CROWDED_READS:
            self._make_room()
        thread = get_ident()
        reading[thread] = environ
        try:
            piece: bytes = environ["wsgi.input"].read(length)
        except OSError:
            piece = b""
        finally:
            del reading[thread]
        environ[RECEIVED] = monotonic()
        return piece

    def _make_room(self) -> None:
        """Wait for a place among the reads. Raises ``NoRoom``."""
        self.on_change()
        if len(self.reading) >= MAX_BODY_READS:
            with self._room:
                self._wait_for(lambda: len(self.reading) < MAX_BODY_READS)

    def _reserve(self, environ: Environ, length: int) -> None:
        """Reserve memory for a body. Raises ``NoRoom``. A body longer than the budget takes all of it."""
        if RESERVED in environ:
            return
        wanted = min(length, self._budget)
        with self._room:
            if self._free_bytes < wanted:
                self._wait_for(lambda: self._free_bytes >= wanted, wanted)
            self._free_bytes -= wanted
        environ[RESERVED] = wanted

    def _wait_for(self, has_room: Callable[[], bool], wanted_bytes: int = 0) -> None:
        """Wait until ``has_room`` returns True. The caller holds the lock. Raises ``NoRoom``.

        ``wanted_bytes``: the memory that it needs, if it is memory.
        """
        if self._waiting >= MAX_BODY_WAITS:
            raise NoRoom
        deadline_s = monotonic() + ROOM_WAIT_S
        self._waiting += 1
        try:
            while not has_room():
                self.on_change()
                if wanted_bytes:
                    in_progress = list(self.in_progress.items())
                    reserved = {thread: size for thread, each in in_progress if (size := each.get(RESERVED, 0))}
                    self.end_waits(reserved, wanted_bytes - self._free_bytes)
                if monotonic() >= deadline_s:
                    raise NoRoom
                self._room.wait(0.1)
        finally:
            self._waiting -= 1


def _cut_short(environ: Environ, error: str) -> APIException:
    return with_hint(BodyTimeout() if INTERRUPTED in environ else ParseError(error), WHOLE_BODY)
