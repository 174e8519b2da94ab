"""PATCH at one replica (contract 2.10): values, errors, and everything that works for plain values too."""

from __future__ import annotations

import math
from typing import Any

import pytest

from store.merging import Increment, SetChange, State, applied
from store.values import store_state
from store.versions import Update, Write
from tests.support.api import LIMITS, PEER_ID, Api, api, make_store

__all__ = ["api"]

INT64 = 2**63 - 1
TOO_DEEP: Any = 1
for _ in range(101):
    TOO_DEEP = [TOO_DEEP]


def patch(api: Api, path: str, body: dict[str, Any], **options: Any) -> Any:
    return api.ask("PATCH", path, body, **options)


@pytest.mark.parametrize(
    ("bodies", "value", "kind"),
    [
        ([{"increment": 5}, {"increment": -7}], -2, "counter"),
        ([{"increment": 0}], 0, "counter"),
        ([{"increment": 2.0}], 2, "counter"),
        ([{"increment": INT64}, {"increment": -INT64}], 0, "counter"),
        ([{"add": ["b", "a", 2, 1]}, {"remove": ["b", 9]}], [1, 2, "a"], "set"),
        ([{"add": [1, 1.0, 1]}], [1], "set"),
        ([{"add": [1e300, -0.5, "1e300", ""]}], [-0.5, 1e300, "", "1e300"], "set"),
        ([{"add": ["x"]}, {"remove": ["x"]}], [], "set"),
        ([{"add": [2**64 - 1, -(2**63), 5]}, {"remove": [5]}], [-(2**63), 2**64 - 1], "set"),
        (
            [{"set": {"b": [1, {"c": None}], "a": "ä"}}, {"set": {"d": 1}, "unset": ["a"]}],
            {"b": [1, {"c": None}], "d": 1},
            "map",
        ),
        ([{"set": {"": 1.5, "f": 1}}, {"set": {"f": 2}}], {"": 1.5, "f": 2}, "map"),
        ([{"set": {"f": 1}}, {"unset": ["f"]}], {}, "map"),
    ],
)
def test_values_that_merge(api: Api, bodies: list[Any], value: Any, kind: str) -> None:
    statuses = [patch(api, "/kvs/k", body) for body in bodies]
    assert [(each.status, each.body["result"]) for each in statuses[:1]] == [(201, "created")]
    assert all((each.status, each.body["result"]) == (200, "merged") for each in statuses[1:])
    found = api.get("/kvs/k")
    assert (found.body["value"], found.body["type"]) == (value, kind)
    assert found.headers["ETag"] == statuses[-1].headers["ETag"]
    assert "conflicts" not in found.body
    page = api.get("/kvs?meta=true&values=true").body
    assert page["items"] == {"k": value}
    assert (page["meta"]["k"]["type"], page["meta"]["k"]["conflicts"]) == (kind, 1)
    [change] = api.get("/changes").body["changes"]
    assert (change["value"], change["type"]) == (value, kind)
    [sibling] = api.get("/kvs/k?siblings=true").body["siblings"]
    assert (sibling["value"], sibling["type"]) == (value, kind)


