"""The name by which a replica is called (replication/peer_client.py): Host header and certificate, over real HTTP."""

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

from replication.address import host_of_header
from replication.discovery import Discovery
from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.replica import Replica
from replication.settings import ReplicationSettings
from store.engine import Change, Engine, read_clocks
from tests.support.waiting import wait_until

LOOKUP = "peers.test:1"
QUICK = ReplicationSettings(sync_interval_s=0.1, down_after_s=1.0)


def make(
    address: str, *seeds: str, settings: PeerClientSettings | None = None, discovery: Discovery | None = None
) -> Node:
    """Put a replica and its node together; no thread runs yet."""
    replica = Replica(
        address, seeds, now=read_clocks(), rng=Random(address), settings=QUICK, discovers=discovery is not None
    )

    def failed(reason: str) -> None:
        raise AssertionError(reason)

    return Node(replica, Engine(replica.store), settings or PeerClientSettings(), on_fatal=failed, discovery=discovery)


@dataclass
class Site:
    """The node of one replica behind HTTP, answering as kvsite/hosts.py lets it: 400 to hosts that it does not know.

    ``own``: the host in its ``SOCKET_ADDRESS``; it listens at 127.0.0.1 whatever that is.
    """

    own: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    hosts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self.answer(lambda _: msgspec.json.encode(site.node.status()))

            def do_POST(self) -> None:
                self.answer(site.node.snapshot if self.path.endswith("snapshot") else site.node.exchange)

            def answer(self, what: Callable[[bytes], bytes]) -> None:
                body, host = self.rfile.read(int(self.headers.get("Content-Length", 0))), self.headers["Host"]
                site.hosts.append(host)
                is_known = host_of_header(host) in {site.own, "localhost"}
                reply = what(body) if is_known else b'{"error":"Host header names no member"}'
                self.send_response(200 if is_known else 400)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: Any) -> None:
                """Say nothing of clients that do not like the certificate."""

        self.server = Server(("127.0.0.1", 0), Handler)
        if self.tls is not None:
            # The handshake is for the thread of the connection: one that a client breaks off must not stop the server.
            self.server.socket = self.tls.wrap_socket(
                self.server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.listens_at = f"127.0.0.1:{self.server.server_port}"
        self.node = make(f"{self.own}:{self.server.server_port}")
        Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        # It has served for long, so its log is trimmed: who lacks anything has to come and pull a snapshot.
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
    """Start replicas that nobody can call, told of others by ``seeds`` (VIEW) and of ``found`` by a lookup."""
    nodes: list[Node] = []

    def begin(*seeds: str, found: str, lookup: str = LOOKUP, settings: PeerClientSettings | None = None) -> Node:
        discovery = Discovery(lookup, 0.1, lookup=lambda *_: frozenset({found}))
        node = make("127.0.0.1:1", *seeds, settings=settings, discovery=discovery)
        nodes.append(node)
        discovery.look_up(node.discovered)  # Done before the first exchange, in every run.
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
def test_the_first_of_a_rolling_restart_to_lookups_reaches_those_that_do_not_know_the_name(
    site: MakeSite, start: Start, own: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It left in order, so the others do not call it. It must not serve empty: the operator would go on."""
    old = site(own=own)
    with caplog.at_level(logging.INFO, "causeway.replication"):
        node = start(found=old.listens_at)
        wait_until(lambda: node.ready)
    assert has(node, "kept")
    assert old.hosts[:2] == [LOOKUP, "localhost:1"]
    assert "no exchange" not in caplog.text, "it was refused under one name and taken in under the other"


@pytest.mark.parametrize("first", ["lookup", "register"])
def test_a_member_is_called_by_its_own_address_whether_lookup_or_register_told_it_first(
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


def test_pages_ask_for_a_status_by_the_same_name_as_exchanges_go(site: MakeSite, start: Start) -> None:
    old = site()
    node = start(found=old.listens_at)
    wait_until(lambda: node.ready and old.listens_at in old.hosts)
    del old.hosts[:]
    told = node.status_of(old.listens_at)
    assert told is not None
    assert told["replica_id"] == old.node.id
    assert {*old.hosts} == {old.listens_at}


# -- certificates ------------------------------------------------------------------------------------------------------


@dataclass
class Certified:
    """A certificate and who trusts it."""

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


def test_a_certificate_that_names_only_the_lookup_will_do_for_members_that_it_leads_to(
    site: MakeSite, start: Start, tmp_path: Path
) -> None:
    """Addresses of pods are known too late to be certified."""
    made = certified(tmp_path, "DNS:localhost")
    old = site(tls=made.server)
    node = start(found=old.listens_at, lookup="localhost:1", settings=made.settings)
    wait_until(lambda: node.ready)
    assert has(node, "kept")
    assert old.listens_at in node.members(), "from now on it is known by its own address"
    old.put("later", b"2")
    wait_until(lambda: has(node, "later"))
    assert node.status_of(old.listens_at) is not None


def test_a_member_whose_certificate_names_both_is_verified_and_called_by_its_address(
    site: MakeSite, start: Start, tmp_path: Path
) -> None:
    made = certified(tmp_path, "DNS:localhost", "IP:127.0.0.1")
    old = site(tls=made.server)
    node = start(found=old.listens_at, lookup="localhost:1", settings=made.settings)
    wait_until(lambda: node.ready and old.hosts.count(old.listens_at) > 3)
    assert old.hosts[0] == "localhost:1"


def test_who_is_known_from_a_lookup_alone_is_verified_by_no_other_name(
    site: MakeSite, start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A certificate for the address proves nothing: whoever answers lookups can name an address of his own."""
    made = certified(tmp_path, "IP:127.0.0.1")
    stranger = site(tls=made.server)
    node = start(found=stranger.listens_at, lookup="localhost:1", settings=made.settings)
    wait_until(lambda: node.ready, what="as where nobody answers")
    wait_until(lambda: "TLS failed" in caplog.text)
    assert stranger.hosts == []
    assert not has(node, "kept")


def test_an_address_in_view_is_known_by_itself_although_lookups_tell_it_too(
    site: MakeSite, start: Start, tmp_path: Path
) -> None:
    made = certified(tmp_path, "IP:127.0.0.1")
    old = site(tls=made.server)
    node = start(old.listens_at, found=old.listens_at, lookup="localhost:1", settings=made.settings)
    wait_until(lambda: node.ready)
    assert has(node, "kept")
