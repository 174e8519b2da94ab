"""Message channels: which replies are read as a block, and what may happen between two requests. Real sockets.

That both ways of a peer client keep the same bounds and check the same proofs: test_bounded_replies.py and
test_peer_client.py. TLS: tests/cluster/test_security.py.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from replication.bounded_replies import ReplyLimit
from replication.message_channel import MessageChannel, ReplyHead, parse_head
from replication.peer_client import PeerClientSettings

LIMIT = ReplyLimit(max_bytes=1_000_000, within_s=2.0)
OK = b"HTTP/1.1 200 OK\r\n"

Answer = Callable[[socket.socket, bytes], None]


class Listener:
    """Answers each request with what ``answer`` writes. ``connections``: how many were opened; ``requests``: all."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.connections = 0
        self.requests: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._socket.accept()[0]
                self.connections += 1
                threading.Thread(target=self._converse, args=(connection,), daemon=True).start()

    def _converse(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while request := connection.recv(65536):
                self.requests.append(request)
                self.answer(connection, request)

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


Listen = Callable[[Answer], Listener]


@pytest.fixture
def listen() -> Iterator[Listen]:
    listeners: list[Listener] = []

    def start(answer: Answer) -> Listener:
        listeners.append(Listener(answer))
        return listeners[-1]

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def channel() -> Iterator[MessageChannel]:
    opened = MessageChannel(
        PeerClientSettings(timeout_s=0.5, token="a-token", host_header="name:80", sender="10.0.0.1:80")
    )
    yield opened
    opened.close()


def post(channel: MessageChannel, listener: Listener, body: bytes = b"message") -> tuple[int, bytes]:
    reply = channel.send("POST", listener.address, "/replication/exchange", body, {"Content-Type": "a/b"}, LIMIT)
    return reply.status, reply.body


def saying(*pieces: bytes) -> Answer:
    """Return an answer that sends ``pieces``."""

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"".join(pieces))

    return answer


PLAIN = OK + b"Content-Length: 4\r\nContent-Type: a/b\r\n\r\nbody"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 4",
        b"HTTP/1.1 200\r\ncontent-length:4",
        b"HTTP/1.1 200 OK\r\nServer: x\r\nCONTENT-LENGTH: \t4 \r\nConnection: Keep-Alive\r\nDate: a, b: c",
    ],
)
def test_a_plain_head_is_parsed(head: bytes) -> None:
    assert parse_head(head) == ReplyHead(200, 4, "", closes=False)


def test_the_proof_and_the_end_of_the_connection_are_read_from_the_head() -> None:
    head = b"HTTP/1.1 403 Forbidden\r\nx-causeway-proof: 2 a 1 f\r\nContent-Length: 0\r\nConnection: close"
    assert parse_head(head) == ReplyHead(403, 0, "2 a 1 f", closes=True)


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.0 200 OK\r\nContent-Length: 4",
        b"HTTP/1.1 20 OK\r\nContent-Length: 4",
        b"HTTP/1.1 2000 OK\r\nContent-Length: 4",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 4",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 4",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4",
        b"HTTP/1.1 200 OK\nContent-Length: 4",
        b"HTTP/1.1 200 OK\r\nServer: x",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nContent-Length: 4",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: -4",
        b"HTTP/1.1 200 OK\r\nContent-Length: +4",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4_0",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0x4",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4,4",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999",
        b"HTTP/1.1 200 OK\r\nContent-Length : 4",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n folded",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nno colon",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nName: \x00",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nName: \xff",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nA: b\nContent-Length: 9",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Causeway-Proof: a\r\nX-Causeway-Proof: b",
    ],
)
def test_every_other_head_is_left_to_the_standard_library(head: bytes) -> None:
    assert parse_head(head) is None


@pytest.mark.parametrize(
    "pieces",
    [
        [PLAIN],
        [PLAIN[:5], PLAIN[5:60], PLAIN[60:]],
        [PLAIN[:-4], b"bo", b"dy"],
        [OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN],
        [b"HTTP/1.1 100 Continue\r\n\r\n", PLAIN[:7], PLAIN[7:]],
        [OK + b"Set-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 4\r\n\r\nbo", b"dy"],
        [OK + b"X: " + b"x" * 20_000 + b"\r\nContent-Length: 4\r\n\r\nbody"],
    ],
    ids=["plain", "in pieces", "body in pieces", "chunked", "interim", "interim in pieces", "cookies", "long head"],
)
def test_a_reply_arrives_whole_and_the_connection_is_used_again(
    listen: Listen, channel: MessageChannel, pieces: list[bytes]
) -> None:
    listener = listen(saying(*pieces))
    assert [post(channel, listener) for _ in range(3)] == [(200, b"body")] * 3
    assert listener.connections == 1


