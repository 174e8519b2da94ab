"""Message channels: HTTP/1.1 requests to one peer over a kept-alive connection, with as little work as possible.

``requests`` costs about 300 µs of CPU a request, the rest of an exchange about 200 µs at both replicas together. A
client whose write waits for acknowledgements waits for an exchange, and a busy replica sends hundreds of them a second.
So messages between replicas take this way (docs/decisions/0031-messages-travel-without-requests.md):

* ``urllib3``, on which ``requests`` stands, opens the connection: names, timeouts, TLS and certificates are its own.
* A request is one block of bytes. Its head differs from the one before only in a few fields.
* A reply of the form that replicas send (``parse_head``) is read as a block of bytes too. Every other reply, for
  example one of a proxy, is read by the standard library.

The promises of bounded_replies.py hold here as well: a limit of bytes and one deadline for the whole reply, nothing is
decompressed, and all long replies share one budget. No proxy of the environment is used, and no redirect is followed.
Errors are those of ``requests``, so that callers need not know which way a request took.
"""

from __future__ import annotations

import http.client
import io
import re
import select
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import requests
import urllib3.connection
from requests.utils import DEFAULT_CA_BUNDLE_PATH

from replication.bounded_replies import FREE_BYTES, PIECE_BYTES, ReplyLimit, ReplyTooLong, Reservation
from replication.proof import HEADER
from replication.rejected_senders import SENDER
from store.address import split_address

if TYPE_CHECKING:
    from replication.peer_client import PeerClientSettings

MAX_HEAD_BYTES: Final = 16 * 1024
"""Longest head of a reply that is read as a block. The standard library reads a longer one, within its own limits."""

_HEAD: Final = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9])(?: [\t -~]*)?(?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[\t -~]*)*")
_FIELDS: Final = re.compile(
    rb"\r\n(content-length|transfer-encoding|connection|" + re.escape(HEADER.encode()) + rb"):[\t ]*([\t -~]*)",
    re.IGNORECASE,
)
_LENGTH: Final = re.compile(rb"[0-9]{1,12}")
_WITHOUT_BODY: Final = frozenset({204, 304})
_PROOF: Final = HEADER.lower().encode()


class Reply(NamedTuple):
    """A reply: status, body, and the header with the proof, which is not verified."""

    status: int
    body: bytes
    proof: str


class ReplyHead(NamedTuple):
    """What matters of a reply's head. ``length``: bytes of the body. ``closes``: no other reply follows."""

    status: int
    length: int
    proof: str
    closes: bool


def parse_head(head: bytes) -> ReplyHead | None:
    """Return what matters of a reply's head, without its empty line; None if it is not of the plain form.

    The plain form is a status line of HTTP/1.1 and headers of visible ASCII on one line each, with one
    ``Content-Length`` and without ``Transfer-Encoding``. Its status is final, and the reply may have a body.
    """
    matched = _HEAD.fullmatch(head)
    if matched is None or (status := int(matched[1])) in _WITHOUT_BODY:
        return None
    found = _FIELDS.findall(head)
    fields = {name.lower(): value.rstrip() for name, value in found}
    length = fields.get(b"content-length", b"")
    if len(fields) < len(found) or not _LENGTH.fullmatch(length) or b"transfer-encoding" in fields:
        return None
    closes = fields.get(b"connection", b"keep-alive").lower() != b"keep-alive"
    return ReplyHead(status, int(length), fields.get(_PROOF, b"").decode("ascii"), closes)


