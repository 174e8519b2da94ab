"""One side uses TLS and the other does not: replicas and commands say so."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from django.core.management.base import CommandError

from replication.errors import NotTrusted, Unreachable
from replication.management.remote import Remote
from replication.messages import Exchange
from replication.peer_client import PeerClientSettings
from replication.transport import Transport
from store.client import Unavailable, Uncertain
from store.management.commands.kvs import tls_advice
from store.management.tls_check import SET_CA, UNSET_CA, WRONG_CA, mismatch, speaks_tls

ALERT = b"\x15\x03\x03\x00\x02\x02\x16"
"""What a server that speaks TLS answers to plain HTTP, and to a handshake that it does not accept."""

PLAIN = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
MESSAGE = Exchange("127.0.0.1:1@0000000000000001", 1, 1, 1, {}, 0, "serving")


class Server:
    """Answers each connection with ``reply``, whatever it sends, and closes it."""

    def __init__(self, reply: bytes) -> None:
        self._reply = reply
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection = self.listener.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(self._reply)


@pytest.fixture
def server() -> Iterator[type[Server]]:
    with ExitStack() as stack:

        class Closed(Server):
            def __init__(self, reply: bytes) -> None:
                super().__init__(reply)
                stack.callback(self.listener.close)

        yield Closed


@pytest.mark.parametrize("is_message", [True, False])
def test_a_replica_without_tls_says_that_its_peer_serves_it(server: type[Server], is_message: bool) -> None:
    peer = server(ALERT)
    transport = Transport(PeerClientSettings())
    with pytest.raises(NotTrusted, match="serves TLS, and this replica does not: set KV_TLS_CERT"):
        transport.send(peer.address, MESSAGE) if is_message else transport.status(peer.address)


@pytest.mark.parametrize("is_message", [True, False])
def test_a_replica_with_tls_says_that_its_peer_serves_none(server: type[Server], is_message: bool) -> None:
    peer = server(PLAIN)
    transport = Transport(PeerClientSettings(scheme="https"))
    with pytest.raises(NotTrusted, match="serves no TLS, and this replica does: set KV_TLS_CERT"):
        transport.send(peer.address, MESSAGE) if is_message else transport.status(peer.address)


def test_another_broken_reply_is_not_taken_for_tls(server: type[Server]) -> None:
    for reply in (b"", b"no HTTP"):
        with pytest.raises(Unreachable) as raised:
            Transport(PeerClientSettings()).send(server(reply).address, MESSAGE)
        assert not isinstance(raised.value, NotTrusted)


def test_a_command_says_what_to_change(server: type[Server]) -> None:
    tls, plain, silent = server(ALERT), server(PLAIN), server(b"")
    assert [speaks_tls("127.0.0.1", each.port) for each in (tls, plain, silent)] == [True, False, None]
    assert mismatch("127.0.0.1", tls.port, is_tls=False) == SET_CA
    assert mismatch("127.0.0.1", plain.port, is_tls=True) == UNSET_CA
    for agreeing in (mismatch("127.0.0.1", tls.port, is_tls=True), mismatch("127.0.0.1", silent.port, is_tls=True)):
        assert agreeing == ""
    with pytest.raises(CommandError, match=SET_CA):
        Remote(tls.address, {}).status()
    with pytest.raises(CommandError, match=UNSET_CA):
        Remote(plain.address, {"KV_TLS_CERT": __file__}).status()


def test_kvs_adds_the_advice_to_its_error(server: type[Server]) -> None:
    tls, plain = server(ALERT), server(PLAIN)
    assert tls_advice(Uncertain(f"http://{tls.address}", "the connection broke")) == f"; {SET_CA}"
    assert tls_advice(Unavailable([(f"https://{plain.address}", "no connection (SSLError)")])) == f"; {UNSET_CA}"
    assert tls_advice(Unavailable([(f"https://{tls.address}", "no connection (SSLError)")])) == f"; {WRONG_CA}"
    assert tls_advice(Unavailable([(f"http://{plain.address}", "no response in time")])) == ""
    assert tls_advice(Unavailable([])) == ""
