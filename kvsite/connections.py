"""Closes connections that hold a thread, memory or a place without making progress.

The server has no timeout for bodies, and does not tell which connection a request came from. But the kernel knows, for
each connection, when the last data came and went (``TCP_INFO``). So a monitor thread looks at the connections of this
process and closes these:

* Those that *owe* the rest of a request: the last data came after the last response, no waiting request explains the
  silence, and the connection has made no progress for ``KV_BODY_TIMEOUT``, or for ``CROWDED_SILENCE_S`` if bodies are
  short of room. Progress is ``MIN_PROGRESS_BYTES``, so sending a byte from time to time is none.
* Those that send far more than a chunked body may have.
* Those that read a large response slowly while others find no room for theirs.
* Those that have been idle longest, when nearly all places for connections are taken.

``choose`` and what it uses are pure. ``ConnectionMonitor`` is the thread, for Linux. On other systems bodies are still
bounded in number and memory (store/api/bodies.py). The kernel closes connections that do not read their responses:
see ``kvsite.server.bind``.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from replication.rate_limit import LogRateLimiter
from store.api.bodies import COUNT_REQUESTS, INTERRUPTED, RECEIVED, Bodies
from store.api.large_responses import LargeResponses

MIN_PROGRESS_BYTES: Final = 1000
"""A connection that sends less in ``KV_BODY_TIMEOUT`` makes no progress."""

CROWDED_SILENCE_S: Final = 1.0
"""Silence after which a connection is closed if bodies are short of room."""

DISPATCH_S: Final = 1.0
"""Longest time between the arrival of a request's last byte and the start of its processing, for the comparison of
arrival times. If it takes longer, the connection of a waiting request may be closed; its client repeats the request."""

CLOCK_STEP_S: Final = 0.02
"""Resolution of the kernel's times, with a margin."""

FULL: Final = 0.9
ROOMY: Final = 0.8
"""If more than the first share of the places for connections is taken, idle ones are closed down to the second."""

SCAN_INTERVAL_S: Final = 5.0
"""Time between two looks at all connections if nothing calls for an earlier one."""

TICK_S: Final = 1.0
CHUNKED_TICK_S: Final = 0.02
CROWDED_TICK_S: Final = 0.25

SLOW_READ_S: Final = 2.0
SLOW_READ_BYTES: Final = 512 * 1024
"""A client for which bytes are ready, and which takes fewer than this in ``SLOW_READ_S``, reads slowly."""

MANY_CONNECTIONS: Final = 384
"""From this number of open descriptors on, the server keeps no connection whose request was large: each would keep a
buffer of up to 128 KiB."""

GROWTH_BYTES: Final = 16 * 1024 * 1024
"""Growth of the process during which chunked bodies are read, after which their connections are looked at."""

logger = logging.getLogger("causeway")


class Connection(NamedTuple):
    """One connection of a client, as the kernel reports it. Times are monotonic seconds.

    ``acked_bytes``: what the client's system has received. ``unsent_bytes``: what the client has no room for.
    """

    descriptor: int
    address: str
    port: int
    received_s: float
    sent_s: float
    received_bytes: int
    sent_segments: int
    acked_bytes: int = 0
    unsent_bytes: int = 0

    @property
    def owes(self) -> bool:
        """Whether the client has sent something since the last response."""
        return self.received_s > self.sent_s or (self.received_bytes > 0 and not self.sent_segments)

    @property
    def active_s(self) -> float:
        """When data came or went last."""
        return max(self.received_s, self.sent_s)


class Request(NamedTuple):
    """A request in progress.

    ``received_s``: when this process last received a part of it, or began to read. ``is_reading``: whether its thread
    is blocked in a read of its body.
    """

    address: str
    received_s: float
    is_reading: bool


class Mark(NamedTuple):
    """The last progress of a connection: when, the counters at that time, and whether it owed something at that time.

    A connection that owed nothing makes progress with the first byte of its next request.
    """

    progress_s: float
    received_bytes: int
    sent_segments: int
    owed: bool


Marks = Mapping[tuple[str, int], Mark]


def update_marks(marks: Marks, connections: Iterable[Connection]) -> Marks:
    """Return the marks of ``connections``, given those of the previous look."""
    updated: dict[tuple[str, int], Mark] = {}
    for each in connections:
        mark = marks.get((each.address, each.port))
        if (
            mark is None
            or mark.sent_segments != each.sent_segments
            or not 0 <= each.received_bytes - mark.received_bytes < (MIN_PROGRESS_BYTES if mark.owed else 1)
        ):
            mark = Mark(each.active_s, each.received_bytes, each.sent_segments, each.owes)
        updated[each.address, each.port] = mark
    return updated


