"""docs/contract.md, section 2: bodies and causal metadata."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.contract.client import Client

pytestmark = pytest.mark.processes


def test_2_bodies_are_json_with_a_length_or_chunked(api: Client, key: str) -> None:
    """Bodies are JSON (UTF-8), sent with a Content-Length or chunked."""
    body = {"value": "äöü \U0001f600"}
    assert api.send(0, "PUT", key, json.dumps(body, ensure_ascii=False).encode()).status == 201
    assert api.send(0, "PUT", key, body, chunked=True).status == 200
    assert api.get(0, key).body["value"] == body["value"]
    for response in (api.get(0, key), api.get(0, key + "none"), api.get(0, "/kvs?limit=0")):
        assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("chunked", [False, True])
def test_2_bodies_have_at_most_max_body_bytes(limited: Client, chunked: bool) -> None:
    """Bodies have at most KV_MAX_BODY_BYTES (8 MiB)."""
    fits = json.dumps({"value": "x" * 900}).encode()
    assert limited.send(0, "PUT", "/kvs/a", fits + b" " * (4096 - len(fits)), chunked=chunked).status < 300
    assert limited.send(0, "PUT", "/kvs/a", fits + b" " * (4097 - len(fits)), chunked=chunked).status == 413


def test_2_default_body_limit_is_8_mib(api: Client, key: str) -> None:
    body = b'{"value": 1}'
    assert api.send(0, "PUT", key, body + b" " * (8 * 2**20 - len(body))).status == 201
    assert api.send(0, "PUT", key, body + b" " * (8 * 2**20 - len(body) + 1)).status == 413


def test_2_every_response_carries_metadata_in_body_and_header(api: Client, key: str) -> None:
    """Every /kvs response carries causal-metadata. Responses repeat it in the header."""
    for response in (
        api.put(0, key, 1),
        api.get(0, key),
        api.get(0, key + "none"),
        api.delete(0, key),
        api.get(0, "/kvs"),
        api.transact(0, reads=["a"]),
        api.get(0, key, {"nobody": 1}, headers={"If-Match": "x"}),
    ):
        assert json.loads(response.headers["x-causal-metadata"]) == response.body["causal-metadata"]
        assert " " not in response.headers["x-causal-metadata"]


def test_2_an_error_repeats_the_requests_metadata(api: Client, key: str) -> None:
    """An error repeats the request's metadata if it was readable."""
    past = {"somebody": 7}
    for response, status in (
        (api.send(0, "PUT", key, {"causal-metadata": past}), 400),
        (api.send(0, "PURGE", key, {"causal-metadata": past}), 405),
        (api.get(0, key + "?wait=0", past), 503),
        (api.send(0, "PUT", key, b"{", headers={"X-Causal-Metadata": json.dumps(past)}), 400),
    ):
        assert (response.status, response.past) == (status, past)
    assert "causal-metadata" not in api.send(0, "PUT", key, b"{").body


def test_2_null_empty_or_absent_metadata_mean_no_history(api: Client, key: str) -> None:
    """In requests, null, {} or no causal-metadata mean "no history"."""
    bodies: list[Any] = [{"causal-metadata": None}, {}, {"causal-metadata": {}}, None]
    for body in bodies:
        assert api.send(0, "GET", key, body).status == 404


@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_2_metadata_is_read_from_body_else_header_else_query(api: Client, key: str, method: str) -> None:
    """The server reads it from the JSON body; otherwise from X-Causal-Metadata; otherwise from the query parameter."""
    text = '{"nobody":1}'
    assert api.send(0, method, f"{key}?wait=0", {"causal-metadata": {"nobody": 1}}).status == 503
    assert api.send(0, method, f"{key}?wait=0", headers={"X-Causal-Metadata": text}).status == 503
    assert api.send(0, method, f"{key}?wait=0&causal-metadata=%7B%22nobody%22:1%7D").status == 503
    assert api.send(0, method, key, {"causal-metadata": {}}, headers={"X-Causal-Metadata": text}).status == 404
    assert (
        api.send(0, method, f"{key}?causal-metadata=%7B%22nobody%22:1%7D", headers={"X-Causal-Metadata": "{}"}).status
        == 404
    )


def test_2_no_metadata_header_above_4_kib(api: Client, key: str) -> None:
    """Responses repeat it in the header, unless it is longer than 4 KiB."""
    long = {"x" * 300 + str(n): 1 for n in range(14)}
    response = api.get(0, key + "?wait=0", long)
    assert (response.status, response.past) == (503, long)
    assert "x-causal-metadata" not in response.headers


@pytest.mark.parametrize("past", [[], "x", 1, {"a": -1}, {"a": 1.5}, {"a": 2**53}, {"a": "1"}, {"a": None}])
def test_2_invalid_metadata_gets_400(api: Client, key: str, past: Any) -> None:
    """Invalid metadata gets 400: anything but an object of non-negative whole numbers below 2^53."""
    assert api.send(0, "PUT", key, {"value": 1, "causal-metadata": past}).status == 400
    assert api.send(0, "GET", key, headers={"X-Causal-Metadata": json.dumps(past)}).status == 400
    assert api.get(0, key).status == 404


def test_2_metadata_has_at_most_max_clock_entries(api: Client, limited: Client, key: str) -> None:
    """More than KV_MAX_CLOCK_ENTRIES (1024) entries get 400."""
    assert limited.get(0, "/kvs/none", {"a": 0, "b": 0}).status == 404
    assert limited.get(0, "/kvs/none", {"a": 0, "b": 0, "c": 0}).status == 400
    assert api.get(0, key, {str(n): 0 for n in range(1024)}).status == 404
    assert api.get(0, key, {str(n): 0 for n in range(1025)}).status == 400
