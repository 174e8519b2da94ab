"""The name of a peer in requests to it: Host header and certificate (replication/peer_client.py). Real HTTP."""

from __future__ import annotations

import logging
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from threading import Thread
from typing import Any

import msgspec
import pytest

from replication.discovery import Discovery
from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.replica import Replica
from replication.settings import ReplicationSettings
from store.address import host_of_header
from store.engine import Change, Engine, read_clocks
from tests.support.waiting import wait_until

LOOKUP = "peers.test:1"
QUICK = ReplicationSettings(sync_interval_s=0.1, down_after_s=1.0)


def make(
    address: str, *seeds: str, settings: PeerClientSettings | None = None, discovery: Discovery | None = None
) -> Node:
    """Return a node that has not been started."""
    replica = Replica(
        address, seeds, now=read_clocks(), rng=Random(address), settings=QUICK, discovers=discovery is not None
    )

    def failed(reason: str) -> None:
        raise AssertionError(reason)

    return Node(replica, Engine(replica.store), settings or PeerClientSettings(), on_fatal=failed, discovery=discovery)


@dataclass
class Site:
    """The node of one replica behind HTTP. Like kvsite/hosts.py, it answers 400 to a Host header that it does not know.

    ``own``: the host of its ``SOCKET_ADDRESS``; it always listens at 127.0.0.1. ``hosts``: received Host headers.
    """

    own: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    hosts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.respond(lambda _: msgspec.json.encode(site.node.inspector.status()))

            def do_POST(self) -> None:
                self.respond(site.node.snapshot if self.path.endswith("snapshot") else site.node.exchange)

            def respond(self, handle: Callable[[bytes], bytes]) -> None:
                body, host = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.headers["Host"]
                site.hosts.append(host)
                is_known = host_of_header(host) in {site.own, "localhost"}
                reply = handle(body) if is_known else b'{"error":"Host header names no member"}'
                self.send_response(200 if is_known else 400)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Log nothing: clients reject the certificate on purpose."""

        self.server = Server(("127.0.0.1", 0), Handler)
        if self.tls is not None:
            # The connection's thread does the handshake: a handshake that a client aborts must not stop the server.
            self.server.socket = self.tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.listens_at = f"127.0.0.1:{self.server.server_port}"
        self.node = make(f"{self.own}:{self.server.server_port}")
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        # Its log is trimmed, as after a long time: a joiner has to pull a snapshot.
        self.put("kept", b"1")
        self.node.check_replica_health()
        assert self.node.ready

    def put(self, key: str, value: bytes) -> None:
        self.node.engine.write(Change(key, value), {})

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


MakeSite = Callable[..., Site]
Start = Callable[..., Node]


@pytest.fixture
def site() -> Iterator[MakeSite]:
    made: list[Site] = []

    def start(**options: Any) -> Site:
        made.append(Site(**options))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.fixture
def start() -> Iterator[Start]:
    """Start nodes that nobody can connect to, with ``seeds`` as VIEW and a lookup that returns ``found``."""
    nodes: list[Node] = []

    def begin(*seeds: str, found: str, lookup: str = LOOKUP, settings: PeerClientSettings | None = None) -> Node:
        discovery = Discovery(lookup, 0.1, lookup=lambda *_: frozenset({found}))
        node = make("127.0.0.1:1", *seeds, settings=settings, discovery=discovery)
        nodes.append(node)
        discovery.look_up(node.discovered)  # Always before the first exchange.
        node.start()
        return node

    yield begin
    for node in nodes:
        node.stop(0.0)


def has(node: Node, key: str) -> bool:
    with node.engine.lock:
        return bool(node.replica.store.table.get(key))


# -- the Host header ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["127.0.0.1", "localhost"], ids=["address", "name"])
def test_a_peer_that_rejects_the_looked_up_name_is_sent_localhost(
    site: MakeSite, start: Start, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A rolling restart that introduces KV_VIEW_DNS: the first replica must not serve without data.

    It drained before, so it is no member, and the others do not connect to it.
    """
    old = site(own=own)
    with caplog.at_level(logging.INFO, "causeway.replication"):
        node = start(found=old.listens_at)
        wait_until(lambda: node.ready)
    assert has(node, "kept")
    assert old.hosts[:2] == [LOOKUP, "localhost:1"]
    assert "no exchange" not in caplog.text, "rejected by one name and accepted by the next"