class MessageChannel:
    """The connection to one peer. Use from one thread only.

    A request to another address opens a new connection. After any error, the connection is closed.
    """

    def __init__(self, settings: PeerClientSettings) -> None:
        self._settings = settings
        self._address = ""
        self._connection: urllib3.connection.HTTPConnection | None = None
        self._socket: Any = None
        self._poll = select.poll()
        self._heads: dict[tuple[str, str], bytes] = {}
        """(method, path) -> head up to the fields that differ, for the present address; at most a few paths exist."""

    def send(
        self, method: str, address: str, path: str, body: bytes, headers: dict[str, str], limit: ReplyLimit
    ) -> Reply:
        """Send a request and return its reply, whatever its status. Raises ``requests.RequestException``."""
        timeout_s = self._settings.timeout_s
        deadline_s = time.monotonic() + timeout_s + limit.within_s
        try:
            sock = self._connected(address)
            fields = [f"{name}: {value}\r\n" for name, value in headers.items()]
            if body:
                fields.append(f"Content-Length: {len(body)}\r\n")
            request = b"".join((self._head(method, address, path), "".join(fields).encode("ascii"), b"\r\n", body))
            sock.settimeout(timeout_s)
            with suppress(BrokenPipeError, ConnectionResetError):
                # If these are raised, the peer may have answered before it read everything: the answer says why.
                sock.sendall(request)
            return self._receive(sock, method, deadline_s, limit)
        except BaseException as exc:
            self.close()
            if isinstance(exc, requests.RequestException):
                raise
            if isinstance(exc, ssl.SSLEOFError | ssl.SSLZeroReturnError):
                raise requests.ConnectionError(exc) from exc
            if isinstance(exc, ssl.SSLError | urllib3.exceptions.SSLError):
                raise requests.exceptions.SSLError(exc) from exc
            if isinstance(exc, OSError | http.client.HTTPException | urllib3.exceptions.HTTPError):
                raise requests.ConnectionError(exc) from exc
            raise

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._poll.unregister(self._socket)
            connection.close()
            self._socket = None

    # -- the connection --------------------------------------------------------------------------------

    def _connected(self, address: str) -> Any:
        """Return the socket of an open connection to ``address``."""
        if self._connection is not None:
            # Nothing may arrive between a reply and the next request: the peer has closed, or does not keep to HTTP.
            if address == self._address and not self._poll.poll(0):
                return self._socket
            self.close()
        if address != self._address:
            self._heads.clear()
        connection = self._connect(address)
        self._connection, self._socket, self._address = connection, connection.sock, address
        self._poll.register(self._socket, select.POLLIN)
        return self._socket

    def _connect(self, address: str) -> urllib3.connection.HTTPConnection:
        settings = self._settings
        host, port = split_address(address)
        if settings.scheme == "http":
            connection = urllib3.connection.HTTPConnection(host, port, timeout=settings.timeout_s)
        else:
            trusted = DEFAULT_CA_BUNDLE_PATH if settings.verify is True else str(settings.verify)
            is_directory = Path(trusted).is_dir()
            connection = urllib3.connection.HTTPSConnection(
                host,
                port,
                timeout=settings.timeout_s,
                cert_reqs="CERT_REQUIRED",
                ca_certs=None if is_directory else trusted,
                ca_cert_dir=trusted if is_directory else None,
                server_hostname=split_address(settings.server_name)[0] if settings.server_name else None,
            )
        try:
            connection.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def _head(self, method: str, address: str, path: str) -> bytes:
        head = self._heads.get((method, path))
        if head is None:
            settings = self._settings
            host = settings.host_header or settings.server_name or address
            lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Accept-Encoding: identity"]
            if settings.sender:
                lines.append(f"{SENDER}: {settings.sender}")
            if settings.token:
                lines.append(f"Authorization: Bearer {settings.token}")
            head = "".join(f"{line}\r\n" for line in lines).encode("ascii")
            if len(self._heads) >= 8:
                self._heads.clear()
            self._heads[method, path] = head
        return head

    # -- the reply -------------------------------------------------------------------------------------

    def _receive(self, sock: Any, method: str, deadline_s: float, limit: ReplyLimit) -> Reply:
        timeout_s = self._settings.timeout_s
        received = receive(sock, PIECE_BYTES, timeout_s, deadline_s)
        while (end := received.find(b"\r\n\r\n")) < 0 and 0 < len(received) <= MAX_HEAD_BYTES:
            more = receive(sock, PIECE_BYTES, timeout_s, deadline_s)
            if not more:
                raise requests.ConnectionError(f"the reply is incomplete: it ends in its head: {received[:16]!r}")
            received += more
        head = parse_head(received[:end]) if 0 <= end <= MAX_HEAD_BYTES else None
        if head is None:
            return self._receive_any(sock, method, received, deadline_s, limit)
        start, total = end + 4, end + 4 + head.length
        if head.length <= FREE_BYTES and len(received) == total:  # The usual reply: small, and here in one piece.
            if head.length > limit.max_bytes:
                raise too_long(limit)
            body = received[start:]
        else:
            with self._settings.budget.reservation() as reservation:
                body = self._receive_body(sock, received[start:], head.length, reservation, deadline_s, limit)
        if head.closes:
            self.close()
        return Reply(head.status, body, head.proof)

    def _receive_body(
        self,
        sock: Any,
        begin: bytes,
        length: int,
        reservation: Reservation,
        deadline_s: float,
        limit: ReplyLimit,
    ) -> bytes:
        """Return a body of ``length`` bytes, of which ``begin`` is here already."""
        if length > limit.max_bytes:
            raise too_long(limit)
        if not reservation.extend(length):
            raise ReplyTooLong("too many long replies at once")
        pieces, missing = [begin], length - len(begin)
        while missing > 0:
            piece = receive(sock, PIECE_BYTES, self._settings.timeout_s, deadline_s)
            if not piece:
                raise requests.ConnectionError(f"the reply is incomplete: {missing} of {length} bytes are missing")
            pieces.append(piece)
            missing -= len(piece)
        if missing < 0:
            raise requests.ConnectionError(f"the reply has more than the {length} bytes that it announces")
        return b"".join(pieces)

    def _receive_any(self, sock: Any, method: str, received: bytes, deadline_s: float, limit: ReplyLimit) -> Reply:
        """Read a reply of any form that HTTP/1.1 allows; ``received``: what is here of it."""
        source: Any = _Resumed(received, sock, self._settings.timeout_s, deadline_s)
        response = http.client.HTTPResponse(source, method=method)
        try:
            response.begin()
            with self._settings.budget.reservation() as reservation:
                body = _read_all(response, limit, reservation)
        except http.client.IncompleteRead as exc:
            raise requests.ConnectionError(f"the reply is incomplete: {exc}") from exc
        finally:
            response.close()
        if response.will_close or source.has_more:
            self.close()
        return Reply(response.status, body, response.getheader(HEADER, ""))