COUNTER, SET, MAP = {"increment": 1}, {"add": ["a"]}, {"set": {"f": 1}}
ONE_OPERATION = "PATCH has one operation"
NO_OPERATION = "PATCH request does not specify an operation"
NOT_64_BIT = "has a number that is neither a 64-bit integer nor a finite double"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, NO_OPERATION),
        ({"causal-metadata": {}}, NO_OPERATION),
        ({"w": 1}, NO_OPERATION),
        ({"increment": 1, "add": ["a"]}, ONE_OPERATION),
        ({"increment": 1, "set": {"a": 1}}, ONE_OPERATION),
        ({"increment": 1, "unset": ["a"]}, ONE_OPERATION),
        ({"remove": ["a"], "unset": ["a"]}, ONE_OPERATION),
        ({"add": ["a"], "set": {"a": 1}}, ONE_OPERATION),
        ({"increment": "1"}, "has to be"),
        ({"increment": None}, "has to be"),
        ({"increment": True}, "has to be"),
        ({"increment": [1]}, "has to be"),
        ({"increment": 1.5}, "64-bit integer"),
        ({"increment": INT64 + 1}, "64-bit integer"),
        ({"increment": -INT64 - 2}, "64-bit integer"),
        ({"increment": 10**30}, "64-bit integer"),
        ({"increment": 1e19}, "64-bit integer"),
        ({"add": "a"}, "has to be"),
        ({"add": None}, "has to be"),
        ({"add": {"a": 1}}, "has to be"),
        ({"add": [None]}, "has to be"),
        ({"add": [True]}, "has to be"),
        ({"add": [["a"]]}, "has to be"),
        ({"add": [{"a": 1}]}, "has to be"),
        ({"add": [2**64]}, NOT_64_BIT),
        ({"remove": [-INT64 - 2]}, NOT_64_BIT),
        ({"remove": 5}, "has to be"),
        ({"add": ["a"], "remove": ["a"]}, "add and remove both have 'a'"),
        ({"add": [1], "remove": [1.0]}, "add and remove both have '1'"),
        ({"set": ["f"]}, "has to be"),
        ({"set": None}, "has to be"),
        ({"set": {"f": INT64 * 4}}, "64-bit integer"),
        ({"set": {"f": TOO_DEEP}}, "nested too deeply"),
        ({"unset": {"f": 1}}, "has to be"),
        ({"unset": [1]}, "has to be"),
        ({"set": {"f": 1}, "unset": ["f"]}, "set and unset both have 'f'"),
        ({"increment": 1, "ttl": 0}, "has to be"),
        ({"increment": 1, "ttl": -1}, "has to be"),
        ({"increment": 1, "ttl": "5"}, "has to be"),
        ({"ttl": 1e11}, "has to be"),
        ({"increment": 1, "w": 0}, "has to be"),
        ({"increment": 1, "w": "some"}, "has to be"),
        ({"increment": 1, "w-timeout": -1}, "has to be"),
        ({"increment": 1, "value": 1}, "unknown field `value`"),
        ({"incr": 1}, "unknown field `incr`"),
        ({"increment": 1, "TTL": 5}, "unknown field `TTL`"),
        ({"increment": 1, "causal-metadata": 5}, "has to be"),
        ({"increment": 1, "causal-metadata": {"a": -1}}, "has to be"),
    ],
)
def test_bad_operations_are_rejected_and_change_nothing(api: Api, body: dict[str, Any], message: str) -> None:
    """Contract 2.10: 400 for bad operations. The same operations are bad in a transaction."""
    before = api.state()
    response = patch(api, "/kvs/k", body)
    assert response.status == 400
    assert message in response.body["error"]
    inside = {name: value for name, value in body.items() if name not in ("causal-metadata", "w", "w-timeout", "value")}
    if inside == body:
        response = api.ask("POST", "/kvs", {"writes": [{"key": "k", **inside}]})
        assert response.status == 400, response.body
    assert api.state() == before


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"5", b'{"increment":1', b'{"increment":1}x', b'{"add":["\xff"]}'])
def test_a_body_that_is_no_object_is_rejected(api: Api, raw: bytes) -> None:
    assert api.ask("PATCH", "/kvs/k", raw=raw).status == 400


def test_other_content_types_are_rejected(api: Api) -> None:
    for content_type in (
        "application/octet-stream",
        "application/x-www-form-urlencoded",
        "application/json-patch+json",
    ):
        assert api.ask("PATCH", "/kvs/k", raw=b"{}", content_type=content_type).status == 415


