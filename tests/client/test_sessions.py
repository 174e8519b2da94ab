"""Both sessions against fake replicas: each test sets their responses and checks the requests that they receive.

Every test runs with ``Session`` and with ``AsyncSession``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import unquote

import pytest

from causeway_client import (
    Attempt,
    ClientError,
    Delete,
    DependenciesMissing,
    NotAllowed,
    PreconditionFailed,
    Put,
    Rejected,
    Session,
    Unavailable,
    Uncertain,
)
from tests.support.fake_replicas import (
    FakeReplica,
    Handler,
    Responder,
    close_connection,
    found,
    json_response,
    no_response,
    stored,
    tls_alert,
    truncated_response,
    unavailable,
)
from tests.support.fake_sessions import OpenSession, replicas, session, unused_address

__all__ = ["replicas", "session"]

Call = Callable[[Session], object]
WRITES: list[Call] = [
    lambda s: s.put("k", 1),
    lambda s: s.delete("k"),
    lambda s: s.transaction(writes=[Put("k", 1)]),
]


UNUSABLE_RESPONSES: list[Responder] = [
    close_connection,
    truncated_response,
    no_response(0.7),
    json_response(500, {"error": "fault"}),
    json_response(200, []),
]


# ---- requests and results


def test_requests_carry_the_metadata_of_earlier_responses(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(
        stored({"a@1": 1}), found("v", {"a@1": 1, "b@1": 4}), json_response(200, {"keys": [], "causal-metadata": {}})
    )
    with session(a) as s:
        s.put("k", "v")
        s.get("k")
        assert s.metadata == {"a@1": 1, "b@1": 4}
        s.list()
    assert [seen.body["causal-metadata"] for seen in a.requests] == [{}, {"a@1": 1}, {"a@1": 1, "b@1": 4}]


def test_absent_key_is_not_an_error_and_its_metadata_is_kept(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(json_response(404, {"error": "Key does not exist", "causal-metadata": {"b@1": 2}}))
    with session(a) as s:
        read = s.get("k")
        assert (read.found, read.value, read.value_or(7)) == (False, None, 7)
        assert s.metadata == {"b@1": 2}
        assert not s.delete("k").deleted


def test_null_is_a_value(replicas: list[FakeReplica], session: OpenSession) -> None:
    replicas[0].respond_with(found(None))
    with session(replicas[0]) as s:
        read = s.get("k")
        assert read.found
        assert read.value is None
        assert read.value_or(7) is None
        assert read.conflicts == 1


@pytest.mark.parametrize("content", [b"", b"\xff\0", bytearray(b"ab"), memoryview(b"ab")])
def test_bytes_are_sent_as_they_are(replicas: list[FakeReplica], content: Any, session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(stored({"ä@1": 1}))
    with session(a, metadata={"ä@1": 1}) as s:
        assert s.put("k", content, ttl_s=1.5, w="all", w_timeout_s=2, wait_s=3, if_none_match=True).created
    request = a.requests[0]
    assert (request.method, request.body) == ("PUT", bytes(content))
    assert request.path == "/kvs/k?wait=3&ttl=1.5&w=all&w-timeout=2"
    assert request.headers["content-type"] == "application/octet-stream"
    assert request.headers["if-none-match"] == "*"
    assert request.headers["x-causal-metadata"].isascii()
    assert json.loads(request.headers["x-causal-metadata"]) == {"ä@1": 1}


def test_bytes_are_decoded_wherever_they_are(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    tail: dict[str, Any] = {"causal-metadata": {}}
    sibling = {"value": "AA==", "encoding": "base64", "version": "a@1:1", "origin": "a@1", "timestamp": 5}
    change = {"key": "k", "value": "/w==", "encoding": "base64", "etag": '"a@1:1"', "type": "bytes"}
    values, encodings = {"k": "/w==", "l": "/w=="}, {"k": "base64"}
    a.respond_with(
        found("/w==", encoding="base64", conflicts=2, siblings=[sibling, sibling | {"encoding": None}]),
        json_response(200, {"keys": ["k", "l"], "next": None, "items": values, "encodings": encodings} | tail),
        json_response(200, {"values": values, "encodings": encodings, "missing-keys": [], "etags": {}} | tail),
        json_response(200, {"changes": [change], "reset": True, "more": False, "next": "t"} | tail),
    )
    with session(a) as s:
        read = s.get("k", siblings=True)
        assert (read.value, [each.value for each in read.siblings]) == (b"\xff", [b"\0", "AA=="])
        assert s.list(values=True).items == {"k": b"\xff", "l": "/w=="}
        assert s.transaction(reads=["k", "l"]).values == {"k": b"\xff", "l": "/w=="}
        assert next(s.changes()).changes[0].value == b"\xff"


def test_a_transaction_cannot_write_bytes(replicas: list[FakeReplica], session: OpenSession) -> None:
    with session(replicas[0]) as s, pytest.raises(TypeError, match=r"Session\.put"):
        s.transaction(writes=[Put("k", b"a")])
    assert replicas[0].requests == []


def test_bytes_are_recorded(replicas: list[FakeReplica], session: OpenSession) -> None:
    recorded: list[Any] = []
    replicas[0].respond_with(stored(), found("/w==", encoding="base64"))
    with session(replicas[0], recorder=recorded.append) as s:
        s.put("k", b"\xff")
        s.get("k")
    assert [each.get("writes") or each["reads"] for each in recorded] == [[["k", "base64:/w=="]]] * 2


def test_siblings_are_returned_as_objects(replicas: list[FakeReplica], session: OpenSession) -> None:
    sibling = {"value": 1, "version": "a@1:1", "origin": "a@1", "timestamp": 5}
    replicas[0].respond_with(found(1, siblings=[sibling, sibling | {"value": 2}], conflicts=2))
    with session(replicas[0]) as s:
        read = s.get("k", siblings=True)
    assert read.conflicts == 2
    assert next((sib.value, sib.version, sib.origin, sib.timestamp) for sib in read.siblings) == (1, "a@1:1", "a@1", 5)
    assert replicas[0].requests[0].path == "/kvs/k?siblings=true"


@pytest.mark.parametrize(
    "key", ["a/b", "..", ".", "../x", "a//b", "/", "%", "%2e", "ä☃\U0001f600", "a b?c#d", "\n", "+"]
)
def test_keys_are_encoded_so_that_they_arrive_unchanged(
    replicas: list[FakeReplica], key: str, session: OpenSession
) -> None:
    replicas[0].respond_with(found(1))
    with session(replicas[0]) as s:
        s.get(key)
    path = replicas[0].requests[0].path
    assert path.startswith("/kvs/")
    assert unquote(path.removeprefix("/kvs/"), errors="strict") == key
    assert ".." not in path
    assert "//" not in path


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda s: s.put("", 1), ValueError),
        (lambda s: s.get(b"k"), TypeError),
        (lambda s: s.put("k", float("nan")), ValueError),
        (lambda s: s.put("k", "\ud800"), ValueError),
        (lambda s: s.get("\ud800"), ValueError),
        (lambda s: s.put("k", object()), TypeError),
    ],
)
def test_invalid_arguments_raise_before_sending(
    replicas: list[FakeReplica], call: Callable[[Session], object], error: type[Exception], session: OpenSession
) -> None:
    with session(replicas[0]) as s, pytest.raises(error):
        call(s)
    assert replicas[0].requests == []


def test_options_are_sent_as_the_contract_defines_them(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(json_response(200, {"result": "replaced", "acks": 2, "causal-metadata": {}}, ETag='"x:2"'))
    with session(a, token="secret") as s:
        written = s.put("k", 1, ttl_s=2.5, if_match='"x:1"', w="majority", w_timeout_s=0.5, wait_s=3)
    seen = a.requests[0]
    assert seen.path == "/kvs/k?wait=3"
    assert seen.method == "PUT"
    assert seen.body == {"value": 1, "ttl": 2.5, "w": "majority", "w-timeout": 0.5, "causal-metadata": {}}
    assert seen.headers["if-match"] == '"x:1"'
    assert seen.headers["authorization"] == "Bearer secret"
    assert (written.acks, written.concern_met, written.etag, written.created) == (2, True, '"x:2"', False)


def test_too_few_acks_are_reported_and_not_an_error(replicas: list[FakeReplica], session: OpenSession) -> None:
    replicas[0].respond_with(json_response(202, {"result": "created", "acks": 1, "causal-metadata": {}}))
    with session(replicas[0]) as s:
        written = s.put("k", 1, w="all")
    assert written.created
    assert written.acks == 1
    assert not written.concern_met


def test_transaction(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(json_response(200, {"values": {"r": 1}, "missing-keys": ["q"], "causal-metadata": {"a@1": 1}}))
    with session(a) as s:
        done = s.transaction(["r", "q"], [Put("k", 1, ttl_s=9, if_none_match=True), Delete("d", if_match='"x:1"')])
    assert a.requests[0].body["writes"] == [
        {"key": "k", "value": 1, "if-none-match": "*", "ttl": 9},
        {"key": "d", "delete": True, "if-match": '"x:1"'},
    ]
    assert done.values == {"r": 1}
    assert done.missing_keys == ("q",)


def test_pages_follow_next(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(
        json_response(200, {"keys": ["a", "b"], "items": {"a": 1, "b": 2}, "next": "b", "causal-metadata": {}}),
        json_response(200, {"keys": ["c"], "items": {"c": 3}, "next": None, "causal-metadata": {}}),
    )
    with session(a) as s:
        items = {key: value for page in s.pages(prefix="p/", limit=2, values=True) for key, value in page.items.items()}
    assert items == {"a": 1, "b": 2, "c": 3}
    assert a.requests[1].path == "/kvs?limit=2&prefix=p%2F&after=b&values=true"


def test_pages_halve_the_limit_when_a_page_is_too_large(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    too_large = json_response(413, {"error": "too large", "causal-metadata": {}})
    last = json_response(200, {"keys": ["b"], "next": None, "causal-metadata": {}})
    a.respond_with(too_large, json_response(200, {"keys": ["a"], "next": "a", "causal-metadata": {}}), too_large, last)
    with session(a) as s:
        assert [page.keys for page in s.pages(limit=5)] == [("a",), ("b",)]
    assert [seen.path for seen in a.requests] == [
        "/kvs?limit=5",
        "/kvs?limit=2",
        "/kvs?limit=2&after=a",
        "/kvs?limit=1&after=a",
    ]


def test_pages_give_up_when_one_key_is_too_large(replicas: list[FakeReplica], session: OpenSession) -> None:
    replicas[0].respond_with(json_response(413, {"error": "too large", "causal-metadata": {}}))
    with session(replicas[0]) as s, pytest.raises(Rejected):
        list(s.pages(limit=4))
    assert len(replicas[0].requests) == 3


def test_watch_returns_the_change_or_none(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(json_response(304, X_Causal_Metadata='{"b@1":3}'), found("new"))
    with session(a) as s:
        assert s.watch("k", '"x:1"', wait_s=1) is None
        assert s.metadata == {"b@1": 3}
        read = s.watch("k", '"x:1"', wait_s=1)
    assert read is not None
    assert read.value == "new"
    assert a.requests[0].headers["if-none-match"] == '"x:1"'
    assert a.requests[0].path == "/kvs/k?wait=1"


def test_requested_wait_extends_the_timeouts(replicas: list[FakeReplica], session: OpenSession) -> None:
    def slow(handler: Handler) -> None:
        time.sleep(0.4)
        found("late")(handler)

    replicas[0].respond_with(slow)
    with session(replicas[0], timeout_s=0.3, attempt_timeout_s=0.2) as s:
        assert s.get("k", wait_s=1).value == "late"


# ---- rejected requests


@pytest.mark.parametrize(
    ("status", "error"),
    [(400, Rejected), (401, NotAllowed), (403, NotAllowed), (405, Rejected), (413, Rejected), (507, Rejected)],
)
def test_rejected_request_is_not_retried(
    replicas: list[FakeReplica], status: int, error: type[Rejected], session: OpenSession
) -> None:
    a, b, _ = replicas
    a.respond_with(json_response(status, {"error": "no"}))
    with session(a, b) as s, pytest.raises(error) as caught:
        s.put("k", 1)
    assert caught.value.status == status
    assert caught.value.error == "no"
    assert caught.value.replica == a.url
    assert len(a.requests) == 1
    assert b.requests == []


def test_failed_precondition_has_the_current_etag(replicas: list[FakeReplica], session: OpenSession) -> None:
    replicas[0].respond_with(
        json_response(412, {"error": "Precondition failed", "causal-metadata": {"b@1": 9}}, ETag='"b@1:9"')
    )
    with session(replicas[0]) as s:
        with pytest.raises(PreconditionFailed) as caught:
            s.put("k", 1, if_none_match=True)
        assert caught.value.etag == '"b@1:9"'
        assert s.metadata == {"b@1": 9}
    assert replicas[0].requests[0].headers["if-none-match"] == "*"


def test_404_without_metadata_is_not_an_absent_key(replicas: list[FakeReplica], session: OpenSession) -> None:
    replicas[0].respond_with(json_response(404, {"error": "not here"}))
    with session(replicas[0]) as s, pytest.raises(Rejected):
        s.get("k")


def test_error_classes() -> None:
    for error in (Rejected, NotAllowed, PreconditionFailed, Unavailable, DependenciesMissing, Uncertain):
        assert issubclass(error, ClientError)
    assert issubclass(DependenciesMissing, Unavailable)
    assert issubclass(PreconditionFailed, Rejected)


# ---- failover


def test_session_stays_at_one_replica(replicas: list[FakeReplica], session: OpenSession) -> None:
    for replica in replicas:
        replica.respond_with(found(1))
    with session(*replicas) as s:
        for _ in range(5):
            assert s.get("k").replica == replicas[0].url
        s.stick_to(replicas[2].url)
        assert s.get("k").replica == replicas[2].url
        with pytest.raises(ValueError, match="not in tuple"):
            s.stick_to("127.0.0.1:1")


@pytest.mark.parametrize("write", [False, True])
def test_fails_over_from_an_unreachable_replica_and_stays(
    replicas: list[FakeReplica], write: bool, session: OpenSession
) -> None:
    b = replicas[1]
    b.respond_with(stored() if write else found(1))
    with session(unused_address(), b) as s:
        for _ in range(3):
            reply = s.put("k", 1) if write else s.get("k")
            assert reply.replica == b.url
        assert s.replica == b.url
    assert len(b.requests) == 3


@pytest.mark.parametrize("write", [False, True])
def test_fails_over_from_503_at_once(replicas: list[FakeReplica], write: bool, session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(unavailable("30"))
    b.respond_with(stored() if write else found(1))
    started = time.monotonic()
    with session(a, b) as s:
        assert (s.put("k", 1) if write else s.get("k")).replica == b.url
    assert time.monotonic() - started < 0.3
    assert len(a.requests) == 1


def test_failover_tries_the_replica_that_answered_last_first(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, c = replicas
    c.respond_with(stored({"c@1": 1}), found("v"))
    a.respond_with(unavailable(missing={"c@1": {"has": 0, "needs": 1}}))
    with session(a, b, c) as s:
        s.stick_to(c.url)
        s.put("k", "v")
        s.stick_to(a.url)
        assert s.get("k").replica == c.url
    assert [len(each.requests) for each in replicas] == [1, 0, 2], "b may lack what c has"


def test_retry_after_is_respected(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(unavailable("1"), found(1))
    started = time.monotonic()
    with session(a, timeout_s=3) as s:
        assert s.get("k").value == 1
    assert 1.0 <= time.monotonic() - started < 1.6
    assert len(a.requests) == 2


def test_retry_after_beyond_the_deadline_fails_at_once(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(unavailable("30"))
    b.respond_with(unavailable(format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)))
    started = time.monotonic()
    with session(a, b, timeout_s=3) as s, pytest.raises(Unavailable) as caught:
        s.put("k", 1)
    assert time.monotonic() - started < 1
    assert [replica for replica, _ in caught.value.attempts] == [a.url, b.url]
    assert "Replica is catching up" in str(caught.value)


def test_deadline_bounds_all_attempts(replicas: list[FakeReplica], session: OpenSession) -> None:
    started = time.monotonic()
    with session(unused_address(), unused_address(), timeout_s=0.5) as s, pytest.raises(Unavailable):
        s.get("k")
    assert time.monotonic() - started < 1


def test_missing_dependencies_are_reported(replicas: list[FakeReplica], session: OpenSession) -> None:
    replicas[0].respond_with(unavailable("9", missing={"b@1": [1, 2]}))
    with session(replicas[0], timeout_s=0.5) as s, pytest.raises(DependenciesMissing) as caught:
        s.get("k")
    assert caught.value.missing == {"b@1": [1, 2]}


@pytest.mark.parametrize("responder", UNUSABLE_RESPONSES)
def test_failed_read_is_retried_at_another_replica(
    replicas: list[FakeReplica], responder: Responder, session: OpenSession
) -> None:
    a, b, _ = replicas
    a.respond_with(responder)
    b.respond_with(found(1))
    with session(a, b) as s:
        assert s.get("k").replica == b.url


def test_all_attempts_send_the_same_metadata(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(unavailable("9"))
    b.respond_with(stored({"a@1": 5, "b@1": 1}))
    with session(a, b, metadata={"a@1": 5}) as s:
        s.put("k", 1)
    assert a.requests[0].body == b.requests[0].body


def test_each_attempt_is_reported(replicas: list[FakeReplica], session: OpenSession) -> None:
    b = replicas[0]
    b.respond_with(unavailable("0.01"), stored({"b@1": 1}))
    attempts: list[Attempt] = []
    with session(unused_address(), b, on_attempt=attempts.append, attempt_timeout_s=2.0) as s:
        s.put("k", 1, wait_s=0.5)
    assert [attempt.status for attempt in attempts if attempt.replica == b.url] == [503, 201]
    assert attempts[-1].body["causal-metadata"] == {"b@1": 1}
    assert attempts[-1].error == ""
    assert attempts[0].status is None
    assert "no connection" in attempts[0].error
    for attempt in attempts:
        assert attempt.wait_s == 0.5
        assert 0.0 < attempt.timeout_s <= 2.5
        assert attempt.began_s <= attempt.ended_s


# ---- writes with an unknown outcome


@pytest.mark.parametrize("responder", UNUSABLE_RESPONSES)
@pytest.mark.parametrize("call", WRITES, ids=["put", "delete", "transaction"])
def test_write_with_unknown_outcome_is_not_retried(
    replicas: list[FakeReplica], responder: Responder, call: Call, session: OpenSession
) -> None:
    a, b, _ = replicas
    a.respond_with(responder)
    b.respond_with(stored({"b@1": 1}))
    with session(a, b, metadata={"a@1": 1}) as s:
        with pytest.raises(Uncertain) as caught:
            call(s)
        assert caught.value.replica == a.url
        assert s.metadata == {"a@1": 1}
    assert len(a.requests) == 1
    assert b.requests == []


@pytest.mark.parametrize(("response", "is_tls"), [(tls_alert, True), (close_connection, False)])
def test_an_answer_in_tls_to_plain_http_is_named(
    replicas: list[FakeReplica], session: OpenSession, response: Responder, is_tls: bool
) -> None:
    a, *_ = replicas
    a.respond_with(response)
    with session(a) as s, pytest.raises(Uncertain, match="the connection broke") as caught:
        s.put("k", 1)
    assert ("the replica answers with TLS, so its URL begins with https://" in str(caught.value)) is is_tls


def test_transaction_without_writes_is_retried_like_a_read(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(close_connection)
    b.respond_with(json_response(200, {"values": {"k": 1}, "missing-keys": [], "causal-metadata": {}}))
    with session(a, b) as s:
        assert s.transaction(["k"]).values == {"k": 1}


def test_retry_writes_tries_the_same_replica_first(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(close_connection, stored(status=200))
    b.respond_with(stored())
    with session(a, b, retry_writes=True) as s:
        written = s.put("k", 1)
    assert written.replica == a.url
    assert written.maybe_twice
    assert len(a.requests) == 2
    assert a.requests[0].body == a.requests[1].body
    assert b.requests == []


def test_retry_writes_fails_over_after_a_second_failure(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(close_connection)
    b.respond_with(stored())
    with session(a, b, retry_writes=True) as s:
        written = s.put("k", 1)
        assert written.replica == b.url
        assert written.maybe_twice
        assert not s.put("k", 2).maybe_twice
    assert len(a.requests) == 2


def test_retry_writes_without_success_raises_uncertain(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(close_connection, unavailable("9"))
    b.respond_with(unavailable("9"))
    with session(a, b, retry_writes=True, timeout_s=0.7) as s, pytest.raises(Uncertain):
        s.put("k", 1)


def test_412_after_an_unknown_outcome_raises_uncertain(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(
        close_connection, json_response(412, {"error": "Precondition failed", "causal-metadata": {}}, ETag='"a@1:2"')
    )
    with session(a, retry_writes=True) as s, pytest.raises(Uncertain):
        s.put("k", 1, if_match='"a@1:1"')
