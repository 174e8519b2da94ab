"""Contract 2.1 to 2.7 as far as one replica can show it, through the edge and a real engine."""

from __future__ import annotations

import gc
import json
import logging
import threading
import time
from typing import Any

import pytest

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


# --- conditions ------------------------------------------------------------------------------------------------------


def test_responses_have_the_etag_of_the_version(api: Api) -> None:
    assert api.put("/kvs/a", 1).headers["ETag"] == OWN_ETAG
    assert api.get("/kvs/a").headers["ETag"] == OWN_ETAG
    assert api.get("/kvs/b").headers["ETag"] == api.delete("/kvs/b").headers["ETag"] == '"absent"'


def test_conditions_may_name_the_tag_of_an_absent_key(api: Api) -> None:
    absent = '"absent"'
    for header in (absent, f'"x", {absent}', f"W/{absent}"):
        assert api.get("/kvs/a", headers={"If-None-Match": header}).status == 304
    assert api.get("/kvs/a", headers={"If-None-Match": absent}).headers["ETag"] == absent
    assert api.get("/kvs/a?wait=0.01", headers={"If-None-Match": absent}).status == 304
    assert api.delete("/kvs/a", headers={"If-Match": absent}).status == 404
    rejected = api.put("/kvs/a", 1, headers={"If-None-Match": absent})
    assert (rejected.status, rejected.headers["ETag"]) == (412, absent)
    assert api.delete("/kvs/a", headers={"If-None-Match": absent}).status == 412
    assert api.put("/kvs/a", 1, headers={"If-Match": absent}).status == 201
    # The key is present now: the opposite holds.
    assert api.get("/kvs/a", headers={"If-None-Match": absent}).status == 200
    for present in (
        api.put("/kvs/a", 2, headers={"If-Match": absent}),
        api.delete("/kvs/a", headers={"If-Match": absent}),
    ):
        assert (present.status, present.headers["ETag"]) == (412, OWN_ETAG)
    assert api.put("/kvs/a", 2, headers={"If-None-Match": absent}).status == 200
    assert api.put("/kvs/a", 3, headers={"If-None-Match": absent, "If-Match": absent}).status == 412
    assert api.put("/kvs/a", 3, headers={"If-None-Match": absent, "If-Match": OWN_ETAG}).status == 412
    assert api.put("/kvs/a", 3, headers={"If-Match": f'{absent}, "{OWN_ID}:2"'}).status == 200


def test_a_write_of_a_transaction_may_name_the_tag_of_an_absent_key(api: Api) -> None:
    def status(**conditions: str) -> int:
        write = {"key": "a", "value": 1, **conditions}
        return int(api.ask("POST", "/kvs", {"writes": [write]}).status)

    assert status(**{"if-none-match": '"absent"'}) == 412
    assert status(**{"if-match": '"absent"'}) == 200
    assert status(**{"if-match": '"absent"'}) == 412
    assert status(**{"if-none-match": '"absent"'}) == 200


def test_if_match_replaces_only_that_version(api: Api) -> None:
    api.put("/kvs/a", 1)
    rejected = api.put("/kvs/a", 2, headers={"If-Match": '"other:1"'})
    assert (rejected.status, rejected.body["error"]) == (412, "Precondition failed")
    assert rejected.metadata == {OWN_ID: 1}
    assert rejected.headers["ETag"] == OWN_ETAG
    assert api.delete("/kvs/a", headers={"If-Match": '"other:1"'}).status == 412
    assert api.put("/kvs/a", 2, headers={"If-Match": f'"x", {OWN_ETAG}'}).status == 200
    assert api.put("/kvs/a", 3, headers={"If-Match": "*"}).status == 200
    assert api.put("/kvs/new", 3, headers={"If-Match": "*"}).status == 412
    assert api.delete("/kvs/a", headers={"If-Match": f'"{OWN_ID}:3"'}).status == 200


def test_a_tag_that_a_proxy_has_weakened_counts_as_that_tag(api: Api) -> None:
    api.put("/kvs/a", 1)
    assert api.put("/kvs/a", 2, headers={"If-Match": 'W/"other:1"'}).status == 412
    assert api.put("/kvs/a", 2, headers={"If-Match": f"W/{OWN_ETAG}"}).status == 200
    write = {"key": "a", "value": 3, "if-match": f'W/"{OWN_ID}:2"'}
    assert api.ask("POST", "/kvs", {"writes": [write]}).status == 200
    assert api.ask("POST", "/kvs", {"writes": [write]}).status == 412
    assert api.delete("/kvs/a", headers={"If-Match": f'"x", W/"{OWN_ID}:3"'}).status == 200


