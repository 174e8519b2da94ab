"""The peer client: which peers receive data, which responses count, wrong clocks and restarts. Real HTTP."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kvsite.config import Config
from kvsite.guard import Guard
from kvsite.wsgi import Edge
from replication.bounded_replies import ReplyLimit
from replication.errors import NotTrusted, Unreachable
from replication.messages import SnapshotRequest
from replication.peer_client import PeerClient, PeerClientSettings, Response
from replication.proof import HEADER, derive_key
from replication.transport import Transport, translate_errors
from store.api_tokens import ApiToken
from tests.support.api import make_context
from tests.support.http import Serve, serve

__all__ = ["serve"]  # a fixture

SECRET, OTHER = "the secret of this cluster", "the secret of another cluster"
KEY = derive_key(SECRET)


class Peer:
    """A replica's edge, with an application that records the requests that the guard allows.

    ``skew_s``: its clock minus ours. ``requests``: all requests as "METHOD path"; ``bodies``: those of allowed ones;
    ``headers``: the environ of all. ``change_headers`` and ``change_body`` act on every response.
    """

    def __init__(self, secret: str = SECRET, tokens: tuple[ApiToken, ...] = (), also: str = "") -> None:
        self.skew_s = 0.0
        self.bodies: list[bytes] = []
        self.requests: list[str] = []
        self.headers: list[dict[str, Any]] = []
        self.status = "200 OK"
        self.change_headers: Callable[[list[tuple[str, str]]], list[tuple[str, str]]] = lambda headers: headers
        self.change_body: Callable[[bytes], bytes] = lambda body: body
        self._config = Config(cluster_secret=secret, api_tokens=tokens, cluster_secret_also=also)
        self.restart("a:1@0000000000000001")

    def restart(self, replica_id: str) -> None:
        """Go on as a new process with ``replica_id``, which remembers no session."""
        self.id = replica_id
        config = self._config
        guard = Guard(config, replica_id, lambda: time.time_ns() // 1000 + round(self.skew_s * 1e6))
        is_guarded = config.cluster_secret or config.api_tokens
        self._edge = Edge(self._serve, make_context(config=config), guard if is_guarded else None)

    def _serve(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        self.bodies.append(environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0)))
        start_response(self.status, [("Content-Type", "application/json")])
        return [b'{"state": "serving"}']

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        environ["wsgi.input_terminated"] = False
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        self.headers.append(environ)
        started: list[Any] = []
        body = self.change_body(b"".join(self._edge(environ, lambda *args: started.extend(args))))
        start_response(started[0], self.change_headers(started[1]))
        return [body]


class ByChannel(PeerClient):
    """A client that sends every request with a body as messages are sent."""

    def request(
        self,
        method: str,
        address: str,
        path: str,
        body: bytes = b"",
        media_type: str = "",
        limit: ReplyLimit | None = None,
    ) -> Response:
        """See ``PeerClient``."""
        if not body:
            return super().request(method, address, path, body, media_type, limit)
        return self.post_message(address, path, body, media_type, limit or self._settings.exchange_limit)


@pytest.fixture(params=[PeerClient, ByChannel])
def client(request: pytest.FixtureRequest) -> Iterator[PeerClient]:
    peer_client: PeerClient = request.param(PeerClientSettings(key=KEY))
    yield peer_client
    peer_client.close()


def post(client: PeerClient, address: str) -> tuple[int, bytes]:
    response = client.request("POST", address, "/replication/exchange", b"data", "application/msgpack")
    return response.status, response.body


@pytest.mark.parametrize("key", [b"", KEY], ids=["open", "secret"])
def test_a_message_carries_the_traceparent_that_it_is_given(serve: Serve, key: bytes) -> None:
    peer = Peer(SECRET if key else "")
    address, limit = serve(peer), PeerClientSettings().exchange_limit
    client = PeerClient(PeerClientSettings(key=key))
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    for sent in (traceparent, ""):
        assert client.post_message(address, "/replication/exchange", b"x", "application/msgpack", limit, sent).status
    client.close()
    received = [each.get("HTTP_TRACEPARENT", "") for each in peer.headers if each["REQUEST_METHOD"] == "POST"]
    assert received == [traceparent, ""]


def test_one_greeting_precedes_data_to_a_peer_that_has_not_proven_the_secret(serve: Serve, client: PeerClient) -> None:
    peer = Peer()
    address = serve(peer)
    for _ in range(3):
        assert post(client, address) == (200, b'{"state": "serving"}')
    assert peer.requests == ["GET /healthz", *["POST /replication/exchange"] * 3]
    assert peer.bodies == [b"", b"data", b"data", b"data"]


@pytest.mark.parametrize("secret", [OTHER, ""], ids=["another secret", "no secret"])
def test_a_replica_of_another_cluster_gets_no_data_and_its_responses_are_rejected(
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


def test_a_client_without_the_secret_is_rejected(serve: Serve) -> None:
    peer = Peer()
    transport = Transport(PeerClientSettings())
    with pytest.raises(NotTrusted, match="403"):
        transport.send(serve(peer), SnapshotRequest("b:1@0000000000000001"))
    transport.close()
    assert peer.bodies == []


@pytest.mark.parametrize("skew_s", [-100_000.0, -60.0, 60.0, 100_000.0])
def test_a_wrong_clock_does_not_stop_exchanges(serve: Serve, client: PeerClient, skew_s: float) -> None:
    peer = Peer()
    peer.skew_s = skew_s
    address = serve(peer)
    for _ in range(3):
        assert post(client, address)[0] == 200
    assert len(peer.requests) == 1 + 3
    peer.skew_s = 0  # The clock is corrected: this costs one more request.
    assert post(client, address)[0] == 200
    assert len(peer.requests) == 1 + 3 + 2


def test_a_restart_of_the_peer_costs_one_more_request(serve: Serve, client: PeerClient) -> None:
    peer = Peer()
    address = serve(peer)
    assert post(client, address)[0] == 200
    peer.restart("a:1@0000000000000002")
    assert post(client, address)[0] == 200
    assert peer.bodies == [b"", b"data", b"data"]


def test_a_replayed_or_changed_response_is_rejected(serve: Serve, client: PeerClient) -> None:
    peer = Peer()
    address = serve(peer)
    post(client, address)
    recorded: list[tuple[str, str]] = []

    def record(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        recorded[:] = headers
        return headers

    peer.change_headers = record
    post(client, address)
    peer.change_headers = lambda _: recorded
    with pytest.raises(NotTrusted):
        post(client, address)
    peer.change_headers = lambda headers: headers
    peer.change_body = lambda body: body.replace(b"serving", b"joining")
    with pytest.raises(NotTrusted):
        post(client, address)
    peer.change_body = lambda body: body
    assert post(client, address)[0] == 200


def test_a_greeting_follows_any_failure(serve: Serve, client: PeerClient) -> None:
    peer = Peer()
    address = serve(peer)
    post(client, address)
    peer.change_body = lambda body: b"broken"
    with pytest.raises(NotTrusted):
        post(client, address)
    peer.change_body = lambda body: body
    peer.requests.clear()
    post(client, address)
    assert peer.requests[0] == "GET /healthz"


def test_a_replayed_request_is_rejected(serve: Serve, client: PeerClient) -> None:
    """Replayed at once, at another replica of the cluster, after a restart, and later."""
    peer, other = Peer(), Peer()
    other.restart("b:1@0000000000000001")
    address, elsewhere = serve(peer), serve(other)
    post(client, address)
    header = peer.headers[-1]["HTTP_" + HEADER.upper().replace("-", "_")]
    thief = PeerClient(PeerClientSettings())
    thief._session.headers[HEADER] = header

    def replay(address: str) -> bytes:
        response = thief.request("POST", address, "/replication/exchange", b"data", "application/msgpack")
        assert response.status == 403
        return response.body

    assert b"received before" in replay(address)
    assert b"meant for another" in replay(elsewhere)
    peer.restart("a:1@0000000000000002")
    assert b"meant for another" in replay(address)
    peer.skew_s = 31
    assert b"clock" in replay(address)
    thief.close()
    assert peer.bodies.count(b"data") == 1
    assert other.bodies == []


def test_a_secret_changes_in_three_steps_and_neighbouring_steps_can_communicate(serve: Serve) -> None:
    steps = [(SECRET, ""), (SECRET, OTHER), (OTHER, SECRET), (OTHER, "")]
    for old, new in itertools.pairwise(steps):
        for own, peers in ((old, new), (new, old)):
            client = PeerClient(PeerClientSettings(key=derive_key(own[0])))
            assert post(client, serve(Peer(peers[0], also=peers[1])))[0] == 200
            client.close()


def test_replicas_send_a_token_if_there_is_no_secret(serve: Serve) -> None:
    peer = Peer("", (ApiToken("app", "token-that-writes", "write"),))
    address = serve(peer)
    transport = Transport(PeerClientSettings(token="token-that-writes"))
    assert transport.status(address) == {"state": "serving"}
    transport.close()
    wrong = Transport(PeerClientSettings(token="token-of-yesterday"))
    with pytest.raises(NotTrusted, match="401"):
        wrong.status(address)
    wrong.close()


def test_other_errors_are_unreachable_and_not_trust_errors(serve: Serve) -> None:
    peer = Peer()
    peer.status = "500 Internal Server Error"
    transport = Transport(PeerClientSettings(key=KEY))
    for address in (serve(peer), "127.0.0.1:1"):
        with pytest.raises(Unreachable) as caught:
            transport.status(address)
        assert not isinstance(caught.value, NotTrusted)
    transport.close()


@pytest.mark.parametrize("kind", [PeerClient, ByChannel])
def test_a_message_that_could_not_be_sent_leaves_no_garbage(kind: type[PeerClient]) -> None:
    """Errors of urllib3 and their frames form reference cycles, which would keep each message in memory."""
    client = kind(PeerClientSettings())
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


@pytest.mark.parametrize(
    ("body", "summary"),
    [
        (b'{"error": "Rejected: no", "hint": "x"}', "403: Rejected: no"),
        (b'{"error": "a\\nb\\u001b[2J"}', r"403: 'a\nb\x1b[2J'"),
        (b'{"error": "' + b"x" * 9000 + b'"}', f"403: {'x' * 300}"),
        (b'{"error": 1}', """403 '{"error": 1}'"""),
        (b"<html>", "403 '<html>'"),
        (b'{"error": "' + b"x" * 70_000 + b'"}', '403 \'{"error": "' + "x" * 289 + "'"),
        (b"[" * 50_000, f"403 '{'[' * 300}'"),
    ],
)
def test_an_error_quotes_what_a_response_says_on_one_line(body: bytes, summary: str) -> None:
    assert Response(403, body).summary() == summary


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        ("403 Forbidden", b'{"error": "Rejected: no", "hint": "x"}', "; it answers 403: Rejected: no"),
        ("200 OK", b'{"healthy": true}', ""),
    ],
)
def test_another_secret_is_said_without_json_and_with_what_to_do(
    serve: Serve, client: PeerClient, status: str, body: bytes, reason: str
) -> None:
    def stranger(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "application/json")])
        return [body]

    address = serve(stranger)
    with pytest.raises(NotTrusted) as raised:
        client.request("GET", address, "/view")
    assert str(raised.value) == (
        f"{address} does not prove that it has our KV_CLUSTER_SECRET{reason}; set the same KV_CLUSTER_SECRET on every "
        "replica"
    )
