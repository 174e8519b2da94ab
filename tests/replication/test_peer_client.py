"""The asking side of the proof: who gets data, whose answers count, and what clocks and restarts do. Real HTTP."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest

from kvsite.config import Config
from kvsite.guard import Guard
from kvsite.wsgi import Edge
from replication.errors import NotTrusted, Unreachable
from replication.messages import SnapshotRequest
from replication.peer_client import PeerClient, PeerClientSettings
from replication.proof import HEADER, derive_key
from replication.transport import Transport, translate_errors
from store.api_tokens import ApiToken

SECRET, OTHER = "the secret of this cluster", "the secret of another cluster"
KEY = derive_key(SECRET)


class Quiet(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass


class Peer:
    """A replica's edge with an application that writes down what got through. ``skew_s``: of its clock."""

    def __init__(self, secret: str = SECRET, tokens: tuple[ApiToken, ...] = (), also: str = "") -> None:
        self.id = "a:1@0000000000000001"
        self.skew_s = 0.0
        self.bodies: list[bytes] = []
        self.asked: list[str] = []
        self.headers: list[dict[str, Any]] = []
        self.status = "200 OK"
        self.replay: Callable[[list[tuple[str, str]]], list[tuple[str, str]]] = lambda headers: headers
        self.swap: Callable[[bytes], bytes] = lambda body: body
        config = Config(cluster_secret=secret, api_tokens=tokens, cluster_secret_also=also)
        guard = Guard(config, lambda: self.id, lambda: time.time_ns() // 1000 + round(self.skew_s * 1e6))
        self._edge = Edge(self._serve, 1000, guard if secret or tokens else None)

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        self.bodies.append(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        start_response(self.status, [("Content-Type", "application/json")])
        return [b'{"told": "all"}']

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input_terminated"] = False
        self.asked.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        self.headers.append(environ)
        told: list[Any] = []
        body = self.swap(b"".join(self._edge(environ, lambda *args: told.extend(args))))
        start_response(told[0], self.replay(told[1]))
        return [body]


Serve = Callable[[Peer], str]


@pytest.fixture
def serve() -> Iterator[Serve]:
    servers = []

    def start(peer: Peer) -> str:
        server = make_server("127.0.0.1", 0, peer, handler_class=Quiet)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        servers.append((server, thread))
        return f"127.0.0.1:{server.server_port}"

    yield start
    for server, thread in servers:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def client() -> Iterator[PeerClient]:
    made = PeerClient(PeerClientSettings(key=KEY))
    yield made
    made.close()


def post(client: PeerClient, address: str) -> tuple[int, bytes]:
    answer = client.request("POST", address, "/replication/exchange", b"data", "application/msgpack")
    return answer.status, answer.body


def test_data_goes_to_who_has_proven_the_secret_and_a_greeting_is_enough(serve: Serve, client: PeerClient) -> None:
    peer = Peer()
    address = serve(peer)
    for _ in range(3):
        assert post(client, address) == (200, b'{"told": "all"}')
    assert peer.asked == ["GET /healthz", *["POST /replication/exchange"] * 3]
    assert peer.bodies == [b"", b"data", b"data", b"data"]


@pytest.mark.parametrize("secret", [OTHER, ""], ids=["another secret", "no secret"])
def test_another_cluster_gets_no_data_and_its_answers_do_not_count(
    serve: Serve, client: PeerClient, secret: str
) -> None:
    stranger = Peer(secret)
    address = serve(stranger)
    for _ in range(2):
        with pytest.raises(NotTrusted, match="does not prove that it has our KV_CLUSTER_SECRET"):
            post(client, address)
    assert b"data" not in stranger.bodies
    with pytest.raises(NotTrusted):
        client.request("GET", address, "/replication/status")


def test_who_has_no_secret_gets_nothing_from_who_has_one(serve: Serve) -> None:
    peer = Peer()
    transport = Transport(PeerClientSettings())
    with pytest.raises(NotTrusted, match="403"):
        transport.send(serve(peer), SnapshotRequest("b:1@0000000000000001"))
    transport.close()
    assert peer.bodies == []


@pytest.mark.parametrize("skew_s", [-100_000.0, -60.0, 60.0, 100_000.0])
def test_a_wrong_clock_cuts_nobody_off_and_the_greeting_tells_of_it(
    serve: Serve, client: PeerClient, skew_s: float
) -> None:
    peer = Peer()
    peer.skew_s = skew_s
    address = serve(peer)
    for _ in range(3):
        assert post(client, address)[0] == 200
    assert len(peer.asked) == 1 + 3
    peer.skew_s = 0  # Somebody has set it right: one request more.
    assert post(client, address)[0] == 200
    assert len(peer.asked) == 1 + 3 + 2


def test_a_restart_of_the_peer_costs_one_request(serve: Serve, client: PeerClient) -> None:
    peer = Peer()
    address = serve(peer)
    assert post(client, address)[0] == 200
    peer.id = "a:1@0000000000000002"
    assert post(client, address)[0] == 200
    assert peer.bodies == [b"", b"data", b"data"]


def test_a_reply_that_was_recorded_or_changed_does_not_count(serve: Serve, client: PeerClient) -> None:
    peer = Peer()
    address = serve(peer)
    post(client, address)
    recorded: list[tuple[str, str]] = []

    def record(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        recorded[:] = headers
        return headers

    peer.replay = record
    post(client, address)
    peer.replay = lambda _: recorded
    with pytest.raises(NotTrusted):
        post(client, address)
    peer.replay = lambda headers: headers
    peer.swap = lambda body: body.replace(b"all", b"lie")
    with pytest.raises(NotTrusted):
        post(client, address)
    peer.swap = lambda body: body
    assert post(client, address)[0] == 200


def test_after_any_failure_whoever_answers_is_greeted_first(serve: Serve, client: PeerClient) -> None:
    peer = Peer()
    address = serve(peer)
    post(client, address)
    peer.swap = lambda body: b"broken"
    with pytest.raises(NotTrusted):
        post(client, address)
    peer.swap = lambda body: body
    peer.asked.clear()
    post(client, address)
    assert peer.asked[0] == "GET /healthz"


def test_a_recorded_request_is_worth_nothing(serve: Serve, client: PeerClient) -> None:
    """Played again at once, at another replica of the cluster, after a restart, and later."""
    peer, other = Peer(), Peer()
    other.id = "b:1@0000000000000001"
    address, elsewhere = serve(peer), serve(other)
    post(client, address)
    header = peer.headers[-1]["HTTP_" + HEADER.upper().replace("-", "_")]
    thief = PeerClient(PeerClientSettings())
    thief._session.headers[HEADER] = header

    def play(address: str) -> bytes:
        answer = thief.request("POST", address, "/replication/exchange", b"data", "application/msgpack")
        assert answer.status == 403
        return answer.body

    assert b"received before" in play(address)
    assert b"meant for another" in play(elsewhere)
    peer.id = "a:1@0000000000000002"
    assert b"meant for another" in play(address)
    peer.skew_s = 31
    assert b"clock" in play(address)
    thief.close()
    assert peer.bodies.count(b"data") == 1
    assert other.bodies == []


def test_a_secret_changes_in_three_rolls_and_each_can_talk_to_the_one_before(serve: Serve) -> None:
    rolls = [(SECRET, ""), (SECRET, OTHER), (OTHER, SECRET), (OTHER, "")]
    for old, new in itertools.pairwise(rolls):
        for asking, asked in ((old, new), (new, old)):
            client = PeerClient(PeerClientSettings(key=derive_key(asking[0])))
            assert post(client, serve(Peer(asked[0], also=asked[1])))[0] == 200
            client.close()


def test_with_tokens_alone_replicas_present_theirs(serve: Serve) -> None:
    peer = Peer("", (ApiToken("app", "token-that-writes", "write"),))
    address = serve(peer)
    transport = Transport(PeerClientSettings(token="token-that-writes"))
    assert transport.status(address) == {"told": "all"}
    transport.close()
    wrong = Transport(PeerClientSettings(token="token-of-yesterday"))
    with pytest.raises(NotTrusted, match="401"):
        wrong.status(address)
    wrong.close()


def test_other_errors_are_those_of_any_peer_that_cannot_be_asked(serve: Serve) -> None:
    peer = Peer()
    peer.status = "500 Internal Server Error"
    transport = Transport(PeerClientSettings(key=KEY))
    for address in (serve(peer), "127.0.0.1:1"):
        with pytest.raises(Unreachable) as caught:
            transport.status(address)
        assert not isinstance(caught.value, NotTrusted)
    transport.close()


def test_a_message_that_could_not_be_sent_is_forgotten_at_once() -> None:
    """urllib3's errors make circles with their frames: without care each keeps the message until a full collection."""
    client = PeerClient(PeerClientSettings())
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            with pytest.raises(Unreachable), translate_errors("127.0.0.1:1"):
                client.request("POST", "127.0.0.1:1", "/replication/exchange", b"x" * 1000, "application/msgpack")
        assert gc.collect() == 0
    finally:
        gc.enable()
        client.close()


def test_settings_do_not_show_their_secrets() -> None:
    assert "hunter2" not in repr(PeerClientSettings(key=b"hunter2", token="hunter2"))