def receive(sock: Any, size: int, timeout_s: float, deadline_s: float) -> bytes:
    """Return what has arrived, at most ``size`` bytes; empty if the peer has closed the connection.

    Raises ``TimeoutError`` after ``deadline_s``, or if nothing arrives for ``timeout_s`` seconds.
    """
    remaining_s = min(timeout_s, deadline_s - time.monotonic())
    if remaining_s <= 0:
        raise TimeoutError("the reply takes too long")
    sock.settimeout(remaining_s)
    data: bytes = sock.recv(size)
    return data


def too_long(limit: ReplyLimit) -> ReplyTooLong:
    """Return the error for a reply above its limit."""
    return ReplyTooLong(f"the reply has more than {limit.max_bytes} bytes")


def _read_all(response: http.client.HTTPResponse, limit: ReplyLimit, reservation: Reservation) -> bytes:
    pieces: list[bytes] = []
    size, announced = 0, response.length or 0  # As announced, to reject it at once.
    while True:
        if max(size, announced) > limit.max_bytes:
            raise too_long(limit)
        if not reservation.extend(max(size, announced)):
            raise ReplyTooLong("too many long replies at once")
        piece = response.read(PIECE_BYTES)
        if not piece:
            break
        pieces.append(piece)
        size += len(piece)
    if size < announced:
        raise requests.ConnectionError(f"the reply is incomplete: {announced - size} of {announced} bytes are missing")
    return b"".join(pieces)


class _Resumed(io.RawIOBase):
    """A socket for ``http.client`` whose first bytes have been received already, and whose reads have a deadline.

    ``has_more``: after the response is closed, whether bytes were received that are no part of it.
    """

    def __init__(self, received: bytes, sock: socket.socket, timeout_s: float, deadline_s: float) -> None:
        self._received = received
        self._sock = sock
        self._timeout_s = timeout_s
        self._deadline_s = deadline_s
        self._is_over = False
        self.has_more = False

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a reader, as a socket does."""
        return _Reader(self)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what has arrived. Raises ``TimeoutError``."""
        data, self._received = self._received[: len(buffer)], self._received[len(buffer) :]
        if not data and not self._is_over:
            data = receive(self._sock, len(buffer), self._timeout_s, self._deadline_s)
        buffer[: len(data)] = data
        return len(data)

    def end(self, reader: io.BufferedReader) -> None:
        """Note that the response ends here."""
        self._is_over = True
        self.has_more = bool(reader.peek(1))


class _Reader(io.BufferedReader):
    """The reader of a ``_Resumed``, which ``http.client`` closes at the end of the response."""

    raw: _Resumed

    def close(self) -> None:
        """Close the reader, not the socket."""
        if not self.closed:
            self.raw.end(self)
        super().close()
