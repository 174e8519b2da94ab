"""docs/contract.md, section 2.1: reads and writes of one key."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from base64 import b64decode
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from store.address import split_address
from tests.contract.client import Client
from tests.support.http import Past, Response

pytestmark = pytest.mark.processes

KEYS = ["a/b", "/", "..", "%2E%2E%2Fx", "%00", "%0A", "%25FF", "%C3%A4", "a%20b", "x" * 512, "%C3%A4" * 256]


@pytest.mark.parametrize("path", KEYS, ids=lambda path: path[:12])
def test_2_1_key_is_any_path_text(api: Client, path: str) -> None:
    """A key is non-empty UTF-8 path text (percent-encoded; "/" is allowed), at most KV_MAX_KEY_BYTES (512)."""
    assert api.put(0, f"/kvs/{path}", path, w="all").status == 201
    assert api.get(1, f"/kvs/{path}").body["value"] == path
    assert api.delete(2, f"/kvs/{path}", w="all").status == 200


@pytest.mark.parametrize(
    ("path", "error"), [("", "Key is empty"), ("x" * 513, "Key is too long"), ("%FF", "Key is not valid UTF-8")]
)
def test_2_1_invalid_keys_get_400(api: Client, path: str, error: str) -> None:
    for response in (api.put(0, f"/kvs/{path}", 1), api.get(0, f"/kvs/{path}"), api.delete(0, f"/kvs/{path}")):
        assert (response.status, response.body["error"]) == (400, error)


def test_2_1_key_limit_is_a_setting(limited: Client) -> None:
    """A key has at most KV_MAX_KEY_BYTES (512)."""
    assert limited.put(0, "/kvs/12345678", 1).status == 201
    assert limited.put(0, "/kvs/123456789", 1).status == 400


VALUES: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    5e-324,
    2**63 - 1,
    -(2**63),
    2**64 - 1,
    1e300,
    "",
    "\0\u2028",
    [],
    {},
    {"a": [None]},
]


def test_2_1_value_comes_back_as_it_was_sent(api: Client, key: str) -> None:
    """A value is any JSON value including null. It comes back as it was sent."""
    past: Past = {}
    for n, value in enumerate(VALUES):
        past = api.put(n % 3, key, value, past).past
        read = api.get((n + 1) % 3, key, past).body["value"]
        assert (read, type(read)) == (value, type(value))


def test_2_1_value_has_at_most_max_value_bytes(api: Client, limited: Client, key: str) -> None:
    """A value has at most KV_MAX_VALUE_BYTES (1 MiB) encoded. A larger one gets 413."""
    assert api.put(0, key, "x" * (2**20 - 2)).status == 201
    assert api.put(0, key, "x" * (2**20 - 1)).status == 413
    assert limited.put(0, "/kvs/a", "x" * 998).status < 300
    assert limited.put(0, "/kvs/a", "x" * 999).status == 413


@pytest.mark.parametrize("number", [b"1e400", b"-1e309", b"1" + b"0" * 400, b"NaN", b"Infinity"])
def test_2_1_other_numbers_get_400(api: Client, key: str, number: bytes) -> None:
    """Numbers other than 64-bit integers and finite doubles get 400."""
    assert api.send(0, "PUT", key, b'{"value": ' + number + b"}").status == 400
    assert api.get(0, key).status == 404


@pytest.mark.parametrize("method", ["PUT", "POST"])
def test_2_1_put_and_post(api: Client, key: str, method: str) -> None:
    """PUT gets 201 created, 200 replaced, or 400 without a value. POST is the same."""
    created = api.send(0, method, key, {"value": 1, "causal-metadata": {}})
    assert (created.status, created.body) == (201, {"result": "created", "causal-metadata": created.past})
    replaced = api.send(0, method, key, {"value": 2, "causal-metadata": created.past})
    assert (replaced.status, replaced.body) == (200, {"result": "replaced", "causal-metadata": replaced.past})
    nothing = api.send(0, method, key, {"causal-metadata": replaced.past})
    assert (nothing.status, nothing.body["error"]) == (400, "PUT request does not specify a value")


def test_2_1_get_and_delete(api: Client, key: str) -> None:
    """GET gets 200 found and DELETE 200 deleted; for an absent key both get 404, with metadata."""
    past = api.put(0, key, [1]).past
    found = api.get(1, key, past)
    assert (found.status, found.body) == (200, {"result": "found", "value": [1], "causal-metadata": past})
    deleted = api.delete(2, key, found.past)
    assert (deleted.status, deleted.body) == (200, {"result": "deleted", "causal-metadata": deleted.past})
    for response in (api.get(0, key, deleted.past), api.delete(1, key, deleted.past)):
        assert (response.status, response.body["error"]) == (404, "Key does not exist")
        assert response.past.items() >= {api.id(2): deleted.past[api.id(2)]}.items()


def test_2_1_507_above_max_memory(limited: Client) -> None:
    """A write gets 507 above KV_MAX_MEMORY."""
    responses = [limited.put(0, f"/kvs/m{n}", "x" * 900) for n in range(8)]
    assert [response.status for response in responses][-1] == 507
    assert limited.get(0, "/kvs").status == 200
    for n in range(8):
        limited.delete(0, f"/kvs/m{n}")


OCTETS = "application/octet-stream"


@pytest.mark.parametrize("chunked", [False, True])
def test_2_1_raw_bytes(api: Client, key: str, chunked: bool) -> None:
    """PUT with application/octet-stream stores the body as bytes, and GET with Accept returns it, at any replica."""
    content = bytes(range(256)) * 1000
    path = f"{key}?ttl=1000&w=all&w-timeout=5"
    written = api.send(0, "PUT", path, content, headers={"Content-Type": OCTETS}, chunked=chunked)
    assert (written.status, written.body["acks"]) == (201, 3)
    past = {"X-Causal-Metadata": json.dumps(written.past)}
    for replica in range(3):
        read = api.send(replica, "GET", key, headers={"Accept": OCTETS, **past})
        assert (read.status, read.body, read.headers["content-type"]) == (200, content, OCTETS)
        assert (read.past, read.etag) == (written.past, written.etag)
        assert float(read.headers["x-expires"]) == pytest.approx(time.time() + 1000, abs=60)
        in_json = api.get(replica, key, written.past).body
        assert (b64decode(in_json["value"], validate=True), in_json["encoding"]) == (content, "base64")
        listed = api.get(replica, f"/kvs?prefix={key.removeprefix('/kvs/')}&values=true&meta=true", written.past).body
        (name,) = listed["keys"]
        assert (listed["items"][name], listed["encodings"]) == (in_json["value"], {name: "base64"})
        assert (listed["meta"][name]["type"], listed["meta"][name]["bytes"]) == ("bytes", len(content))


def test_2_1_a_raw_get_of_json_gets_406(api: Client, key: str) -> None:
    """A raw GET of a JSON value gets 406."""
    written = api.put(0, key, "text")
    rejected = api.send(0, "GET", key, headers={"Accept": OCTETS})
    assert (rejected.status, rejected.etag, rejected.past) == (406, written.etag, written.past)


@pytest.mark.parametrize(
    "body",
    [
        b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n0\r\n\r\n",
        b"Transfer-Encoding: chunked\r\n\r\n5\r\nabc",
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"Content-Length: 10\r\n\r\nabc",
        b"\r\n",
    ],
    ids=["malformed chunk", "ends early", "empty chunks", "short", "none"],
)
def test_2_1_broken_bytes_change_nothing(api: Client, key: str, body: bytes) -> None:
    """A body that ends early, or whose chunks are malformed, gets 400 or a closed connection and changes nothing."""
    address = api.cluster.addresses[0]
    head = f"PUT {key} HTTP/1.1\r\nHost: {address}\r\nContent-Type: {OCTETS}\r\n".encode()
    with socket.create_connection(split_address(address), timeout=10) as connection:
        connection.sendall(head + body)
        connection.shutdown(socket.SHUT_WR)
        answer = connection.recv(65536)
    assert answer[:12] in (b"", b"HTTP/1.1 400")
    assert api.get(0, key).status == 404


def test_2_1_503_if_the_causal_past_does_not_arrive(api: Client, key: str) -> None:
    """503 with "missing" and Retry-After, if the causal past does not arrive within KV_DEFER_TIMEOUT (1 s)."""
    past = {api.id(1): 10**9}
    has = api.status(0)["clock"].get(api.id(1), 0)
    calls: list[Callable[[], Response]] = [
        lambda: api.get(0, key, past),
        lambda: api.put(0, key, 1, past),
        lambda: api.delete(0, key, past),
    ]
    for call in calls:
        response = call()
        assert (response.status, response.body) == (
            503,
            {
                "error": "Causal dependencies not satisfied; try again later",
                "missing": {api.id(1): {"has": has, "needs": 10**9}},
                "causal-metadata": past,
            },
        )
        assert int(response.headers["retry-after"]) >= 1
        assert 0.9 < response.took_s < 5
    assert api.get(0, key).status == 404


def test_2_1_defer_timeout_0_answers_at_once(limited: Client) -> None:
    """0: answer at once. "missing" states for each replica id which counter is here and which one is needed."""
    response = limited.get(0, "/kvs/none", {"nobody@0000000000000001": 1})
    assert (response.status, response.body["missing"]) == (503, {"nobody@0000000000000001": {"has": 0, "needs": 1}})
    assert response.took_s < 0.9


def test_2_1_deferred_request_is_answered_when_its_past_arrives(api: Client, key: str) -> None:
    """A replica that lacks part of the causal past defers the request (P2)."""
    with api.cut_off(1), ThreadPoolExecutor(1) as pool:
        past = api.put(0, key, "new").past
        waiting = pool.submit(api.get, 1, key + "?wait=20", past)
        time.sleep(0.3)  # A stopped process cannot say that it has the request. It need not have it for the promise.
        assert not waiting.done()
        os.kill(api.cluster.pid(1), signal.SIGCONT)
        assert waiting.result().body["value"] == "new"


def test_2_1_405_and_415(api: Client, key: str) -> None:
    """405 and 415 as in HTTP."""
    rejected = api.send(0, "PURGE", key)
    assert rejected.status == 405
    assert set(rejected.headers["allow"].split(", ")) == {"GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"}
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert api.send(0, "PUT", key, b"value=1", headers=form).status == 415


def test_2_1_metadata_contains_nothing_else(api: Client, key: str) -> None:
    """Metadata is the client's past, joined with that of the version and with the applied deletes, nothing else."""
    old = api.put(0, key, "old")
    for n in range(20):
        api.put(0, f"{key}/{n}", n)
    read = api.get(0, key)
    assert read.past[api.id(0)] == old.past[api.id(0)]
    merged = api.get(0, key, {"nobody": 0, **old.past})
    assert merged.past == read.past
    deleted = api.delete(0, f"{key}/3")
    assert api.get(0, key).past.items() >= {api.id(0): deleted.past[api.id(0)]}.items()