@pytest.mark.parametrize(
    "body", [{"remove": ["a"]}, {"unset": ["f"]}, {"ttl": 5}, {"ttl": None}, {"add": []}, {"set": {}}]
)
def test_what_creates_nothing_needs_a_key(api: Api, body: dict[str, Any]) -> None:
    """Contract 2.10: ``remove``, ``unset`` or ``ttl`` alone on an absent key get 404."""
    response = patch(api, "/kvs/k", body)
    assert (response.status, response.body["error"]) == (404, "Key does not exist")
    assert response.headers["ETag"] == '"absent"'
    response = api.ask("POST", "/kvs", {"writes": [{"key": "other", "value": 1}, {"key": "k", **body}]})
    assert (response.status, response.body["key"]) == (404, "k")
    assert api.get("/kvs/other").status == 404


@pytest.mark.parametrize("held", [COUNTER, SET, MAP, {"value": {"f": 1}}])
@pytest.mark.parametrize("body", [COUNTER, SET, MAP])
def test_another_type_is_a_conflict(api: Api, held: dict[str, Any], body: dict[str, Any]) -> None:
    """Contract 2.10: 409, and nothing changes. The metadata covers what is there."""
    first = api.ask("PUT" if "value" in held else "PATCH", "/kvs/k", held)
    response = patch(api, "/kvs/k", body)
    if held == body:
        assert response.status == 200
        return
    assert response.status == 409
    assert response.body["error"].startswith("Key holds a ")
    assert response.headers["ETag"] == first.headers["ETag"]
    assert response.metadata == first.metadata
    assert api.ask("POST", "/kvs", {"writes": [{"key": "k", **body}]}).status == 409


def test_siblings_that_cannot_merge_are_a_conflict_until_somebody_resolves_it(api: Api) -> None:
    patch(api, "/kvs/k", COUNTER)
    api.receive_update("k", b"1")
    assert api.get("/kvs/k").body["conflicts"] == 2
    for body in (COUNTER, {"ttl": 5}):
        response = patch(api, "/kvs/k", body)
        assert (response.status, response.body["error"][:18]) == (409, "Key holds siblings")
    assert api.put("/kvs/k", 5).status == 200
    assert patch(api, "/kvs/k", {"ttl": 5}).status == 200


def test_put_and_delete_replace_what_a_patch_made(api: Api) -> None:
    patch(api, "/kvs/k", COUNTER)
    assert api.put("/kvs/k", "plain").status == 200
    assert "type" not in api.get("/kvs/k").body
    assert api.delete("/kvs/k").status == 200
    assert patch(api, "/kvs/k", SET).status == 201


def test_sums_stay_within_64_bits(api: Api) -> None:
    patch(api, "/kvs/k", {"increment": INT64})
    response = patch(api, "/kvs/k", COUNTER)
    assert (response.status, "64-bit" in response.body["error"]) == (400, True)
    assert api.get("/kvs/k").body["value"] == INT64


def test_concurrent_increments_may_leave_64_bits_together(api: Api) -> None:
    """The sum is shown as it is. A PATCH may bring it nearer, but not take it further away."""
    for n in range(3):
        state = applied(State("counter"), Increment(INT64), (PEER_ID, n + 1), 1, None)
        update = Update(PEER_ID, n + 1, 2**61 + n, {}, (Write("k", store_state(state)),))
        api.store.receive([update], api.store_now())
    assert api.get("/kvs/k").body["value"] == 3 * INT64
    assert api.get("/kvs?values=true").body["items"] == {"k": 3 * INT64}
    assert patch(api, "/kvs/k", COUNTER).status == 400
    for left in (2, 1, 0):
        assert patch(api, "/kvs/k", {"increment": -INT64}).status == 200
        assert api.get("/kvs/k").body["value"] == left * INT64
    assert api.ask("POST", "/kvs", {"writes": [{"key": "k", **COUNTER}]}).status == 200


