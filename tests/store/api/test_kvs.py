"""Contract 2.1 to 2.7 as far as one replica can show it, through the edge and a real engine."""

from __future__ import annotations

import gc
import json
import logging
import sys
import threading
import tracemalloc
from typing import Any

import pytest

from store.api.parsing import encode_value
from store.api.views import WRITE_KEY
from store.engine import Engine
from tests.support.api import LIMITS, OWN_ID, PEER_ID, Api, Response, api, make_store
from tests.support.waiting import wait_until

__all__ = ["api"]

OWN_ETAG = f'"{OWN_ID}:1"'


# --- one key ---------------------------------------------------------------------------------------------------------


def test_put_creates_then_replaces(api: Api) -> None:
    created = api.put("/kvs/a", 1)
    assert (created.status, created.body) == (201, {"result": "created", "causal-metadata": {OWN_ID: 1}})
    replaced = api.put("/kvs/a", 2, created.metadata)
    assert (replaced.status, replaced.body) == (200, {"result": "replaced", "causal-metadata": {OWN_ID: 2}})


def test_post_is_put(api: Api) -> None:
    assert api.ask("POST", "/kvs/a", {"value": 1}).status == 201
    assert api.ask("POST", "/kvs/a", {"value": 2}).body["result"] == "replaced"
    assert api.ask("POST", "/kvs/a", {}).body["error"] == "PUT request does not specify a value"


def test_get_returns_the_value_with_its_past(api: Api) -> None:
    api.put("/kvs/a", {"n": [1, None]})
    found = api.get("/kvs/a")
    assert found.status == 200
    assert list(found.body.items()) == [
        ("result", "found"),
        ("value", {"n": [1, None]}),
        ("causal-metadata", {OWN_ID: 1}),
    ]


def test_an_absent_key_is_a_404_with_metadata(api: Api) -> None:
    past = api.put("/kvs/b", 1).metadata
    for method in ("GET", "DELETE"):
        absent = api.ask(method, "/kvs/a", {"causal-metadata": past})
        assert (absent.status, absent.body) == (404, {"error": "Key does not exist", "causal-metadata": past})


def test_the_404_after_a_delete_depends_on_the_delete(api: Api) -> None:
    api.put("/kvs/a", 1)
    deleted = api.delete("/kvs/a")
    assert (deleted.status, deleted.body) == (200, {"result": "deleted", "causal-metadata": {OWN_ID: 2}})
    assert deleted.headers["ETag"] == '"absent"'
    assert api.get("/kvs/a").metadata == {OWN_ID: 2}


def test_reading_an_old_key_does_not_depend_on_newer_ones(api: Api) -> None:
    api.put("/kvs/old", 1)
    for number in range(5):
        api.put(f"/kvs/new{number}", number)
    assert api.get("/kvs/old").metadata == {OWN_ID: 1}


VALUES = [
    "null", "true", "0", "-1", "1.5", "-0.0", "5e-324", "0.1", "1e22", "123456789.123456789", "1.7976931348623157e308",
    "9223372036854775807", "18446744073709551615", "-9223372036854775808",
    '""', '"\\u0000"', '"\\ud83d\\ude00"', '"ÄÖ\\u007f\\""', '"' + "7" * 5000 + '"',
    "[]", "{}", '{"":{"a":[1,2,{"b":null}]}}', "[" * 100 + "]" * 100, '{"causal-metadata":{"x":1}}',
]  # fmt: skip


@pytest.mark.parametrize("text", VALUES, ids=lambda text: text[:24])
def test_a_value_is_returned_as_it_was_sent(api: Api, text: str) -> None:
    sent = f'{{"value": {text}}}'.encode()
    assert api.ask("PUT", "/kvs/a", raw=sent).status == 201
    assert json.dumps(api.get("/kvs/a").body["value"]) == json.dumps(json.loads(text))