@pytest.mark.parametrize("first", ["lookup", "membership table"])
def test_a_member_is_sent_its_own_address_once_the_membership_table_has_it(
    site: MakeSite, start: Start, first: str
) -> None:
    old = site()
    if first == "lookup":
        node = start(found=old.listens_at)
    else:
        node = start(old.listens_at, found="127.0.0.1:9")
        wait_until(lambda: node.members() == sorted(["127.0.0.1:1", old.listens_at]))
        assert node._discovery is not None
        node._discovery.addresses = frozenset({old.listens_at})
    wait_until(lambda: node.ready and old.hosts.count(old.listens_at) > 3)
    del old.hosts[:]
    wait_until(lambda: len(old.hosts) > 3)
    assert {*old.hosts} == {old.listens_at}


def test_status_requests_use_the_same_name_as_exchanges(site: MakeSite, start: Start) -> None:
    old = site()
    node = start(found=old.listens_at)
    wait_until(lambda: node.ready and old.listens_at in old.hosts)
    del old.hosts[:]
    status = node.inspector.status_of(old.listens_at)
    assert status is not None
    assert status["replica_id"] == old.node.id
    assert {*old.hosts} == {old.listens_at}


# -- certificates ------------------------------------------------------------------------------------------------------


@dataclass
class Certified:
    """A server's certificate, and settings of a client that trusts it."""

    server: ssl.SSLContext
    settings: PeerClientSettings


def certified(directory: Path, *names: str) -> Certified:
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=x -addext"
    cert, key = directory / "cert.pem", directory / "key.pem"
    command = [*make.split(), f"subjectAltName={','.join(names)}", "-out", str(cert), "-keyout", str(key)]
    subprocess.run(command, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return Certified(server, PeerClientSettings(scheme="https", verify=str(cert)))


def test_a_certificate_for_the_looked_up_name_is_enough_for_discovered_members(
    site: MakeSite, start: Start, tmp_path: Path
) -> None:
    """The addresses of pods are unknown when certificates are issued."""
    made = certified(tmp_path, "DNS:localhost")
    old = site(tls=made.server)
    node = start(found=old.listens_at, lookup="localhost:1", settings=made.settings)
    wait_until(lambda: node.ready)
    assert has(node, "kept")
    assert old.listens_at in node.members(), "its own address is a member"
    old.put("later", b"2")
    wait_until(lambda: has(node, "later"))
    assert node.inspector.status_of(old.listens_at) is not None


def test_a_member_whose_certificate_names_both_is_verified_by_its_address(
    site: MakeSite, start: Start, tmp_path: Path
) -> None:
    made = certified(tmp_path, "DNS:localhost", "IP:127.0.0.1")
    old = site(tls=made.server)
    node = start(found=old.listens_at, lookup="localhost:1", settings=made.settings)
    wait_until(lambda: node.ready and old.hosts.count(old.listens_at) > 3)
    assert old.hosts[0] == "localhost:1"


def test_a_replica_known_from_a_lookup_alone_is_verified_by_no_other_name(
    site: MakeSite, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate for the address proves nothing: an attacker who forges DNS answers can name his own address."""
    made = certified(tmp_path, "IP:127.0.0.1")
    stranger = site(tls=made.server)
    node = start(found=stranger.listens_at, lookup="localhost:1", settings=made.settings)
    wait_until(lambda: node.ready, what="as if nobody answered")
    wait_until(lambda: "TLS failed" in caplog.text)
    assert stranger.hosts == []
    assert not has(node, "kept")


def test_an_address_in_view_is_verified_by_itself_although_a_lookup_finds_it_too(
    site: MakeSite, start: Start, tmp_path: Path
) -> None:
    made = certified(tmp_path, "IP:127.0.0.1")
    old = site(tls=made.server)
    node = start(old.listens_at, found=old.listens_at, lookup="localhost:1", settings=made.settings)
    wait_until(lambda: node.ready)
    assert has(node, "kept")
