"""Both sessions against fake replicas: the history that they record, and the change feed.

Every test runs with ``Session`` and with ``AsyncSession``.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from causeway_client import (
    Delete,
    JsonLines,
    Put,
    Session,
    Unavailable,
    Uncertain,
)
from causeway_client.connections import _never_sent
from causeway_client.history import advance
from tests.support.fake_replicas import (
    FakeReplica,
    Handler,
    Responder,
    close_connection,
    found,
    json_response,
    stored,
    unavailable,
)
from tests.support.fake_sessions import OpenSession, replicas, session
from tools import history

__all__ = ["replicas", "session"]


# ---- the history


def test_response_metadata_replaces_the_metadata_of_the_request(
    replicas: list[FakeReplica], session: OpenSession
) -> None:
    a = replicas[0]
    a.respond_with(found(1, {"a@2": 1}, lost={"a@1": [4, 5]}), found(1, {"a@2": 1}))
    with session(a, metadata={"a@1": 5}) as s:
        assert s.get("k").lost == {"a@1": (4, 5)}
        assert s.metadata == {"a@2": 1}
        assert s.get("k").lost == {}
        assert s.lost == {"a@1": (4, 5)}
    assert a.requests[1].body["causal-metadata"] == {"a@2": 1}


@pytest.mark.parametrize(
    ("current", "sent", "returned", "merged"),
    [
        ({}, {}, {"a": 1}, {"a": 1}),
        ({"a": 3}, {"a": 1}, {"a": 2, "b": 1}, {"a": 3, "b": 1}),  # other threads got responses in between
        ({"a": 1, "c": 2}, {"a": 1}, {"m": 1}, {"m": 1, "c": 2}),  # a marker replaces a:1
        ({"a": 2}, {"a": 1}, {"m": 1}, {"a": 2, "m": 1}),  # … but not a:2
        ({"m": 1}, {"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "m": 1}),
    ],
)
def test_metadata_of_concurrent_responses_is_merged(current: Any, sent: Any, returned: Any, merged: Any) -> None:
    assert advance(current, sent, returned) == merged


def test_follow_and_fork(replicas: list[FakeReplica], session: OpenSession) -> None:
    replicas[0].respond_with(found(1, {"a": 9}))
    with session(replicas[0], metadata={"a": 5, "b": 1}) as s:
        s.follow({"a": 2, "b": 3, "c": 1})
        assert s.metadata == {"a": 5, "b": 3, "c": 1}
        with s.fork() as child:
            child.get("k")
            assert child.metadata == {"a": 9}
        assert s.metadata == {"a": 5, "b": 3, "c": 1}


def test_threads_share_one_history(replicas: list[FakeReplica], session: OpenSession) -> None:
    """16 threads write. Each response adds one entry to the metadata. At the end the session has all entries."""
    counter, lock = 0, threading.Lock()

    def count(handler: Handler) -> None:
        nonlocal counter
        with lock:
            counter += 1
            mine = counter
        past = replicas[0].requests[-1].body["causal-metadata"]
        stored(past | {f"r{mine}": 1})(handler)

    replicas[0].respond_with(count)
    with session(replicas[0], timeout_s=20, attempt_timeout_s=20) as s:
        threads = [threading.Thread(target=lambda: [s.put("k", n) for n in range(10)]) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert counter == 160
        assert s.metadata == {f"r{n}": 1 for n in range(1, 161)}


def test_the_dot_of_a_delete_and_of_a_conflict_are_recorded(
    replicas: list[FakeReplica], tmp_path: Path, session: OpenSession
) -> None:
    """The tag after a delete names no update, and that of a key in conflict names several."""
    a = replicas[0]
    address = a.url.rpartition("/")[2]
    own = [f"{address}@{incarnation:016x}" for incarnation in (1, 2)]
    metadata = {own[0]: 9, own[1]: 5, "other:1@0000000000000003": 7}
    a.respond_with(
        json_response(200, {"result": "deleted", "causal-metadata": metadata}, ETag='"absent"'),
        json_response(200, {"result": "found", "value": 1, "conflicts": 2, "causal-metadata": {}}, ETag='"b@1:2+0af3"'),
    )
    path = tmp_path / "history.jsonl"
    with JsonLines(path) as recorder, session(a, recorder=recorder) as s:
        s.delete("k")
        s.get("k")
    deleted, read = history.load(path.read_bytes())
    assert deleted.update == f"{own[1]}:5"
    assert read.versions == ("b@1:2",)


def test_recorded_operations_form_a_history(replicas: list[FakeReplica], tmp_path: Path, session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(
        json_response(201, {"result": "created", "causal-metadata": {}}, ETag='"a@1:1"'),
        found("v"),
        json_response(404, {"error": "Key does not exist", "causal-metadata": {}}),
        close_connection,
        json_response(200, {"values": {"k": "v"}, "missing-keys": ["q"], "causal-metadata": {}}, ETag='"a@1:2"'),
        unavailable("9"),
    )
    path = tmp_path / "history.jsonl"
    with JsonLines(path) as recorder, session(a, recorder=recorder, name="ann", timeout_s=0.5) as s:
        s.put("k", "v", ttl_s=60)
        s.get("k")
        s.delete("absent")
        with pytest.raises(Uncertain):
            s.put("k2", {"x": None})
        s.transaction(["k", "q"], [Put("n", None), Delete("d")])
        with pytest.raises(Unavailable):
            s.put("k", 2)
        child = s.fork()
        child.follow({}, after="bob#7")
        assert s.last_operation == "ann#4"
        a.respond_with(found("v"))
        child.get("k")
        child.close()
    operations = history.load(path.read_bytes())
    assert [(op.session, op.kind, op.status, op.id) for op in operations] == [
        ("ann", "put", "ok", "ann#0"),
        ("ann", "get", "ok", "ann#1"),
        ("ann", "get", "ok", "ann#2"),
        ("ann", "put", "unknown", "ann#3"),
        ("ann", "txn", "ok", "ann#4"),
        (child.name, "get", "ok", f"{child.name}#0"),
    ]
    put, get, absent, unknown, txn, last = operations
    assert put.writes == (("k", "v"),)
    assert put.expiring
    assert put.update == "a@1:1"
    assert get.reads == (("k", "v"),)
    assert get.versions == ("a@1:1",)
    assert absent.reads == (("absent", None),)
    assert unknown.writes == (("k2", '{"x": null}'),)
    assert txn.reads == (("k", "v"), ("q", None))
    assert txn.writes == (("n", "null"), ("d", None))
    assert last.after == ("ann#4", "bob#7")
    assert history.check(operations[:-1]).ok


@pytest.mark.parametrize("replicas", [[], "127.0.0.1:8090", ["ftp://x:1"], ["127.0.0.1:8090/path"], [""]])
def test_invalid_addresses_are_rejected(replicas: Any) -> None:
    with pytest.raises(ValueError, match="host:port"):
        Session(replicas)


def test_address_forms() -> None:
    s = Session(["127.0.0.1:8090", "[::1]:8090", "https://kv.example:443/", "http://my_replica:8090"])
    assert s.replicas == (
        "http://127.0.0.1:8090",
        "http://[::1]:8090",
        "https://kv.example:443",
        "http://my_replica:8090",
    )


def test_invalid_certificate_means_that_nothing_was_sent() -> None:
    import ssl

    import requests
    import urllib3.exceptions

    inner = urllib3.exceptions.SSLError(ssl.SSLCertVerificationError("self-signed"))
    pool: Any = None
    assert _never_sent(requests.exceptions.SSLError(urllib3.exceptions.MaxRetryError(pool, "/", inner)))
    assert not _never_sent(requests.exceptions.ReadTimeout("x"))


# -- the change feed -------------------------------------------------------------------------------------------------


def changes(*keys: str, token: str, reset: bool = False, more: bool = False, **fields: Any) -> Responder:
    content = [{"key": key, "value": 1, "etag": '"a@1:1"', "type": "json"} for key in keys]
    body = {"changes": content, "reset": reset, "more": more, "next": token, "causal-metadata": {}}
    return json_response(200, body | fields)


def test_changes_follow_the_token_and_skip_responses_without_news(
    replicas: list[FakeReplica], session: OpenSession
) -> None:
    a = replicas[0]
    a.respond_with(
        changes("p/a", token="1", reset=True, more=True),
        changes(token="2", reset=True),
        changes(token="3"),
        changes("p/b", token="4"),
    )
    with session(a) as s:
        feed = s.changes("p/", wait_s=5)
        found = [next(feed) for _ in range(3)]
    assert [each.next for each in found] == ["1", "2", "4"]
    assert [[change.key for change in each.changes] for each in found] == [["p/a"], [], ["p/b"]]
    assert [(each.reset, each.more) for each in found] == [(True, True), (True, False), (False, False)]
    assert [request.path for request in a.requests] == [
        "/changes?prefix=p%2F&wait=5",
        "/changes?prefix=p%2F&since=1&wait=5",
        "/changes?prefix=p%2F&since=2&wait=5",
        "/changes?prefix=p%2F&since=3&wait=5",
    ]


def test_every_response_of_a_feed_is_recorded(
    replicas: list[FakeReplica], tmp_path: Path, session: OpenSession
) -> None:
    """In the format of tools/history, also the responses that are not yielded: a record has no gaps."""
    a, path = replicas[0], tmp_path / "history.jsonl"
    a.respond_with(
        changes("p/a", token="1", reset=True, more=True),
        changes("p/b", token="2", reset=True),
        changes(token="3"),
        changes(token="4", changes=[{"key": "p/a", "deleted": True}]),
    )
    with JsonLines(path) as recorder, session(a, recorder=recorder, name="eve") as s:
        feed = s.changes("p/", wait_s=5)
        for _ in range(3):
            next(feed)
    record = history.load(path.read_bytes())
    assert [(each.id, each.kind, each.prefix) for each in record] == [(f"eve#{n}", "changes", "p/") for n in range(4)]
    assert [(each.since, each.next) for each in record] == [("", "1"), ("1", "2"), ("2", "3"), ("3", "4")]
    assert [(each.reset, each.more) for each in record] == [(True, True), (True, False), *[(False, False)] * 2]
    assert [each.reads for each in record] == [(("p/a", 1),), (("p/b", 1),), (), (("p/a", None),)]
    assert [each.versions for each in record] == [("a@1:1",), ("a@1:1",), (), (None,)]
    assert {each.replica for each in record} == {a.url}


def test_changes_go_on_at_the_next_replica(replicas: list[FakeReplica], session: OpenSession) -> None:
    a, b, _ = replicas
    a.respond_with(changes("k", token="1", reset=True), close_connection, close_connection)
    b.respond_with(
        json_response(
            200,
            {"changes": [{"key": "k", "deleted": True}], "reset": False, "more": False, "next": "2"}
            | {"causal-metadata": {}},
        )
    )
    with session(a, b) as s:
        feed = s.changes()
        next(feed)
        found = next(feed)
    assert [(change.key, change.deleted) for change in found.changes] == [("k", True)]
    assert b.requests[0].path == "/changes?since=1&wait=30"


def test_delete_range_repeats_until_nothing_is_left(replicas: list[FakeReplica], session: OpenSession) -> None:
    a = replicas[0]
    a.respond_with(
        json_response(200, {"deleted": 1000, "more": True, "causal-metadata": {}}),
        json_response(200, {"deleted": 3, "more": False, "causal-metadata": {}}),
    )
    with session(a) as s:
        assert s.delete_range("p/") == 1003
    assert [(request.method, request.path) for request in a.requests] == [("DELETE", "/kvs?prefix=p%2F")] * 2
