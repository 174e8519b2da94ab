"""How a server stops listening: who is in its queue is served, who comes later is refused, nobody is reset."""

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


def test_who_was_let_in_before_is_served_and_who_comes_after_is_refused(listening: socket.socket) -> None:
    at = listening.getsockname()[:2]
    descriptor = listening.fileno()
    with socket.create_connection(at, 5) as client:
        server, _ = listening.accept()
        stop_listening(descriptor, 0.0)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(at, 5)
        client.sendall(b"asked")
        assert server.recv(5) == b"asked"
        server.sendall(b"answered")
        assert client.recv(8) == b"answered"
        server.close()
    os.fstat(descriptor)  # still somebody's, so that no other file gets this number while granian has it


@pytest.mark.linux
def test_who_knocks_while_the_door_closes_is_refused_and_never_reset(listening: socket.socket) -> None:
    """A connection that came about now would be reset when the socket is closed, with a request on it or not."""
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
        socket.create_connection(at, 5).close()  # TCP asks again after a second; by then the door is closed
    assert time.monotonic() - began_s > 0.3
    closing.join()


@pytest.mark.linux
def test_what_is_in_the_queue_can_be_accepted_while_the_door_closes(listening: socket.socket) -> None:
    with socket.create_connection(listening.getsockname()[:2], 5) as came:
        came.sendall(b"asked")
        closing = threading.Thread(target=stop_listening, args=(listening.fileno(), 0.5))
        closing.start()
        server, _ = listening.accept()
        closing.join()
        assert server.recv(5) == b"asked"
        server.sendall(b"answered")
        assert came.recv(8) == b"answered"
        server.close()