@pytest.mark.parametrize(("method", "header"), [("PUT", "If-Match"), ("DELETE", "If-Match"), ("GET", "If-None-Match")])
def test_a_header_has_at_most_64_tags(api: Api, method: str, header: str) -> None:
    api.put("/kvs/a", 1)
    body = {"value": 2} if method == "PUT" else {}
    tags = ['"x"'] * 63 + [OWN_ETAG]
    rejected = api.ask(method, "/kvs/a", body, headers={header: ",".join(['W/"x"', *tags])})
    assert (rejected.status, rejected.body["error"]) == (400, f"{header} has more than 64 entity tags")
    assert api.ask(method, "/kvs/a", body, headers={header: ",".join(tags)}).status in (200, 304)


def test_no_response_may_be_stored_by_a_cache(api: Api) -> None:
    etag = api.put("/kvs/a", 1).headers["ETag"]
    answers = [
        api.get("/kvs/a"),
        api.get("/kvs/a", headers={"If-None-Match": etag}),
        api.get("/kvs/b"),
        api.get("/kvs"),
        api.ask("OPTIONS", "/kvs/a"),
        api.ask("PATCH", "/kvs"),
        api.put("/kvs/a", 2, headers={"If-Match": '"x"'}),
        api.put("/kvs/a", 2, headers={"Host": "evil.example"}),
        api.get("/nothing"),
    ]
    assert [each.status for each in answers] == [200, 304, 404, 200, 204, 405, 412, 400, 404]
    assert {each.headers["Cache-Control"] for each in answers} == {"no-store"}


def test_if_none_match_writes_only_an_absent_key(api: Api) -> None:
    assert api.put("/kvs/a", 1, headers={"If-None-Match": "*"}).status == 201
    assert api.put("/kvs/a", 2, headers={"If-None-Match": "*"}).status == 412
    assert api.put("/kvs/a", 2, headers={"If-None-Match": OWN_ETAG}).status == 400
    assert api.delete("/kvs/a", headers={"If-None-Match": "*"}).status == 412
    assert api.delete("/kvs/b", headers={"If-None-Match": "*"}).status == 404
    assert api.get("/kvs/a").body["value"] == 1


def test_if_none_match_of_a_read(api: Api) -> None:
    api.put("/kvs/a", 1)
    for header in (OWN_ETAG, "*", f'"x", W/{OWN_ETAG}'):
        known = api.get("/kvs/a", headers={"If-None-Match": header})
        assert (known.status, known.body) == (304, None)
        assert known.headers["ETag"] == OWN_ETAG
        assert json.loads(known.headers["X-Causal-Metadata"]) == {OWN_ID: 1}
    assert api.get("/kvs/a", headers={"If-None-Match": '"x"'}).status == 200
    assert api.get("/kvs/b", headers={"If-None-Match": "*"}).status == 404


def test_a_watch_returns_when_the_key_changes(api: Api) -> None:
    api.put("/kvs/a", 1)
    results: list[Response] = []
    headers = {"If-None-Match": OWN_ETAG}
    watching = threading.Thread(target=lambda: results.append(api.get("/kvs/a?wait=20", headers=headers)))
    watching.start()
    wait_until(lambda: len(api.engine.waiters.watching))
    assert api.put("/kvs/a", 2).status == 200
    watching.join(10)
    assert (results[0].status, results[0].body["value"]) == (200, 2)
    assert api.get("/kvs/a?wait=0.01", headers={"If-None-Match": f'"{OWN_ID}:2"'}).status == 304


def test_ttl(api: Api) -> None:
    assert api.ask("PUT", "/kvs/a", {"value": 1, "ttl": 1000}).status == 201
    assert api.ask("PUT", "/kvs/b", {"value": 1, "ttl": 0.000001}).status == 201
    assert api.ask("PUT", "/kvs/c", {"value": 1, "ttl": None}).status == 201
    wait_until(lambda: api.get("/kvs/b").status == 404)
    assert [api.get(f"/kvs/{key}").status for key in "ac"] == [200, 200]


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