KEYS = [
    ("a/b", "a/b"), ("a/", "a/"), ("/", "/"), ("//", "//"), ("%2F", "/"), (".", "."), ("..%2F..", "../.."),
    ("%00", "\0"), ("a%0Ab%0A", "a\nb\n"), ("%0D", "\r"), ("%E2%80%A8", "\u2028"), ("a%20b", "a b"), ("a+b", "a+b"),
    ("%C3%A4", "ä"), ("%F0%9F%98%80", "😀"), ("%25FF", "%FF"), ("%25ff", "%ff"), ("%2525", "%25"), ("%zz", "%zz"),
    ("%C3%A4%25C3%25A4", "ä%C3%A4"), ("a;b=c", "a;b=c"), ("%3Fa=b", "?a=b"), ("%23", "#"), ("kvs/kvs", "kvs/kvs"),
    ("x" * 512, "x" * 512), ("%C3%A4" * 256, "ä" * 256),
]  # fmt: skip


@pytest.mark.parametrize(("path", "key"), KEYS, ids=lambda text: repr(text[:12]))
def test_a_key_is_any_text_of_the_path(api: Api, path: str, key: str) -> None:
    assert api.put(f"/kvs/{path}", 1).status == 201
    assert list(api.store.table.copy()) == [key]
    assert api.get(f"/kvs/{path}").status == 200
    assert api.delete(f"/kvs/{path}").status == 200


def test_without_the_edge_an_ambiguous_key_is_rejected(api: Api) -> None:
    bare = Api(api.store, edge=False)
    for path in ("%FF", "%25FF"):
        assert bare.put(f"/kvs/{path}", 1).status == 400
    for path in ("%25", "100%25", "%2525ff", "ä"):
        assert bare.put(f"/kvs/{path}", 1).status == 201


def test_trailing_slash_is_part_of_the_key(api: Api) -> None:
    api.put("/kvs/a", 1)
    assert api.get("/kvs/a/").status == 404


# --- sources of metadata ---------------------------------------------------------------------------------------------

FUTURE = {PEER_ID: 7}


@pytest.mark.parametrize("past", [None, {}, {OWN_ID: 0}, {PEER_ID: 0, OWN_ID: 1}])
def test_no_history_and_zero_entries(api: Api, past: Any) -> None:
    api.put("/kvs/a", 1)
    assert api.get("/kvs/a", past).metadata == {OWN_ID: 1}


@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT"])
def test_metadata_from_body_else_header_else_query(api: Api, method: str) -> None:
    text = json.dumps(FUTURE)
    value = {"value": 1} if method == "PUT" else {}
    in_body = api.ask(method, "/kvs/a", value | {"causal-metadata": FUTURE})
    in_header = api.ask(method, "/kvs/a", value or None, headers={"X-Causal-Metadata": text})
    in_query = api.ask(method, f"/kvs/a?causal-metadata={text}", value or None)
    assert [response.status for response in (in_body, in_header, in_query)] == [503, 503, 503]
    assert in_body.body == in_header.body == in_query.body
    # The body has priority, even if it is null; then the header.
    first = api.ask("GET", "/kvs/a", {"causal-metadata": None}, headers={"X-Causal-Metadata": text})
    assert first.status == 404
    second = api.ask("GET", f"/kvs/a?causal-metadata={text}", headers={"X-Causal-Metadata": "{}"})
    assert second.status == 404


def test_the_header_repeats_the_metadata(api: Api) -> None:
    for response in (
        api.ask("PUT", "/kvs/a", {"value": 1}),
        api.get("/kvs/a"),
        api.get("/kvs"),
        api.get("/kvs/b"),
        api.get("/kvs/a", FUTURE),  # an error always repeats it
    ):
        assert json.loads(response.headers["X-Causal-Metadata"]) == response.metadata
        assert " " not in response.headers["X-Causal-Metadata"]


