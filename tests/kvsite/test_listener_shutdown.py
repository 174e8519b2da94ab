"""Stopping a listening socket: queued connections are served, later ones are refused, none is reset."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from kvsite.listener_shutdown import stop_listening
from tests.support.waiting import wait_until

FAMILIES = {"127.0.0.1": socket.AF_INET, "::1": socket.AF_INET6}


@pytest.fixture(params=FAMILIES)
def listening(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    with socket.socket(FAMILIES[request.param]) as made:
        made.bind((request.param, 0))
        made.listen(16)
        made.settimeout(5)
        yield made


def test_accepted_connections_are_served_and_later_ones_refused(listening: socket.socket) -> None:
    at = listening.getsockname()[:2]
    descriptor = listening.fileno()
    with socket.create_connection(at, 5) as client:
        server, _ = listening.accept()
        stop_listening(descriptor, 0.0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(at, 5)
        client.sendall(b"hello")
        assert server.recv(5) == b"hello"
        server.sendall(b"response")
        assert client.recv(8) == b"response"
        server.close()
    os.fstat(descriptor)  # still open, so that no other file gets this number while granian uses it


@pytest.mark.linux
def test_a_connection_during_the_shutdown_is_refused_and_never_reset(listening: socket.socket) -> None:
    """A connection that is established at this point would be reset when the socket is closed."""
    at = listening.getsockname()[:2]
    closing = threading.Thread(target=stop_listening, args=(listening.fileno(), 0.5))
    closing.start()

    def drops_handshakes() -> bool:
        try:
            socket.create_connection(at, 0.05).close()
        except TimeoutError:
            return True
        return False

    wait_until(drops_handshakes)
    began_s = time.monotonic()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(at, 5).close()  # TCP tries again after a second; then the socket is closed
    assert time.monotonic() - began_s > 0.3
    closing.join()


@pytest.mark.linux
def test_queued_connections_can_be_accepted_during_the_shutdown(listening: socket.socket) -> None:
    with socket.create_connection(listening.getsockname()[:2], 5) as client:
        client.sendall(b"hello")
        closing = threading.Thread(target=stop_listening, args=(listening.fileno(), 0.5))
        closing.start()
        server, _ = listening.accept()
        closing.join()
        assert server.recv(5) == b"hello"
        server.sendall(b"response")
        assert client.recv(8) == b"response"
        server.close()