# --- many keys -------------------------------------------------------------------------------------------------------


def test_listing_returns_pages_in_order(api: Api) -> None:
    for key in ("b", "a", "c", "ab"):
        api.put(f"/kvs/{key}", key)
    first = api.get("/kvs?limit=3")
    assert (first.status, list(first.body)) == (200, ["keys", "next", "causal-metadata"])
    assert (first.body["keys"], first.body["next"]) == (["a", "ab", "b"], "b")
    rest = api.get("/kvs?limit=3&after=b&values=true")
    assert (rest.body["keys"], rest.body["next"], rest.body["items"]) == (["c"], None, {"c": "c"})
    assert api.get("/kvs?prefix=a").body["keys"] == ["a", "ab"]
    assert api.get("/kvs?prefix=&after=&limit=").body["keys"] == ["a", "ab", "b", "c"]


def test_listing_in_reverse_and_up_to_an_end(api: Api) -> None:
    for key in ("b", "a", "c", "ab"):
        api.put(f"/kvs/{key}", key)
    assert api.get("/kvs?end=b").body["keys"] == ["a", "ab"]
    assert api.get("/kvs?prefix=a&end=ab").body["keys"] == ["a"]
    first = api.get("/kvs?reverse=true&limit=2").body
    assert (first["keys"], first["next"]) == (["c", "b"], "b")
    rest = api.get("/kvs?reverse=true&limit=2&after=b").body
    assert (rest["keys"], rest["next"]) == (["ab", "a"], None)
    assert api.get("/kvs?reverse=true&end=b").body["keys"] == ["ab", "a"]
    assert api.get("/kvs?end=b&after=c").body["keys"] == []


def test_listing_counts_whatever_the_page(api: Api) -> None:
    for key in ("b", "a", "c", "ab"):
        api.put(f"/kvs/{key}", key)
    assert api.get("/kvs?count=true&limit=1&after=b").body["count"] == 4
    assert api.get("/kvs?count=true&prefix=a").body["count"] == 2
    assert api.get("/kvs?count=true&end=b").body["count"] == 2
    assert api.get("/kvs?count=true&conflicts=true").body["count"] == 0
    assert "count" not in api.get("/kvs").body


def test_listing_with_meta(api: Api) -> None:
    put = api.ask("PUT", "/kvs/a", {"value": "äb", "ttl": 100})
    api.put("/kvs/b", 1)
    api.receive_update("b", b'"theirs"')
    meta = api.get("/kvs?meta=true").body["meta"]
    assert list(meta) == ["a", "b"]
    assert meta["a"].pop("expires") == pytest.approx(time.time() + 100, abs=20)
    assert meta["a"] == {"etag": put.headers["ETag"], "conflicts": 1, "bytes": 5, "type": "json"}
    both = api.get("/kvs/b").headers["ETag"]
    assert meta["b"] == {"etag": both, "conflicts": 2, "expires": None, "bytes": 8, "type": "json"}


def test_delete_of_a_prefix_is_one_update(api: Api) -> None:
    for key in ("p/a", "p/b", "q"):
        api.put(f"/kvs/{key}", key)
    response = api.ask("DELETE", "/kvs?prefix=p/", {"causal-metadata": {}})
    assert (response.status, response.body) == (200, {"deleted": 2, "more": False, "causal-metadata": {OWN_ID: 4}})
    assert api.get("/kvs").body["keys"] == ["q"]
    none = api.ask("DELETE", "/kvs?prefix=p/")
    assert (none.status, none.body) == (200, {"deleted": 0, "more": False, "causal-metadata": {OWN_ID: 4}})


def test_delete_of_a_prefix_ends_at_the_limit(api: Api) -> None:
    for number in range(LIMITS.max_batch + 2):
        api.put(f"/kvs/p/{number:03}", number)
    first = api.ask("DELETE", "/kvs?prefix=p/").body
    assert (first["deleted"], first["more"]) == (LIMITS.max_batch, True)
    rest = api.ask("DELETE", "/kvs?prefix=p/").body
    assert (rest["deleted"], rest["more"]) == (2, False)