def choose(
    connections: list[Connection],
    requests: Iterable[Request],
    marks: Marks,
    *,
    now: float,
    silence_s: float,
    capacity: int,
) -> list[Connection]:
    """Return the connections to close. ``capacity``: places for connections."""
    by_address: dict[str, list[Request]] = {}
    for request in requests:
        by_address.setdefault(request.address, []).append(request)
    unexplained = [each for each in connections if not _is_explained(each, by_address.get(each.address, ()))]
    chosen = [
        each for each in unexplained if each.owes and now - marks[each.address, each.port].progress_s >= silence_s
    ]
    for address, of_address in by_address.items():
        # A read that is still blocked although its connection should be among those chosen: that connection owes
        # nothing, because the server has sent "100 Continue". It was last active when the read began.
        for request in of_address:
            if request.is_reading and now - request.received_s >= silence_s + 2 * TICK_S:
                silent = [each for each in unexplained if each.address == address and not each.owes]
                near = [each for each in silent if abs(each.active_s - request.received_s) <= DISPATCH_S]
                near.sort(key=lambda each: abs(each.active_s - request.received_s))
                chosen += [each for each in near if each not in chosen][:1]
    if len(connections) > FULL * capacity:
        chosen += sorted(unexplained, key=lambda each: each.active_s)[: len(connections) - int(ROOMY * capacity)]
    return list(dict.fromkeys(chosen))


def _is_explained(connection: Connection, requests: Iterable[Request]) -> bool:
    """Return whether the last data of ``connection`` may belong to a request that waits or is being processed."""
    return any(
        not request.is_reading
        and request.received_s - DISPATCH_S <= connection.received_s <= request.received_s + CLOCK_STEP_S
        for request in requests
    )


def choose_flooding(
    connections: Iterable[Connection], marks: Marks, addresses: set[str], limit: int
) -> list[Connection]:
    """Return the connections from ``addresses`` that have received more than ``limit`` bytes since their mark.

    ``marks``: from before the bodies began; a connection without one is new.
    """
    flooding = []
    for each in connections:
        mark = marks.get((each.address, each.port))
        if mark is None or mark.sent_segments != each.sent_segments:
            mark = Mark(0.0, 0, 0, owed=True)
        if each.owes and each.address in addresses and each.received_bytes - mark.received_bytes > limit:
            flooding.append(each)
    return flooding


class ReadMark(NamedTuple):
    """When a client that has bytes to read was looked at, and what it had received by then."""

    since_s: float
    acked_bytes: int


ReadMarks = Mapping[tuple[str, int], ReadMark]


def choose_slow(connections: Iterable[Connection], marks: ReadMarks, now: float) -> tuple[list[Connection], ReadMarks]:
    """Return the connections of slow readers, and the marks for the next look."""
    slow: list[Connection] = []
    updated: dict[tuple[str, int], ReadMark] = {}
    for each in connections:
        if not each.unsent_bytes:
            continue
        mark = marks.get((each.address, each.port))
        if mark is None or not 0 <= each.acked_bytes - mark.acked_bytes < SLOW_READ_BYTES:
            mark = ReadMark(now, each.acked_bytes)
        elif now - mark.since_s >= SLOW_READ_S:
            slow.append(each)
        updated[each.address, each.port] = mark
    return slow, updated


# -- the kernel -----------------------------------------------------------------------------------------------------

_DESCRIPTORS: Final = Path("/proc/self/fd")
_MEMORY: Final = Path("/proc/self/statm")
_OPEN_STATES: Final = frozenset({1, 8})  # TCP_ESTABLISHED, TCP_CLOSE_WAIT (net/tcp_states.h)
_TCP_INFO_BYTES: Final = 160
_READ_TCP_INFO: Final = struct.Struct("=B43xI4xI64xQQ8xI8xI")
"""Of ``struct tcp_info`` (linux/tcp.h): state, last_data_sent and last_data_recv in milliseconds ago, bytes_acked,
bytes_received, notsent_bytes, data_segs_out."""


_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def is_supported() -> bool:
    """Return whether this system reports what the monitor needs."""
    return sys.platform == "linux" and _DESCRIPTORS.is_dir()