class PieceSocket:
    """A socket on which the pieces of a reply arrive one by one."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = list(pieces)

    def settimeout(self, timeout_s: float) -> None:
        """Do nothing."""

    def sendall(self, data: bytes) -> None:
        """Do nothing."""

    def recv(self, size: int) -> bytes:
        """Return the next piece."""
        assert len(self.pieces[0]) <= size
        return self.pieces.pop(0)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize(
    "reply",
    [PLAIN, b"HTTP/1.1 100 Continue\r\n\r\n" + PLAIN, OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"],
    ids=["plain", "interim", "chunked"],
)
def test_a_reply_may_arrive_in_pieces_of_any_size(
    channel: MessageChannel, monkeypatch: pytest.MonkeyPatch, reply: bytes, size: int
) -> None:
    arriving = PieceSocket([reply[at : at + size] for at in range(0, len(reply), size)])
    monkeypatch.setattr(channel, "_connected", lambda address: arriving)
    assert channel.send("POST", "peer:80", "/", b"x", {}, LIMIT) == (200, b"body", "")
    assert arriving.pieces == []


def test_a_request_has_what_the_receiver_needs(listen: Listen, channel: MessageChannel) -> None:
    listener = listen(saying(PLAIN))
    post(channel, listener)
    head, _, body = listener.requests[0].partition(b"\r\n\r\n")
    assert body == b"message"
    assert head.split(b"\r\n") == [
        b"POST /replication/exchange HTTP/1.1",
        b"Host: name:80",
        b"Accept-Encoding: identity",
        b"X-Causeway-Sender: 10.0.0.1:80",
        b"Authorization: Bearer a-token",
        b"Content-Type: a/b",
        b"Content-Length: 7",
    ]


@pytest.mark.parametrize("end", [b"Connection: close\r\n", b"connection: x, Close\r\n"])
def test_a_connection_that_the_peer_ends_is_opened_again(listen: Listen, channel: MessageChannel, end: bytes) -> None:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(OK + b"Content-Length: 4\r\n" + end + b"\r\nbody")
        connection.shutdown(socket.SHUT_RDWR)

    listener = listen(answer)
    assert [post(channel, listener) for _ in range(2)] == [(200, b"body")] * 2
    assert listener.connections == 2


def test_a_connection_that_ended_while_idle_is_opened_again(listen: Listen, channel: MessageChannel) -> None:
    ended = threading.Event()

    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(PLAIN)
        connection.shutdown(socket.SHUT_RDWR)
        ended.set()

    listener = listen(answer)
    post(channel, listener)
    assert ended.wait(5)
    assert post(channel, listener) == (200, b"body")
    assert listener.connections == 2


@pytest.mark.parametrize(
    "reply",
    [PLAIN + PLAIN, OK + b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n" + PLAIN],
    ids=["plain", "chunked"],
)
def test_bytes_after_a_reply_are_never_taken_for_the_next_reply(
    listen: Listen, channel: MessageChannel, reply: bytes
) -> None:
    replies = iter([reply, OK + b"Content-Length: 5\r\n\r\nright"])
    listener = listen(lambda connection, _: connection.sendall(next(replies)))
    with contextlib.suppress(requests.ConnectionError):
        post(channel, listener)
    assert post(channel, listener) == (200, b"right")
    assert listener.connections == 2


def test_a_reply_to_a_request_that_the_peer_did_not_read_whole_says_why(
    listen: Listen, channel: MessageChannel
) -> None:
    def reject(connection: socket.socket, _: bytes) -> None:
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nwhy")
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(65536):  # A close with unread bytes would be a reset, which may overtake the reply.
            pass

    assert post(channel, listen(reject), b"x" * 8_000_000) == (413, b"why")


def test_another_address_gets_a_connection_of_its_own(listen: Listen, channel: MessageChannel) -> None:
    one, other = (listen(saying(OK + b"Content-Length: 1\r\n\r\n" + name)) for name in (b"1", b"2"))
    assert [post(channel, each)[1] for each in (one, other, one)] == [b"1", b"2", b"1"]
    assert (one.connections, other.connections) == (2, 1)


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 200 OK\r\nContent-", b"nonsense\r\n\r\n"])
def test_no_reply_is_an_error_of_requests_and_closes_the_connection(
    listen: Listen, channel: MessageChannel, reply: bytes
) -> None:
    def answer(connection: socket.socket, _: bytes) -> None:
        connection.sendall(reply)
        connection.shutdown(socket.SHUT_RDWR)

    listener = listen(answer)
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            post(channel, listener)
    assert listener.connections == 2


def test_nobody_at_the_address_is_an_error_of_requests(channel: MessageChannel) -> None:
    with pytest.raises(requests.ConnectionError, match="refused"):
        channel.send("POST", "127.0.0.1:1", "/", b"x", {}, LIMIT)


def test_a_peer_that_does_not_answer_costs_the_timeout(listen: Listen, channel: MessageChannel) -> None:
    listener, began_s = listen(saying()), time.monotonic()
    with pytest.raises(requests.RequestException):
        post(channel, listener)
    assert 0.4 < time.monotonic() - began_s < 2