def test_a_response_to_metadata_in_the_body_has_none_in_the_header(api: Api) -> None:
    """Except for HEAD and 304, which have no body (contract 2)."""
    past = api.put("/kvs/a", 1, {}).metadata
    transaction = {"reads": ["a"], "writes": [{"key": "a", "value": 2}], "causal-metadata": past}
    for response in (
        api.put("/kvs/a", 1, past),
        api.get("/kvs/a", past),
        api.get("/kvs/b", past),
        api.get("/kvs", past),
        api.ask("GET", "/kvs/a?siblings=true", {"causal-metadata": past}),
        api.ask("POST", "/kvs", transaction),
        api.delete("/kvs/b", past),
        api.delete("/kvs/a", past),
    ):
        assert "X-Causal-Metadata" not in response.headers
        assert response.metadata is not None
    api.put("/kvs/a", 1, {})
    head = api.ask("HEAD", "/kvs/a", {"causal-metadata": past})
    unchanged = api.ask("GET", "/kvs/a", {"causal-metadata": past}, headers={"If-None-Match": head.headers["ETag"]})
    assert unchanged.status == 304
    assert json.loads(head.headers["X-Causal-Metadata"]) == json.loads(unchanged.headers["X-Causal-Metadata"]) != {}


def test_metadata_longer_than_4_kib_is_in_the_body_only(api: Api) -> None:
    past = {"x" * 5000: 1}
    response = api.get("/kvs/a", past)
    assert response.status == 503
    assert response.metadata == past
    assert "X-Causal-Metadata" not in response.headers


def test_the_metadata_header_is_ascii_for_any_ids(api: Api) -> None:
    past = {"ä\x7f😀\n": 1}
    header = api.get("/kvs/a", past).headers["X-Causal-Metadata"]
    assert header.isascii()
    assert header.isprintable()
    assert json.loads(header) == past


# --- missing causal past ---------------------------------------------------------------------------------------------


def test_a_503_lists_what_is_missing(api: Api) -> None:
    api.put("/kvs/a", 1)
    past = {OWN_ID: 1, PEER_ID: 3}
    for response in (
        api.get("/kvs/a", past),
        api.put("/kvs/a", 2, past),
        api.delete("/kvs/a", past),
        api.get("/kvs", past),
    ):
        assert response.status == 503
        assert response.body == {
            "error": "Causal dependencies not satisfied; try again later",
            "missing": {PEER_ID: {"has": 0, "needs": 3}},
            "causal-metadata": past,
        }
        assert int(response.headers["Retry-After"]) >= 1
    assert api.get("/kvs/a").body["value"] == 1


def test_wait_defers_a_request_until_its_past_arrives(api: Api) -> None:
    results: list[Response] = []
    reading = threading.Thread(target=lambda: results.append(api.get("/kvs/a?wait=20", {PEER_ID: 1})))
    engine = api.engine
    reading.start()
    wait_until(lambda: len(engine.waiters.deferred))
    with engine.lock:
        api.receive_update("a", b'"of a peer"')
        engine.wake()
    reading.join(10)
    assert results[0].body["value"] == "of a peer"


def test_a_closed_gate_is_a_503_with_its_reason(api: Api) -> None:
    for reason in ("Replica is not in the view", "Replica is catching up"):
        api.store.not_serving_reason = reason
        past = {OWN_ID: 0, PEER_ID: 1}
        response = api.get("/kvs/a", past)
        assert (response.status, response.body) == (503, {"error": reason, "causal-metadata": {PEER_ID: 1}})


def test_lost_updates_are_reported(api: Api) -> None:
    class LossyReplication:
        def update_issued(self, update: Any) -> None: ...
        def fetch(self, past: Any) -> int:
            return 0

        fetch_for_retry = fetch

        def unrecoverable(self, past: Any, token: int) -> dict[str, tuple[int, int]]:
            return {PEER_ID: (3, past[PEER_ID])} if past.get(PEER_ID, 0) > 2 else {}

        def can_report_loss(self, token: int) -> bool:
            return True

        def expect_acks(self, dot: Any, required: int) -> None: ...
        def ack_counters(self, origin: str) -> list[int]:
            return []

        def acks_required(self, write_concern: str) -> int:
            return 1

    api.use(engine=Engine(api.store, LossyReplication()))
    api.receive_update("a", b"1")
    api.receive_update("b", b"2", counter=2)
    response = api.get("/kvs/a?wait=1", {PEER_ID: 9})
    assert list(response.body) == ["result", "value", "causal-metadata", "lost"]
    assert response.body["lost"] == {PEER_ID: [3, 9]}
    assert response.metadata == {PEER_ID: 2}  # the part of it that this replica has


# --- write concern ---------------------------------------------------------------------------------------------------