class Kernel:
    """Reads the connections of this process that were accepted on ``port``, and closes them."""

    def __init__(self, port: int) -> None:
        self._port = port
        # PyDLL keeps the GIL: these calls never block, and getting it back would take longer than the calls.
        library = ctypes.PyDLL(None, use_errno=True)
        self._getsockopt, self._getpeername = library.getsockopt, library.getpeername
        self._getsockname = library.getsockname
        self._info = ctypes.create_string_buffer(256)
        self._address = ctypes.create_string_buffer(128)

    def count_descriptors(self) -> int:
        """Return the number of open descriptors."""
        return len(os.listdir(_DESCRIPTORS))  # noqa: PTH208  # names are enough

    def resident_bytes(self) -> int:
        """Return the resident memory of this process."""
        return int(_MEMORY.read_text().split()[1]) * _PAGE_BYTES

    def connections(self) -> list[Connection]:
        """Return all open connections."""
        now = time.monotonic()
        found = (self._connection(int(name), now) for name in os.listdir(_DESCRIPTORS))  # noqa: PTH208  # names are enough
        return [each for each in found if each is not None]

    def _connection(self, descriptor: int, now: float) -> Connection | None:
        length = ctypes.c_uint32(len(self._info))
        if self._getsockopt(descriptor, socket.IPPROTO_TCP, socket.TCP_INFO, self._info, ctypes.byref(length)):
            return None  # not a TCP socket
        if length.value < _TCP_INFO_BYTES:
            return None
        info = _READ_TCP_INFO.unpack_from(self._info)
        state, sent_ms, received_ms, acked_bytes, received_bytes, unsent_bytes, sent_segments = info
        if state not in _OPEN_STATES or self._name(self._getsockname, descriptor)[1] != self._port:
            return None
        address, port = self._name(self._getpeername, descriptor)
        received_s, sent_s = now - received_ms / 1000, now - sent_ms / 1000
        return Connection(
            descriptor, address, port, received_s, sent_s, received_bytes, sent_segments, acked_bytes, unsent_bytes
        )

    def _name(self, call: Any, descriptor: int) -> tuple[str, int]:
        length = ctypes.c_uint32(len(self._address))
        if call(descriptor, self._address, ctypes.byref(length)):
            return "", 0
        raw = self._address.raw
        family, port = int.from_bytes(raw[:2], sys.byteorder), int.from_bytes(raw[2:4], "big")
        if family == socket.AF_INET:
            return socket.inet_ntop(socket.AF_INET, raw[4:8]), port
        if family == socket.AF_INET6:
            return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port
        return "", 0

    def close(self, connection: Connection, how: int = socket.SHUT_RD) -> bool:
        """End reading from ``connection``: the server then sees its end. Return False if it has gone already.

        ``how``: ``SHUT_RDWR`` also ends a response that the client does not take.
        """
        try:
            # A descriptor may have been closed and given to another socket meanwhile; a duplicate stays what it is.
            duplicate = socket.socket(fileno=os.dup(connection.descriptor))
        except OSError:
            return False
        with duplicate, contextlib.suppress(OSError):
            if self._name(self._getpeername, duplicate.fileno()) == (connection.address, connection.port):
                duplicate.shutdown(how)
                return True
        return False


