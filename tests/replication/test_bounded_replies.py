"""Replies of strangers: without end, slow, or compressed. Real sockets; the stranger writes raw bytes."""

from __future__ import annotations

import contextlib
import gzip
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import requests

from replication import bounded_replies
from replication.bounded_replies import FREE_BYTES, MIB, ReplyBudget, ReplyLimit
from replication.errors import BadMessage, Unreachable
from replication.messages import SnapshotRequest
from replication.peer_client import PeerClient, PeerClientSettings, Response
from replication.transport import Transport

Answer = Callable[[socket.socket], None]
Listen = Callable[[Answer], str]
Ask = Callable[[str, ReplyLimit], Response]

SMALL = ReplyLimit(max_bytes=100_000, within_s=0.5)
HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def listen() -> Iterator[Listen]:
    """Listen at an address, and answer each request on each connection with raw bytes."""
    listeners: list[socket.socket] = []

    def serve(listener: socket.socket, answer: Answer) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                threading.Thread(target=converse, args=(connection, answer), daemon=True).start()

    def converse(connection: socket.socket, answer: Answer) -> None:
        with contextlib.suppress(OSError), connection:
            while connection.recv(65536):
                answer(connection)

    def start(answer: Answer) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)
        threading.Thread(target=serve, args=(listener, answer), daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    yield start
    for listener in listeners:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@pytest.fixture(params=["requests", "channel"])
def ask(request: pytest.FixtureRequest) -> Iterator[Ask]:
    """Ask an address by each of the two ways that a peer client has."""
    client = PeerClient(PeerClientSettings(timeout_s=0.5))
    yield asking(client, request.param)
    client.close()


def asking(client: PeerClient, way: str) -> Ask:
    """Return a function that asks through ``client``."""
    if way == "requests":
        return lambda address, limit: client.request("GET", address, "/replication/status", limit=limit)
    return lambda address, limit: client.post_message(address, "/replication/exchange", b"message", "a/b", limit)


def for_ever(piece: bytes, first: bytes = b"", pause_s: float = 0.0) -> Answer:
    """Return an answer of ``first`` and then ``piece`` again and again."""

    def answer(connection: socket.socket) -> None:
        connection.sendall(first)
        while True:
            connection.sendall(piece)
            time.sleep(pause_s)

    return answer


MANY = b"x" * 65536
ENDLESS = {
    "announced": for_ever(MANY, HEAD + b"Content-Length: 100000000000\r\n\r\n"),
    "chunked": for_ever(b"10000\r\n" + MANY + b"\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
    "until the connection ends": for_ever(MANY, HEAD + b"\r\n"),
    "chunk size": for_ever(b"0" * 65536, HEAD + b"Transfer-Encoding: chunked\r\n\r\n"),
    "trailers": for_ever(b"a: b\r\n" * 1000, HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"),
    "headers": for_ever(b"a: b\r\n" * 1000, HEAD),
    "one header": for_ever(MANY, HEAD),
    "status line": for_ever(MANY),
    "interim responses": for_ever(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
}
SLOW = {
    "body": for_ever(b"x", HEAD + b"Content-Length: 1000\r\n\r\n", pause_s=0.1),
    "chunks": for_ever(b"1\r\nx\r\n", HEAD + b"Transfer-Encoding: chunked\r\n\r\n", pause_s=0.1),
    "header": for_ever(b"x", HEAD + b"a: ", pause_s=0.1),
    "status line": for_ever(b"x", b"HTTP/1.1 200 ", pause_s=0.1),
    "interim responses": for_ever(b"HTTP/1.1 100 Continue\r\n\r\n", pause_s=0.1),
}


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("kind", sorted(ENDLESS))
def test_a_reply_without_end_is_read_up_to_its_limit(listen: Listen, ask: Ask, kind: str) -> None:
    address, before, began_s = listen(ENDLESS[kind]), peak_bytes(), time.monotonic()
    with pytest.raises(requests.RequestException):
        ask(address, SMALL)
    assert time.monotonic() - began_s < 3
    assert peak_bytes() - before < 16 * MIB


@pytest.mark.parametrize("kind", sorted(SLOW))
def test_one_deadline_covers_the_whole_reply(listen: Listen, ask: Ask, kind: str) -> None:
    """Something arrives ten times a second, so no single wait is long."""
    address, began_s = listen(SLOW[kind]), time.monotonic()
    with pytest.raises(requests.RequestException):
        ask(address, SMALL)
    assert 0.4 < time.monotonic() - began_s < 2


def test_a_compressed_reply_is_not_unpacked(listen: Listen, ask: Ask) -> None:
    bomb = gzip.compress(bytes(64 * MIB))

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(bomb) + bomb)

    before = peak_bytes()
    assert ask(listen(answer), ReplyLimit(MIB, 2.0)).body == bomb
    assert peak_bytes() - before < 16 * MIB


@pytest.mark.parametrize("size", [0, 1, 65536, 100_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_replies_within_the_limit_arrive_whole_on_one_connection(
    listen: Listen, ask: Ask, size: int, is_chunked: bool
) -> None:
    connections = set()

    def answer(connection: socket.socket) -> None:
        connections.add(connection.getpeername())
        framing = b"Transfer-Encoding: chunked" if is_chunked else b"Content-Length: %d" % size
        chunk = b"%x\r\n%s\r\n" % (size, b"x" * size) if size else b""
        body = chunk + b"0\r\n\r\n" if is_chunked else b"x" * size
        connection.sendall(HEAD + framing + b"\r\n\r\n" + body)

    address = listen(answer)
    for _ in range(3):
        response = ask(address, SMALL)
        assert (response.status, len(response.body)) == (200, size)
    assert len(connections) == 1


def test_a_pause_between_two_requests_does_not_count(listen: Listen, ask: Ask) -> None:
    address = listen(lambda connection: connection.sendall(HEAD + b"Content-Length: 1\r\n\r\nx"))
    for _ in range(3):
        assert ask(address, SMALL).body == b"x"
        time.sleep(0.6)


def test_a_reply_that_ends_early_is_an_error(listen: Listen, ask: Ask) -> None:
    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: 10\r\n\r\nx")
        connection.shutdown(socket.SHUT_RDWR)

    with pytest.raises(requests.RequestException, match="incomplete"):
        ask(listen(answer), SMALL)


def test_messages_have_larger_limits_than_other_replies(listen: Listen) -> None:
    body = b"\xc1" * (20 * MIB)

    def answer(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    address, transport = listen(answer), Transport(PeerClientSettings())
    with pytest.raises(Unreachable, match=f"more than {16 * MIB} bytes"):
        transport.status(address)
    with pytest.raises(BadMessage, match="not a message"):
        transport.send(address, SnapshotRequest("a:1@0000000000000001"))
    small = Transport(PeerClientSettings(max_body_bytes=MIB))
    with pytest.raises(Unreachable, match=f"more than {16 * MIB} bytes"):
        small.send(address, SnapshotRequest("a:1@0000000000000001"))
    transport.close()
    small.close()


@pytest.mark.parametrize("way", ["requests", "channel"])
def test_long_replies_share_a_budget(listen: Listen, way: str) -> None:
    """One reply takes all of it and is slow; a second long one fails, short ones do not."""
    size = FREE_BYTES + 100_000
    release = threading.Event()

    def slow(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % size + b"x" * (size - 1))
        release.wait(5)
        connection.sendall(b"x")

    def at_once(length: int) -> Answer:
        return lambda connection: connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % length + b"x" * length)

    settings = PeerClientSettings(timeout_s=5.0, budget=ReplyBudget(150_000))
    lengths: list[int] = []

    def fetch(address: str) -> int:
        client = PeerClient(settings)
        try:
            return len(asking(client, way)(address, settings.other_limit).body)
        finally:
            client.close()

    first = threading.Thread(target=lambda: lengths.append(fetch(listen(slow))))
    first.start()
    deadline_s = time.monotonic() + 5
    while settings.budget._used_bytes < 100_000 and time.monotonic() < deadline_s:
        time.sleep(0.01)
    with pytest.raises(bounded_replies.ReplyTooLong, match="too many long replies"):
        fetch(listen(at_once(size)))
    assert fetch(listen(at_once(FREE_BYTES))) == FREE_BYTES
    release.set()
    first.join()
    assert lengths == [size]
    assert fetch(listen(at_once(size))) == size, "the budget is free again"
    assert settings.budget._used_bytes == 0