def test_acks_are_returned_if_w_is_given(api: Api) -> None:
    for w in (1, "majority", "all"):
        put = api.ask("PUT", "/kvs/a", {"value": 1, "w": w})
        assert list(put.body) == ["result", "causal-metadata", "acks"]
        assert (put.status < 202, put.body["acks"]) == (True, 1)
    assert api.ask("POST", "/kvs", {"writes": [{"key": "b", "value": 1}], "w": "all"}).body["acks"] == 1
    assert api.ask("DELETE", "/kvs/b", {"w": "all"}).body["acks"] == 1
    assert "acks" not in api.ask("PUT", "/kvs/a", {"value": 1, "w": None}).body


def test_too_few_acks_are_a_202_with_the_same_body(api: Api) -> None:
    late = api.ask("PUT", "/kvs/a", {"value": 1, "w": 2, "w-timeout": 0.01})
    assert (late.status, late.body) == (202, {"result": "created", "causal-metadata": {OWN_ID: 1}, "acks": 1})
    assert api.ask("DELETE", "/kvs/a", {"w": 2, "w-timeout": 0}).status == 202
    assert api.ask("POST", "/kvs", {"writes": [{"key": "a", "value": 1}], "w": 2, "w-timeout": 0}).status == 202


def test_a_request_that_writes_nothing_has_no_acks(api: Api) -> None:
    assert api.ask("DELETE", "/kvs/a", {"w": 2}).status == 404
    reads = api.ask("POST", "/kvs", {"reads": ["a"], "w": 2})
    assert (reads.status, "acks" in reads.body) == (200, False)


def test_a_write_without_a_place_to_wait_for_acks_is_answered_at_once(api: Api) -> None:
    full = Api(make_store(max_deferred=0))
    answer = full.ask("PUT", "/kvs/a", {"value": 1, "w": 2, "w-timeout": 30})
    assert (answer.status, answer.body["acks"]) == (202, 1)
    assert full.get("/kvs/a").body["value"] == 1


def test_an_ack_wait_blocks_no_other_request_and_ends_when_the_gate_closes(api: Api) -> None:
    results: list[Response] = []
    body = {"value": 1, "w": 2, "w-timeout": 30}
    waiting = threading.Thread(target=lambda: results.append(api.ask("PUT", "/kvs/a", body)))
    waiting.start()
    engine = api.engine
    wait_until(lambda: len(engine.waiters.ack_waits) and api.get("/kvs/a").status == 200)
    assert api.put("/kvs/b", 1).status == 201
    with engine.lock:
        api.store.not_serving_reason = "Replica is not in the view"
        engine.wake()
    waiting.join(10)
    assert (results[0].status, results[0].body["acks"]) == (202, 1)
    assert len(engine.waiters.ack_waits) == 0


# --- conflicts -------------------------------------------------------------------------------------------------------


def test_conflicts_are_counted_and_siblings_returned(api: Api) -> None:
    api.put("/kvs/a", {"mine": 1})
    assert "conflicts" not in api.get("/kvs/a").body
    api.receive_update("a", b'"theirs"')
    plain = api.get("/kvs/a")
    assert list(plain.body) == ["result", "value", "causal-metadata", "conflicts"]
    assert (plain.body["value"], plain.body["conflicts"]) == ("theirs", 2)
    assert plain.metadata == {PEER_ID: 1}
    full = api.get("/kvs/a?siblings=true")
    assert list(full.body) == ["result", "value", "causal-metadata", "conflicts", "siblings"]
    assert full.metadata == {PEER_ID: 1, OWN_ID: 1}
    assert [(each["value"], each["version"], each["origin"]) for each in full.body["siblings"]] == [
        ("theirs", f"{PEER_ID}:1", PEER_ID),
        ({"mine": 1}, f"{OWN_ID}:1", OWN_ID),
    ]
    assert full.body["siblings"][0]["timestamp"] > full.body["siblings"][1]["timestamp"]
    assert api.get("/kvs?conflicts=true").body["keys"] == ["a"]
    assert api.put("/kvs/a", 3, plain.metadata).metadata == {PEER_ID: 1, OWN_ID: 2}
    assert api.get("/kvs?conflicts=true").body["keys"] == []