@pytest.mark.parametrize("query", ["", "?prefix=", "?limit=1"])
def test_delete_of_a_prefix_needs_a_prefix(api: Api, query: str) -> None:
    api.put("/kvs/a", 1)
    response = api.ask("DELETE", f"/kvs{query}")
    assert (response.status, response.body["error"]) == (
        400,
        "DELETE of several keys needs a prefix, for example ?prefix=user/",
    )
    assert api.get("/kvs/a").status == 200


def test_get_shows_when_the_value_expires(api: Api) -> None:
    api.ask("PUT", "/kvs/a", {"value": 1, "ttl": 100})
    assert api.get("/kvs/a").body["expires"] == pytest.approx(time.time() + 100, abs=20)
    api.put("/kvs/a", 1)
    assert "expires" not in api.get("/kvs/a").body


@pytest.mark.parametrize("text", ["null", '""', "{}", f'{{"{OWN_ID}":0.0}}'])
def test_texts_that_mean_no_history(api: Api, text: str) -> None:
    api.put("/kvs/a", 1)
    in_body = api.ask("GET", "/kvs/a", raw=f'{{"causal-metadata":{text}}}'.encode())
    in_header = api.ask("GET", "/kvs/a", headers={"X-Causal-Metadata": text})
    in_query = api.get(f"/kvs/a?causal-metadata={text}")
    assert [each.status for each in (in_body, in_header, in_query)] == [200, 200, 200]


def test_whole_numbers_may_have_a_point(api: Api) -> None:
    assert api.ask("PUT", "/kvs/a", {"value": 1, "w": 1.0}).body["acks"] == 1
    response = api.ask("GET", "/kvs/a", raw=f'{{"causal-metadata":{{"{OWN_ID}":1.0}}}}'.encode())
    assert (response.status, response.metadata) == (200, {OWN_ID: 1})
    assert b":1.0" not in json.dumps(response.body).encode()


@pytest.mark.parametrize("name", ["causal-metadata[x]", "causal-metadata.x", "causal-metadata%5Bx%5D"])
def test_metadata_in_several_parameters_is_rejected(api: Api, name: str) -> None:
    response = api.get(f"/kvs/a?{name}=1")
    assert (response.status, response.body["error"]) == (400, "causal-metadata has to be one parameter, with JSON")


def test_listing_decodes_its_parameters_as_utf8(api: Api) -> None:
    api.put("/kvs/%C3%A4%2Bb", 1)
    assert api.get("/kvs?prefix=%C3%A4%2B").body["keys"] == ["ä+b"]


def test_transaction_reads_then_writes(api: Api) -> None:
    api.put("/kvs/a", 1)
    past = api.put("/kvs/b", 2).metadata
    writes = [{"key": "a", "value": 10}, {"key": "b", "delete": True}, {"key": "c", "value": None, "ttl": 100}]
    response = api.ask("POST", "/kvs", {"reads": ["a", "b", "c", "a"], "writes": writes, "causal-metadata": past})
    assert response.status == 200
    assert list(response.body.items()) == [
        ("values", {"a": 1, "b": 2}),
        ("missing-keys", ["c"]),
        ("etags", {"a": f'"{OWN_ID}:1"', "b": f'"{OWN_ID}:2"'}),
        ("causal-metadata", {OWN_ID: 3}),
    ]
    assert api.get("/kvs?values=true").body["items"] == {"a": 10, "c": None}


def test_transaction_with_only_reads_or_only_writes(api: Api) -> None:
    assert api.ask("POST", "/kvs", {"writes": [{"key": "a", "value": 1}]}).body["values"] == {}
    assert api.ask("POST", "/kvs", {"reads": ["a"]}).body["values"] == {"a": 1}
    before = api.state()
    assert api.ask("POST", "/kvs", {"reads": [], "writes": []}).status == 200
    assert api.state() == before


def test_one_failed_precondition_rejects_the_whole_transaction(api: Api) -> None:
    api.put("/kvs/a", 1)
    before = api.state()
    for condition in ({"if-match": '"x"'}, {"if-none-match": "*"}):
        writes = [{"key": "b", "value": 1}, {"key": "a", "value": 2, **condition}]
        assert api.ask("POST", "/kvs", {"writes": writes}).status == 412
        assert api.state() == before
    assert api.ask("POST", "/kvs", {"writes": [{"key": "a", "value": 2, "if-match": OWN_ETAG}]}).status == 200


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
