"""What a failed request to a peer is called (replication/unreached.py), with real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
import requests
import urllib3.exceptions

from replication.errors import BadMessage, ReplicationError, Unreachable, failure_of
from replication.failures import failure_in
from replication.messages import SnapshotRequest
from replication.peer_client import PeerClientSettings
from replication.transport import Transport
from replication.unreached import FailureKind
from tests.support.ports import free_ports

HTML = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


@contextmanager
def listener(reply: bytes | None) -> Iterator[int]:
    """Accept one connection, and send ``reply`` and close it, or leave it open if it is None. Yield the port."""
    is_over = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with closing(connection):
                connection.recv(65536)
                if reply is None:
                    is_over.wait(10)
                else:
                    connection.sendall(reply)

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield server.getsockname()[1]
        finally:
            is_over.set()
            thread.join()


def failure_at(port: int, scheme: str = "http") -> FailureKind:
    transport = Transport(PeerClientSettings(timeout_s=0.3, scheme=scheme))
    with closing(transport), pytest.raises(ReplicationError) as caught:
        transport.send(f"127.0.0.1:{port}", SnapshotRequest("r1:80@0000000000000001"))
    return failure_of(caught.value)


def test_nobody_listens() -> None:
    assert failure_at(free_ports(1)) == "closed"


@pytest.mark.parametrize(
    ("reply", "kind"),
    [(None, "silent"), (b"", "broken"), (b"\x15\x03\x01\x00\x02\x02\x16", "tls"), (NOT_FOUND, "stranger")],
)
def test_what_answers_is_no_replica(reply: bytes | None, kind: FailureKind) -> None:
    """The third one is what a server of TLS sends to a client that does not use it."""
    with listener(reply) as port:
        assert failure_at(port) == kind


def test_a_page_is_no_message() -> None:
    with listener(HTML) as port:
        assert failure_at(port) == "stranger"
    assert failure_of(BadMessage("x")) == "stranger"


def test_a_server_without_tls() -> None:
    with listener(NOT_FOUND) as port:
        assert failure_at(port, "https") == "tls"


@pytest.mark.parametrize(
    ("cause", "kind"),
    [
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "name"),
        (urllib3.exceptions.NameResolutionError("host", None, socket.gaierror()), "name"),  # type: ignore[arg-type]
        (OSError(113, "No route to host"), "route"),
        (OSError(101, "Network is unreachable"), "route"),
        (TimeoutError("timed out"), "silent"),
        (ConnectionResetError(104, "Connection reset by peer"), "broken"),
    ],
)
def test_a_cause_counts_however_deep_it_is_wrapped(cause: Exception, kind: FailureKind) -> None:
    wrapped = requests.ConnectionError(urllib3.exceptions.ProtocolError("x", cause))
    assert failure_in(cause) == kind
    assert failure_in(wrapped) == kind


def test_causes_that_refer_to_each_other_end() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert failure_in(first) == "stranger"
    assert failure_of(Unreachable("x")) == "silent"