def test_siblings_of_a_key_without_conflict(api: Api) -> None:
    api.put("/kvs/a", 1)
    response = api.get("/kvs/a?siblings=true")
    assert "conflicts" not in response.body
    assert [each["value"] for each in response.body["siblings"]] == [1]
    assert api.get("/kvs/b?siblings=true").status == 404


# --- HTTP ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/kvs/a", {"GET", "PUT", "POST", "PATCH", "DELETE", "HEAD", "OPTIONS"}),
        ("/kvs", {"GET", "POST", "DELETE", "HEAD", "OPTIONS"}),
    ],
)
def test_options_and_405_list_the_allowed_methods(api: Api, path: str, allowed: set[str]) -> None:
    options = api.ask("OPTIONS", path)
    assert (options.status, options.body) == (204, None)
    rejected = api.ask("PURGE", path, {"causal-metadata": {OWN_ID: 5}})
    assert rejected.status == 405
    assert (rejected.body["error"], rejected.metadata) == ('Method "PURGE" not allowed.', {OWN_ID: 5})
    for response in (options, rejected):
        assert set(response.headers["Allow"].split(", ")) == allowed


def test_head_returns_the_headers_of_get(api: Api) -> None:
    api.put("/kvs/a", 1)
    head, get = api.ask("HEAD", "/kvs/a"), api.ask("GET", "/kvs/a")
    assert (head.status, head.body) == (200, None)
    for response in (head, get):
        assert response.headers.pop("X-Request-ID")
    assert head.headers == get.headers
    assert int(get.headers["Content-Length"]) > 0
    assert api.ask("HEAD", "/kvs/b").status == 404


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON", None]
)
def test_accepted_spellings_of_the_json_media_type(api: Api, content_type: str | None) -> None:
    assert api.ask("PUT", "/kvs/a", {"value": 1}, content_type=content_type).status == 201
    assert api.get("/kvs/a").headers["Content-Type"] == "application/json"


def test_a_content_type_without_a_body_is_ignored(api: Api) -> None:
    assert api.ask("GET", "/kvs", content_type="text/plain").status == 200


def test_unknown_parameters_are_ignored(api: Api) -> None:
    assert api.ask("PUT", "/kvs/a?x=1", {"value": 1}).status == 201


def test_an_unknown_field_is_rejected_with_the_fields_that_are_allowed(api: Api) -> None:
    past = {"causal-metadata": {OWN_ID: 0}}
    rejected = api.ask("PUT", "/kvs/a", {"value": 1, "TTL": 5, **past})
    assert rejected.status == 400
    assert rejected.body == {
        "error": "Body has the unknown field `TTL` (did you mean `ttl`?); allowed are causal-metadata, w, w-timeout, "
        "value, ttl",
        "hint": WRITE_KEY.hint,
        "example": {"value": "pizza"},
        "causal-metadata": {},
    }
    nested = api.ask("POST", "/kvs", {"writes": [{"key": "a", "value": 1}, {"key": "b", "val": 1}]})
    assert nested.body["error"] == (
        "`writes[1]` has the unknown field `val` (did you mean `value`?); "
        "allowed are key, value, delete, increment, add, remove, set, unset, ttl, if-match, if-none-match"
    )
    assert api.get("/kvs/a").status == 404
    long = api.ask("PUT", "/kvs/a", {"value": 1, "x`\n" * 10_000: 5})
    assert long.status == 400
    assert len(long.body["error"]) < 300


# --- errors ----------------------------------------------------------------------------------------------------------


def test_out_of_memory_is_507_and_deletes_succeed(api: Api) -> None:
    full = Api(make_store(max_memory_bytes=1000))
    assert full.put("/kvs/a", "x").status == 201
    rejected = full.put("/kvs/b", "x" * 900)
    assert rejected.status == 507
    assert "KV_MAX_MEMORY" in rejected.body["error"]
    assert full.delete("/kvs/a").status == 200


