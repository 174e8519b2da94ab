"""Random bytes and JSON in requests (contract P7): a JSON response, never a 500, and no change after a 4xx."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.replica import Replica
from store.engine import Engine, read_clocks
from store.settings import StoreSettings
from tests.support.api import Api, Response, fresh_api

MSGPACK = "application/msgpack"
OCTETS = "application/octet-stream"
SENDER = "127.0.0.1:21505@0000000000abcdef"

many = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

texts = st.one_of(st.text(max_size=20), st.sampled_from(["k", "here", "all", "majority", "*", '"a"', "", "\ud800"]))
numbers = st.one_of(
    st.integers(), st.floats(), st.sampled_from([0, -1, 1, 2**53, 2**63, 2**64, 10**400, 1e308, 0.5, 1.0])
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4))


json_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts), nested, max_leaves=12
)
FIELDS = ["value", "causal-metadata", "ttl", "w", "w-timeout", "reads", "writes", "key", "delete", "if-match", "x"]
pasts: st.SearchStrategy[Any] = st.one_of(
    json_values, st.dictionaries(texts, st.integers(0, 2), max_size=3), st.just({}), st.none()
)
likely = {
    "causal-metadata": pasts,
    "ttl": st.one_of(json_values, st.floats(0.1, 100)),
    "w": st.one_of(json_values, st.sampled_from([1, 2, "all"])),
    "w-timeout": st.one_of(json_values, st.just(0)),
    "reads": st.one_of(json_values, st.lists(texts, max_size=3)),
}
one_write = st.fixed_dictionaries({}, optional={name: likely.get(name, json_values) for name in FIELDS})
bodies = st.fixed_dictionaries(
    {}, optional={name: likely.get(name, json_values) for name in FIELDS} | {"writes": st.lists(one_write, max_size=3)}
)
broken_json = st.one_of(
    st.binary(max_size=60),
    st.tuples(bodies, st.integers(0, 60), st.binary(max_size=3)).map(
        lambda parts: as_json(parts[0])[: parts[1]] + parts[2] + as_json(parts[0])[parts[1] :]
    ),
)
endpoints = st.sampled_from(
    [
        ("PUT", "/kvs/k"),
        ("POST", "/kvs/here"),
        ("GET", "/kvs/here"),
        ("DELETE", "/kvs/k"),
        ("DELETE", "/kvs/here"),
        ("GET", "/kvs"),
        ("POST", "/kvs"),
    ]
)


def as_json(body: Any) -> bytes:
    """Encode as Python does, NaN, Infinity and lone surrogates included."""
    return json.dumps(body).encode()


@pytest.fixture
def api() -> Api:
    """A client of a fresh replica whose clock does not move.

    A value with a short ttl must not expire during another request, which would then seem to change something.
    """
    moment = read_clocks()
    return fresh_api(lambda: moment)


def judge(api: Api, before: tuple[Any, ...], response: Response) -> None:
    assert response.status != 500
    assert response.status < 500 or response.status in (503, 507)
    if response.status >= 400:
        assert isinstance(response.body["error"], str)
        assert response.body["error"]
        assert api.state() == before
    if response.status < 300 and response.headers.get("Content-Type") == OCTETS:
        assert isinstance(json.loads(response.headers["X-Causal-Metadata"]), dict)
    elif response.status < 300:
        assert isinstance(response.body["causal-metadata"], dict)


@many
@given(endpoint=endpoints, body=st.one_of(bodies, json_values))
@example(endpoint=("PUT", "/kvs/k"), body={"value": "\ud800"})
@example(endpoint=("POST", "/kvs"), body={"reads": ["k"], "w": "all", "w-timeout": 0})
def test_any_json(api: Api, endpoint: tuple[str, str], body: Any) -> None:
    if api.get("/kvs/here").status == 404:
        api.put("/kvs/here", "before")
    before = api.state()
    judge(api, before, api.ask(*endpoint, raw=as_json(body)))


@many
@given(endpoint=endpoints, raw=broken_json)
def test_any_bytes(api: Api, endpoint: tuple[str, str], raw: bytes) -> None:
    before = api.state()
    judge(api, before, api.ask(*endpoint, raw=raw))


@many
@given(value=json_values)
def test_an_accepted_value_is_returned_unchanged(api: Api, value: Any) -> None:
    raw = b'{"value": ' + as_json(value) + b"}"
    response = api.ask("PUT", "/kvs/k", raw=raw)
    if response.status < 300:
        assert json.dumps(api.get("/kvs/k").body["value"]) == json.dumps(value)
    else:
        assert response.status in (400, 413)


headers = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
    st.text("application/octet-streamjson*,;q=01. ", max_size=60),
    st.sampled_from(
        ["application/octet-stream", "application/octet-stream;q=", "application/json, application/octet-stream"]
    ),
)


@many
@given(
    endpoint=endpoints,
    named=st.dictionaries(
        st.sampled_from(["If-Match", "If-None-Match", "X-Causal-Metadata", "Content-Type", "Accept"]), headers
    ),
    query=st.dictionaries(
        st.sampled_from(
            ["wait", "limit", "prefix", "after", "values", "siblings", "causal-metadata", "ttl", "w", "w-timeout"]
        ),
        st.text('0123456789-.eE+%Fftruealse&={}"[]:', max_size=12),
    ),
)
def test_any_headers_and_parameters(
    api: Api, endpoint: tuple[str, str], named: dict[str, str], query: dict[str, str]
) -> None:
    method, path = endpoint
    for name in ("wait", "w-timeout"):
        query[name] = "0" if query.get(name, "").strip("0123456789.eE+-") == "" else query[name]
    if api.get("/kvs/here").status == 404:
        api.ask("PUT", "/kvs/here", raw=b"\xff", content_type=OCTETS)
    before = api.state()
    target = path + "?" + "&".join(f"{name}={value}" for name, value in query.items())
    judge(api, before, api.ask(method, target, raw=b'{"value": 1}', headers=named))


@many
@given(
    endpoint=endpoints,
    raw=st.one_of(st.binary(max_size=60), bodies.map(as_json)),
    accept=headers,
    query=st.dictionaries(
        st.sampled_from(["ttl", "w", "causal-metadata", "siblings", "values"]),
        st.text("0123456789.e{}truefalsmjoiy", max_size=9),
    ),
)
def test_any_body_of_bytes(api: Api, endpoint: tuple[str, str], raw: bytes, accept: str, query: dict[str, str]) -> None:
    method, path = endpoint
    before = api.state()
    target = f"{path}?w-timeout=0&" + "&".join(f"{name}={value}" for name, value in query.items())
    response = api.ask(method, target, raw=raw, content_type=OCTETS, headers={"Accept": accept})
    judge(api, before, response)
    if method in ("PUT", "POST") and path != "/kvs" and response.status < 300:
        assert (api.ask("GET", path, headers={"Accept": OCTETS}).body or b"") == raw
    else:
        assert response.status >= 400 or not raw, "other requests take no such body"


# --- messages between replicas ---------------------------------------------------------------------------------------


@pytest.fixture
def peer() -> Iterator[Node]:
    """A complete node that is not started, with one other member."""
    fatal: list[str] = []
    replica = Replica(
        "127.0.0.1:21504",
        [],
        now=read_clocks(),
        rng=random.Random(1),
        store_settings=StoreSettings(max_pending=50),
    )
    node = Node(replica, Engine(replica.store), PeerClientSettings(), on_fatal=fatal.append)
    yield node
    assert not fatal


def nested_plain(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.text(max_size=8), inner, max_size=4))


plain: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(),
        st.text(max_size=8),
        st.binary(max_size=8),
        st.sampled_from([SENDER, "127.0.0.1:21504@0000000000000001", "a:1", 1, 2]),
    ),
    nested_plain,
    max_leaves=20,
)
ids = st.sampled_from([SENDER, "127.0.0.1:21506@0000000000000002", "a:1@0000000000000003", "x"])
clocks = st.dictionaries(ids, st.integers(1, 4), max_size=3)
writes = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([b"1", None]), st.lists(st.tuples(ids, st.integers(1, 4)))),
    max_size=3,
)
updates = st.tuples(ids, st.integers(1, 5), st.integers(0, 2**61), clocks, writes)
messages = st.fixed_dictionaries(
    {
        "sender": st.just(SENDER),
        "heartbeat": st.integers(0, 9),
        "time": st.integers(0, 2**61),
        "membership_digest": st.integers(0, 9),
        "clock": clocks,
        "retired_digest": st.integers(0, 9),
        "state": st.sampled_from(["joining", "serving", "removed", "leaving"]),
    },
    optional={
        "retired": clocks,
        "orphaned_pending": clocks,
        "updates": st.lists(updates, max_size=4),
        "membership": st.dictionaries(
            st.sampled_from(["127.0.0.1:21505", "127.0.0.1:21506", "b:2"]),
            st.tuples(st.integers(0, 9), st.integers(0, 2**61), st.booleans()),
        ),
        "want_all": st.booleans(),
        "truncated": st.booleans(),
        "more": st.booleans(),
        "accepted": st.booleans(),
    },
)
torn = st.tuples(messages, st.integers(0, 200), st.binary(min_size=1, max_size=3)).map(
    lambda parts: (raw := msgspec.msgpack.encode(parts[0]))[: parts[1]] + parts[2] + raw[parts[1] + len(parts[2]) :]
)


@many
@given(
    path=st.sampled_from(["exchange", "snapshot"]),
    raw=st.one_of(
        st.binary(max_size=80), plain.map(msgspec.msgpack.encode), messages.map(msgspec.msgpack.encode), torn
    ),
)
def test_any_message_of_a_peer(peer: Node, path: str, raw: bytes) -> None:
    client = Api(peer.replica.store, engine=peer.engine, node=peer)._client
    response = client.generic("POST", f"/replication/{path}", raw, MSGPACK)
    if response.status_code == 200:
        msgspec.msgpack.decode(response.content, type=Exchange if path == "exchange" else SnapshotPiece)
    else:
        assert response.status_code == 400
        assert json.loads(response.content)["error"]
    # The replica continues: its status is complete, and it replies to the next message.
    assert peer.inspector.status()["address"] == "127.0.0.1:21504"
    assert peer.inspector.exchange_metrics().jumped_s >= 0
    good = msgspec.msgpack.encode(SnapshotRequest("127.0.0.1:21599@0000000000000001"))
    assert client.generic("POST", "/replication/snapshot", good, MSGPACK).status_code == 200


@many
@given(body=st.one_of(json_values, st.fixed_dictionaries({"socket-address": st.one_of(json_values, texts)})))
def test_any_change_of_the_view(peer: Node, body: Any) -> None:
    api = Api(peer.replica.store, engine=peer.engine, node=peer)
    response = api.ask("DELETE", "/view", raw=as_json(body))
    assert response.status in (400, 404)
    assert response.body["error"]
