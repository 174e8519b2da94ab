"""Bounded replies: read what a peer answers up to a number of bytes, and within a time.

Whoever listens at an address may answer anything: without end, one byte a second, or compressed a thousand times. The
sender is not known before the reply is complete and its proof is verified. So every reply has a limit that depends on
what was asked. It is not decompressed, and one deadline covers all of it, from the first byte of its status line. All
replies above ``FREE_BYTES`` share one budget, so that many senders of long replies take no more memory than a few.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import requests
import urllib3.connection
import urllib3.connectionpool
from requests.adapters import HTTPAdapter

MIB: Final = 1024 * 1024

FREE_BYTES: Final = 512 * 1024
"""Bytes of a reply that do not count against the budget; more than nearly all replies of replicas have."""

LARGE_REPLIES_BYTES: Final = 128 * MIB
"""Bytes above ``FREE_BYTES`` of all replies that are being read at one moment."""

PIECE_BYTES: Final = 64 * 1024
"""Bytes read at once, so that memory grows with what has arrived and not with what was announced."""


class ReplyLimit(NamedTuple):
    """The most bytes of a reply's body, and the time within which all of the reply has to arrive, in seconds."""

    max_bytes: int
    within_s: float


class ReplyTooLong(requests.RequestException):
    """A reply has more bytes than its limit, or the replies that are being read have more than the budget."""


class ReplyBudget:
    """The memory for all replies that are being read. Thread-safe."""

    def __init__(self, max_bytes: int = LARGE_REPLIES_BYTES) -> None:
        self._max_bytes = max_bytes
        self._used_bytes = 0
        self._lock = threading.Lock()

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """Return the reservation for one reply; it ends with the block."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self._change(-reservation.bytes)

    def _change(self, by: int) -> bool:
        """Change what is used; return False, and change nothing, if that would be too much."""
        if not by:
            return True
        with self._lock:
            if by > 0 and self._used_bytes + by > self._max_bytes:
                return False
            self._used_bytes += by
        return True


class Reservation:
    """The part of a budget that one reply takes."""

    def __init__(self, budget: ReplyBudget) -> None:
        self.bytes = 0
        self._budget = budget

    def extend(self, size: int) -> bool:
        """Reserve for a reply of ``size`` bytes so far; return False if the budget has no room."""
        more = max(0, size - FREE_BYTES) - self.bytes
        if not self._budget._change(more):  # noqa: SLF001  # the two classes are one
            return False
        self.bytes += more
        return True


class _Deadline(threading.local):
    """When the reply that the present thread reads has to be complete (monotonic seconds)."""

    at_s = float("inf")


_deadline = _Deadline()


@contextmanager
def deadline(within_s: float) -> Iterator[None]:
    """Let a reply that this thread reads in the block arrive within ``within_s`` seconds."""
    _deadline.at_s = time.monotonic() + within_s
    try:
        yield
    finally:
        _deadline.at_s = float("inf")


def read_body(response: requests.Response, limit: ReplyLimit, budget: ReplyBudget) -> bytes:
    """Return the body of a response that was requested with ``stream=True``, as it was sent.

    Raises ``ReplyTooLong``, and other ``requests.RequestException`` if the body does not arrive. After an error the
    connection is closed: nobody reads the rest.
    """
    try:
        with budget.reservation() as reservation:
            pieces = list(_pieces(response.raw, limit, reservation))
    except urllib3.exceptions.HTTPError as exc:
        response.close()
        raise requests.ConnectionError(f"the reply is incomplete: {exc}") from exc
    except BaseException:
        response.close()
        raise
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _pieces(raw: Any, limit: ReplyLimit, reservation: Reservation) -> Iterator[bytes]:
    """Yield a body piece by piece. ``raw``: the response of urllib3. Raises ``ReplyTooLong``."""
    size = raw.length_remaining or 0  # As announced, to reject it at once.
    while True:
        if size > limit.max_bytes:
            raise ReplyTooLong(f"the reply has more than {limit.max_bytes} bytes")
        if not reservation.extend(size):
            raise ReplyTooLong("too many long replies at once")
        piece = raw.read(PIECE_BYTES, decode_content=False)
        if not piece:
            return
        size = max(size, raw.tell())
        yield piece


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket until the deadline of the thread that made it."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket) -> None:
        self._raw = raw
        self._sock = sock
        self._timeout_s = sock.gettimeout() or float("inf")
        self._deadline_s = _deadline.at_s

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int | None:
        """Read what has arrived. Raises ``TimeoutError`` after the deadline, or if nothing arrives for too long."""
        remaining_s = min(self._timeout_s, self._deadline_s - time.monotonic())
        if remaining_s <= 0:
            raise TimeoutError("the reply takes too long")
        self._sock.settimeout(remaining_s if remaining_s < float("inf") else None)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        """Close the socket's file."""
        super().close()
        self._raw.close()


class _Response(http.client.HTTPResponse):
    """A response whose status line, headers and body have one deadline."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        file: Any = self.fp
        self.fp = io.BufferedReader(_DeadlineReader(file.detach(), sock))


class _HTTPConnection(urllib3.connection.HTTPConnection):
    response_class = _Response


class _HTTPSConnection(urllib3.connection.HTTPSConnection):
    response_class = _Response


class _HTTPPool(urllib3.connectionpool.HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(urllib3.connectionpool.HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class BoundedAdapter(HTTPAdapter):
    """Connections whose replies have the deadline of the block around the request.

    ``server_name``: the host that certificates are verified for, whatever address a connection goes to; empty: the
    address.
    """

    def __init__(self, server_name: str = "") -> None:
        self._server_name = server_name
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Use connections with a deadline, and pass the name to urllib3, which sends it (SNI) and verifies it."""
        if self._server_name:
            options["server_hostname"] = self._server_name
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