@pytest.mark.parametrize(
    ("body", "empty"),
    [(SET, {"add": []}), (SET, {"remove": []}), (MAP, {"set": {}}), (MAP, {"unset": []}), (COUNTER, {"increment": 0})],
)
def test_an_operation_that_changes_nothing_is_a_write(api: Api, body: dict[str, Any], empty: dict[str, Any]) -> None:
    first = patch(api, "/kvs/k", body)
    value = api.get("/kvs/k").body["value"]
    again = patch(api, "/kvs/k", empty)
    assert (again.status, again.body["result"]) == (200, "merged")
    assert again.headers["ETag"] != first.headers["ETag"]
    assert api.get("/kvs/k").body["value"] == value


def test_of_a_repeated_name_the_last_counts(api: Api) -> None:
    assert api.ask("PATCH", "/kvs/k", raw=b'{"set":{"f":1,"f":2},"set":{"f":3,"f":4}}').status == 201
    assert api.get("/kvs/k").body["value"] == {"f": 4}


def test_sizes_are_limited(api: Api) -> None:
    """Contract 2.10: limits on elements and bytes. A PATCH that makes the value smaller passes."""
    assert patch(api, "/kvs/k", {"set": {"f": "x" * LIMITS.max_value_bytes}}).status == 413
    patch(api, "/kvs/k", {"set": {f"f{n}": "x" * 900 for n in range(10)}})
    assert patch(api, "/kvs/k", {"set": {"more": "x" * 1500}}).status == 413
    assert patch(api, "/kvs/k", {"unset": ["f1"]}).status == 200


def test_memory_is_limited() -> None:
    api = Api(make_store(max_memory_bytes=1200))
    assert patch(api, "/kvs/k", COUNTER).status == 201
    assert patch(api, "/kvs/k", COUNTER).status == 200
    assert patch(api, "/kvs/other", COUNTER).status == 507
    assert api.delete("/kvs/k").status == 200
    assert patch(api, "/kvs/other", COUNTER).status == 201


def test_conditions_hold_for_patches_too(api: Api) -> None:
    """Contract 2.2."""
    assert patch(api, "/kvs/k", COUNTER, headers={"If-Match": "*"}).status == 412
    etag = patch(api, "/kvs/k", COUNTER, headers={"If-None-Match": "*"}).headers["ETag"]
    assert patch(api, "/kvs/k", COUNTER, headers={"If-None-Match": "*"}).status == 412
    assert patch(api, "/kvs/k", COUNTER, headers={"If-Match": etag}).status == 200
    assert patch(api, "/kvs/k", COUNTER, headers={"If-Match": etag}).status == 412
    write = {"key": "k", **COUNTER, "if-match": etag}
    assert api.ask("POST", "/kvs", {"writes": [write]}).status == 412
    assert api.get("/kvs/k").body["value"] == 2


def test_a_time_to_live_is_kept_renewed_and_cleared(api: Api) -> None:
    """Contract 2.5: PATCH without ttl keeps it; with ttl alone renews it; null clears it. Plain values too."""
    patch(api, "/kvs/k", {**COUNTER, "ttl": 100})
    expires = api.get("/kvs/k").body["expires"]
    patch(api, "/kvs/k", COUNTER)
    assert api.get("/kvs/k").body["expires"] == expires
    patch(api, "/kvs/k", {"ttl": 1000})
    assert api.get("/kvs/k").body["expires"] > expires + 800
    patch(api, "/kvs/k", {"ttl": None})
    assert "expires" not in api.get("/kvs/k").body
    assert api.get("/kvs/k").body["value"] == 2
    api.put("/kvs/plain", [1])
    patch(api, "/kvs/plain", {"ttl": 1000})
    found = api.get("/kvs/plain").body
    assert (found["value"], math.isfinite(found["expires"])) == ([1], True)