class ConnectionMonitor:
    """The thread that closes connections. See the module's docstring.

    ``capacity``: connections that the server accepts. ``max_body_bytes``: of a chunked body. ``responses``: the large
    responses to clients.
    """

    def __init__(
        self,
        bodies: Bodies,
        kernel: Kernel,
        *,
        capacity: int,
        max_body_bytes: int,
        body_timeout_s: float,
        responses: LargeResponses | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bodies = bodies
        self._kernel = kernel
        self._capacity = capacity
        self._max_body_bytes = max_body_bytes
        self._body_timeout_s = body_timeout_s
        self._now = now
        self._responses = responses
        self._marks: Marks = {}
        self._read_marks: ReadMarks = {}
        self._scanned_s = self._counted_s = -math.inf
        self._is_full = False
        self._resident_bytes = 0
        self._wake = threading.Event()
        self._log_rate = LogRateLimiter()

    def start(self) -> None:
        """Start the thread, and let chunked bodies be read as a whole."""
        self._bodies.on_change = self._wake.set
        if self._responses is not None:
            self._responses.on_contest = self._wake.set
        self._bodies.reads_whole = True
        threading.Thread(target=self._run, name="connections", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                if not self._bodies.reading_chunked:
                    self._wake.wait(TICK_S)
                self._wake.clear()
                self.tick()
                time.sleep(CHUNKED_TICK_S)
            except Exception:  # Log and continue: no other thread closes stalled connections.
                logger.exception("cannot look at the connections")
                time.sleep(SCAN_INTERVAL_S)

    def tick(self) -> None:
        """Look at what is cheap to see, and at the connections if that is necessary."""
        if self._bodies.reading_chunked:
            self._check_growth()
        else:
            self._resident_bytes = 0
        if self._responses is not None:
            self._watch_readers(self._responses)
        now, is_crowded = self._now(), self._bodies.is_crowded
        self._count(now)
        silence_s = min(self._body_timeout_s, CROWDED_SILENCE_S) if is_crowded else self._body_timeout_s
        since_scan_s = now - self._scanned_s
        if since_scan_s < (CROWDED_TICK_S if is_crowded else TICK_S):
            return
        oldest_s = min((each.get(RECEIVED, now) for each in list(self._bodies.reading.values())), default=now)
        if self._is_full or since_scan_s >= SCAN_INTERVAL_S or now - oldest_s >= silence_s:
            self.scan(silence_s)

    def _count(self, now: float) -> None:
        """Count the open descriptors each second, and after ``COUNT_REQUESTS`` as long as they are few."""
        bodies = self._bodies
        is_due = bodies.uncounted_requests >= COUNT_REQUESTS and not bodies.has_many_connections
        if now - self._counted_s < TICK_S and not is_due:
            return
        self._counted_s = now
        bodies.uncounted_requests = 0
        descriptors = self._kernel.count_descriptors()
        bodies.has_many_connections = descriptors > MANY_CONNECTIONS
        self._is_full = descriptors > FULL * self._capacity

    def scan(self, silence_s: float) -> None:
        """Look at all connections and close those that ``choose`` returns."""
        self._scanned_s = self._now()
        requests = self._requests()
        connections = self._kernel.connections()
        self._marks = update_marks(self._marks, connections)
        chosen = choose(
            connections, requests, self._marks, now=self._now(), silence_s=silence_s, capacity=self._capacity
        )
        self._close(chosen, silence_s)

    def _watch_readers(self, responses: LargeResponses) -> None:
        """Observe slow readers of large responses while much room is taken; close them while others need room."""
        if not responses.is_crowded:
            self._read_marks = {}
            return
        addresses = responses.addresses()
        connections = [each for each in self._kernel.connections() if each.address in addresses]
        slow, self._read_marks = choose_slow(connections, self._read_marks, self._now())
        if not responses.is_contested:
            return
        closed = sum(self._kernel.close(each, socket.SHUT_RDWR) for each in slow)
        if closed and self._log_rate.allow("slow readers", self._now()):
            logger.warning("closed %d connections that read large responses slowly, to make room for others", closed)

    def _requests(self) -> list[Request]:
        reading = self._bodies.reading
        return [
            Request(environ.get("REMOTE_ADDR", ""), environ.get(RECEIVED, 0.0), thread in reading)
            for thread, environ in list(self._bodies.in_progress.items())
        ]

    def _close(self, chosen: list[Connection], silence_s: float) -> None:
        addresses = {each.address for each in chosen}
        latest_s = self._now() - silence_s
        for environ in list(self._bodies.reading.values()):
            # Which request a connection belongs to is not known. A chunked body that ends after this does not count.
            if environ.get("REMOTE_ADDR", "") in addresses and environ.get(RECEIVED, latest_s) <= latest_s:
                environ[INTERRUPTED] = True
        closed: dict[str, int] = {}
        for each in chosen:
            if self._kernel.close(each):
                closed[each.address] = closed.get(each.address, 0) + 1
        for address, count in closed.items():
            if self._log_rate.allow(f"closed {address}", self._now()):
                logger.warning("closed %d connections from %s that made no progress", count, address)

    def _check_growth(self) -> None:
        """Close connections that send far more than a chunked body may have."""
        resident_bytes = self._kernel.resident_bytes()
        if not self._resident_bytes:
            self._resident_bytes = resident_bytes
        if resident_bytes < self._resident_bytes + GROWTH_BYTES:
            return
        self._resident_bytes = resident_bytes
        addresses = {each.get("REMOTE_ADDR", "") for each in list(self._bodies.reading_chunked.values())}
        connections = self._kernel.connections()
        self._close(choose_flooding(connections, self._marks, addresses, 2 * self._max_body_bytes), 0.0)
