"""``manage.py kvs explain``: what became of a key, in words."""

from __future__ import annotations

import json
from typing import Any

from replication.explain import MAX_PARTS_LISTED as LISTED_BY_A_REPLICA
from store.management.explanation import MAX_PARTS_LISTED
from tests.support.fake_replicas import FakeReplica, json_response, no_response
from tests.support.kvs_command import fails, replica, run
from tests.support.ports import free_ports

__all__ = ["replica"]

ORIGIN, OTHER = "a:1@0000000000000001", "b:1@0000000000000002"
EXPLAINED: dict[str, Any] = {
    "key": "views/1",
    "replica_id": ORIGIN,
    "version_count": 2,
    "merged": {"type": "counter", "value": 6, "versions": 2},
    "note": f"Update {ORIGIN}:9 deleted this key.",
    "versions": [
        {
            "dot": [OTHER, 3],
            "value": 5,
            "value_bytes": 1,
            "type": "counter",
            "parts": [
                {"replica": ORIGIN, "first": 2, "last": 7, "net": 4, "ended": False},
                {"replica": OTHER, "first": 3, "last": 3, "net": -1, "ended": False},
                {"replica": "c:1@0000000000000003", "first": 4, "last": 4, "net": 2, "ended": True},
            ],
            "past": {OTHER: 3, ORIGIN: 7},
            "timestamp": 1795391360636245,
            "expires": 1795391420.5,
            "members": [
                {"address": "a:1", "state": "alive", "has": True},
                {"address": "b:1", "state": "down", "has": False},
                {"address": "c:1", "state": "alive", "has": None},
            ],
        }
    ],
    "pending": [{"dot": [OTHER, 5], "waits_for": [ORIGIN, 8], "deletes": True, "since_s": 1.5}],
}


def test_explain_says_why_a_key_reads_as_it_does(replica: FakeReplica) -> None:
    replica.respond_with(json_response(200, EXPLAINED))
    assert run("explain", "views/1").splitlines() == [
        f"At {ORIGIN}, the key has 2 concurrent versions.",
        "They merge to 6 (counter).",
        f"Update {ORIGIN}:9 deleted this key.",
        "",
        f"After {OTHER}:3, the counter is 5",
        "  at 2026-11-22T23:49:20.636Z, expires at 2026-11-22T23:50:20.500Z",
        f"  +4 by {ORIGIN}, in its updates 2 to 7",
        f"  -1 by {OTHER}, in its update 3",
        "  +2 by processes that have ended",
        f"  causal past, itself included: {ORIGIN}:7, {OTHER}:3",
        "  a:1 has it, b:1 (down) has not yet got it, c:1 is not known to have it",
        "",
        f"{OTHER}:5 will delete it; it waits for {ORIGIN}:8 (1.5 s)",
    ]
    (request,) = replica.requests
    assert (request.method, request.path) == ("GET", "/replication/explain/views%2F1")
    replica.respond_with(json_response(200, EXPLAINED))
    assert json.loads(run("explain", "views/1", "--json")) == EXPLAINED
    gone = EXPLAINED | {"version_count": 0, "merged": None, "versions": [], "pending": [], "note": "\x1b[31m"}
    replica.respond_with(json_response(200, gone))
    assert run("explain", "k") == f"At {ORIGIN}, the key is absent.\n'\\x1b[31m'\n"


def test_explain_says_who_added_each_part_of_a_set_and_of_a_map(replica: FakeReplica) -> None:
    version = EXPLAINED["versions"][0]
    parts: list[dict[str, Any]] = [
        {"element": "red\x1b", "added_by": [[ORIGIN, 7], [OTHER, 3]]},
        {"field": "name", "set_by": [OTHER, 3], "timestamp": 1795391360636245, "value": {"first": "Ann"}},
    ]
    versions = [
        version | {"type": "set", "value": ["red\x1b"], "parts": parts[:1] * MAX_PARTS_LISTED},
        version | {"type": "map", "value": None, "value_bytes": 5_000_000, "parts": parts[1:]},
    ]
    replica.respond_with(json_response(200, EXPLAINED | {"merged": None, "versions": versions}))
    lines = run("explain", "k").splitlines()
    assert [line for line in lines if line.startswith("After")] == [
        f'After {OTHER}:3, the set is ["red\\u001b"]',
        f"After {OTHER}:3, the map is too long to be listed",
    ]
    assert lines.count(f'  "red\\u001b", added by {ORIGIN}:7, {OTHER}:3') == MAX_PARTS_LISTED
    assert f"  (the first {MAX_PARTS_LISTED} parts; there may be more)" in lines
    assert f'  "name": {{"first": "Ann"}}, set by {OTHER}:3 at 2026-11-22T23:49:20.636Z' in lines
    assert MAX_PARTS_LISTED == LISTED_BY_A_REPLICA


def test_explain_shortens_long_values_and_knows_those_that_are_left_out(replica: FakeReplica) -> None:
    version = EXPLAINED["versions"][0] | {"type": "json", "expires": 1e18}
    values: list[tuple[Any, int]] = [("x" * 300, 302), (None, 4), (None, 5_000_000)]
    versions = [version | {"value": value, "value_bytes": size} for value, size in values]
    replica.respond_with(json_response(200, EXPLAINED | {"merged": None, "versions": versions}))
    wrote = [line.partition(" wrote ")[2] for line in run("explain", "k").splitlines() if " wrote " in line]
    assert wrote == [f'"{"x" * 199}…', "null", "a value that is too long to be listed"]


def test_explain_fails_with_the_reason(replica: FakeReplica) -> None:
    replica.respond_with(json_response(403, {"error": "Token 'a' may not"}))
    error = fails("explain", "k")
    assert (error.returncode, str(error)) == (2, f"127.0.0.1:{replica.port} answers 403: Token 'a' may not")
    replica.respond_with(no_response(2))
    assert "does not answer: no response in time" in str(fails("explain", "k", "--timeout", "0.2"))
    assert "nobody listens there" in str(fails("explain", "k", "--at", f"127.0.0.1:{free_ports(1)}"))