def test_a_transaction_patches_reads_and_writes_in_one_step(api: Api) -> None:
    patch(api, "/kvs/n", {"increment": 5})
    writes = [
        {"key": "n", "increment": 1},
        {"key": "s", "add": ["x"], "ttl": 50},
        {"key": "m", "set": {"f": 1}},
        {"key": "p", "value": 1},
    ]
    done = api.ask("POST", "/kvs", {"reads": ["n"], "writes": writes})
    assert (done.status, done.body["values"]) == (200, {"n": 5})
    items = api.get("/kvs?values=true").body["items"]
    assert items == {"n": 6, "s": ["x"], "m": {"f": 1}, "p": 1}
    assert api.get("/kvs/s").body["expires"]


@pytest.mark.parametrize(
    "writes",
    [
        [{"key": "k", **COUNTER}, {"key": "k", **COUNTER}],
        [{"key": "k", **COUNTER}, {"key": "k", "value": 1}],
        [{"key": "k", **COUNTER}, {"key": "k", "delete": True}],
        [{"key": "k", "value": 1, "increment": 1}],
        [{"key": "k", "delete": True, "increment": 1}],
        [{"key": "k"}],
    ],
)
def test_a_transaction_says_once_what_happens_to_a_key(api: Api, writes: list[Any]) -> None:
    """Contract 2.10: one key twice in a transaction gets 400."""
    assert api.ask("POST", "/kvs", {"writes": writes}).status == 400
    assert api.get("/kvs/k").status == 404


def test_raw_reads_of_values_that_merge_are_not_acceptable(api: Api) -> None:
    patch(api, "/kvs/k", COUNTER)
    assert api.get("/kvs/k", headers={"Accept": "application/octet-stream"}).status == 406


def test_options_may_be_in_the_query(api: Api) -> None:
    """As those of PUT: the body counts first, and a wrong option is rejected."""
    assert patch(api, "/kvs/k?ttl=100&w=1", COUNTER).body["acks"] == 1
    assert api.get("/kvs/k").body["expires"]
    assert patch(api, "/kvs/k?ttl=5", {"ttl": None}).status == 200
    assert "expires" not in api.get("/kvs/k").body
    assert patch(api, "/kvs/k?w=zz", COUNTER).status == 400


def test_equal_plain_siblings_are_renewed_together(api: Api) -> None:
    """Two concurrent renewals of one plain value make them."""
    api.put("/kvs/k", [1])
    api.receive_update("k", b"[1]")
    assert api.get("/kvs/k").body["conflicts"] == 2
    assert patch(api, "/kvs/k", {"ttl": 50}).status == 200
    found = api.get("/kvs/k").body
    assert (found["value"], "conflicts" in found, "expires" in found) == ([1], False, True)


def test_a_joined_value_above_the_limit_can_be_made_smaller(api: Api) -> None:
    for n in range(2):
        value = applied(State("set"), SetChange((f"{n}" * 9000,)), (PEER_ID, n + 1), 1, None)
        update = Update(PEER_ID, n + 1, 2**61 + n, {}, (Write("k", store_state(value)),))
        api.store.receive([update], api.store_now())
    assert len(api.get("/kvs/k").body["value"]) == 2
    assert patch(api, "/kvs/k", {"add": ["x"]}).status == 413
    assert patch(api, "/kvs/k", {"remove": ["0" * 9000]}).status == 200


def test_patches_of_a_transaction_are_bounded_together(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATCH writes the whole value: a short request could make an update of any length."""
    monkeypatch.setattr("store.causal.MAX_PATCHED_BYTES", 3000)
    for name in ("a", "b"):
        api.put(f"/kvs/{name}", "x" * 2000)
    before = api.state()
    response = api.ask("POST", "/kvs", {"writes": [{"key": "a", "ttl": 50}, {"key": "b", "ttl": 50}]})
    assert response.status == 413
    assert api.state()[:3] == before[:3]
    assert patch(api, "/kvs/a", {"ttl": 50}).status == 200