def test_a_request_without_a_place_to_wait_is_503_and_says_what_is_missing() -> None:
    api = Api(make_store(max_deferred=0))
    answer = api.get("/kvs/a", {PEER_ID: 1})
    assert answer.status == 503
    assert answer.body["missing"] == {PEER_ID: {"has": 0, "needs": 1}}
    assert answer.metadata == {PEER_ID: 1}
    assert "Retry-After" in answer.headers


def test_an_unexpected_exception_is_a_logged_500_in_json_and_the_replica_continues(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    with monkeypatch.context() as broken, caplog.at_level(logging.ERROR):
        broken.setattr(api.engine, "get", fail)
        response = api.get("/kvs/a", {OWN_ID: 1})
    assert (response.status, response.body) == (500, {"error": "Internal server error", "causal-metadata": {OWN_ID: 1}})
    assert "ZeroDivisionError: a bug" in caplog.text
    assert api.get("/kvs/a").status == 404


def test_an_error_repeats_readable_metadata(api: Api) -> None:
    past = {OWN_ID: 5}
    assert api.ask("PUT", "/kvs/a", {"causal-metadata": past}).metadata == past
    assert api.put("/kvs/" + "x" * 513, 1, past).metadata == past
    assert api.put("/kvs/a", "x" * LIMITS.max_value_bytes, past).metadata == past
    assert api.ask("PUT", "/kvs/a", raw=b'{"value":1e400,"causal-metadata":{"x":5}}').metadata == {"x": 5}
    header = {"X-Causal-Metadata": json.dumps(past)}
    assert api.ask("PUT", "/kvs/a", raw=b"{", headers=header).metadata == past
    assert api.ask("PUT", "/kvs/a", raw=b"a=b", content_type="text/plain", headers=header).metadata == past
    assert api.ask("PUT", "/kvs/a").metadata == {}
    # Unreadable metadata is not repeated as "no history": a client would forget its own.
    assert "causal-metadata" not in api.ask("PUT", "/kvs/a", raw=b"{").body
    assert "causal-metadata" not in api.ask("PUT", "/kvs/a", {"value": 1, "causal-metadata": [5]}).body


@pytest.mark.parametrize(
    "value",
    [
        b"[" * 100 + b"]" * 100,
        b'{"a":' * 100 + b"1" + b"}" * 100,
        b'["' + b"[" * 500 + b'\\"' + b"{" * 500 + b'\\\\","[[["]',
        b"[" + b",".join([b"[[]]"] * 200) + b"]",
        b"18446744073709551615",
        b"-9223372036854775808",
        b'"99999999999999999999"',
        b"[1e22,0.1234567890123456,1e300]",
    ],
)
def test_values_at_the_bounds_come_back_as_they_were_sent(api: Api, value: bytes) -> None:
    assert api.ask("PUT", "/kvs/a", raw=b'{"value":' + value + b"}").status == 201
    assert api.get("/kvs/a").body["value"] == json.loads(value)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("PUT", "/kvs/a", b'{"value":[["only","here"]],"causal-metadata":{"x":1}}'),
        ("POST", "/kvs", b'{"writes":[{"key":"a","value":[["only","here"]]}],"causal-metadata":{"x":1}}'),
    ],
)
def test_a_waiting_write_keeps_no_decoded_value(api: Api, method: str, path: str, body: bytes) -> None:
    """Decoded, a value of many small arrays takes thirty times as much memory."""

    def is_decoded() -> bool:
        return any(type(each) is list and each[:2] == ["only", "here"] for each in gc.get_objects())

    waiting = threading.Thread(target=api.ask, args=(method, f"{path}?wait=1"), kwargs={"raw": body})
    waiting.start()
    wait_until(lambda: len(api.engine.waiters.deferred) == 1)
    assert not is_decoded()
    waiting.join()
    held = json.loads(body)
    assert is_decoded(), held


@pytest.mark.parametrize("value", ["x" * 90_000, ["x" * 97] * 900, {"n": 1}], ids=["text", "list", "small"])
def test_an_encoded_value_takes_no_more_memory_than_its_length_says(value: Any) -> None:
    """The store keeps it, and ``KV_MAX_MEMORY`` counts its length."""
    tracemalloc.start()
    try:
        encoded = encode_value(value, 1_000_000)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held <= sys.getsizeof(encoded)
