"""docs/contract.md, section 2.2: ETags and conditional requests."""

from __future__ import annotations

import pytest

from tests.contract.client import Client
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes


def body_of(method: str, value: int) -> dict[str, int]:
    return {"value": value} if method == "PUT" else {}


def test_2_2_etag_names_the_state_of_the_key(api: Client, key: str) -> None:
    """Responses to GET, PUT and DELETE of one key carry an ETag. It names the versions that the replica has."""
    put = api.put(0, key, 1, w="all")
    assert put.etag == f'"{api.id(0)}:{put.past[api.id(0)]}"'
    assert [api.get(n, key).etag for n in range(3)] == [put.etag] * 3
    assert api.delete(1, key).etag == '"absent"'


def test_2_2_if_match(api: Client, key: str) -> None:
    """If-Match on PUT and DELETE: on a mismatch 412, with the metadata and the ETag of what is there."""
    first = api.put(0, key, 1)
    second = api.send(0, "PUT", key, {"value": 2}, headers={"If-Match": first.etag})
    assert second.status == 200
    for method in ("PUT", "DELETE"):
        rejected = api.send(0, method, key, body_of(method, 3), headers={"If-Match": first.etag})
        assert (rejected.status, rejected.etag) == (412, second.etag)
        assert rejected.past.items() >= {api.id(0): second.past[api.id(0)]}.items()
    assert api.get(0, key).body["value"] == 2
    assert api.send(0, "DELETE", key, headers={"If-Match": second.etag}).status == 200


def test_2_2_if_none_match_on_writes(api: Client, key: str) -> None:
    """If-None-Match: * on PUT and DELETE: 412 if the key is present."""
    absent = {"If-None-Match": "*"}
    assert api.send(0, "DELETE", key, headers=absent).status == 404
    first = api.send(0, "PUT", key, {"value": 1}, headers=absent)
    assert first.status == 201
    for method in ("PUT", "DELETE"):
        rejected = api.send(0, method, key, body_of(method, 2), headers=absent)
        assert (rejected.status, rejected.etag) == (412, first.etag)
    assert api.get(0, key).body["value"] == 1


def test_2_2_conditions_use_the_state_of_this_replica(api: Client, key: str) -> None:
    """Conditions on PUT and DELETE are evaluated against the state of this replica."""
    old = api.put(0, key, "old", w="all").etag
    with api.cut_off(1):
        api.put(0, key, "new", w=2)
    wait_until(lambda: api.get(1, key).body["value"] == "new")
    assert api.send(1, "PUT", key, {"value": 2}, headers={"If-Match": old}).status == 412
    assert api.send(1, "PUT", key, {"value": 2}, headers={"If-Match": api.get(1, key).etag}).status == 200


@pytest.mark.parametrize("condition", [{"if-match": '"x@1:1"'}, {"if-none-match": "*"}])
def test_2_2_one_mismatch_prevents_all_writes_of_a_transaction(
    api: Client, key: str, condition: dict[str, str]
) -> None:
    """In a transaction a write may carry "if-match" or "if-none-match". One mismatch, and nothing is written."""
    name = key.removeprefix("/kvs/")
    etag = api.put(0, key, 1).etag
    writes = [{"key": name + "other", "value": 1}, {"key": name, "value": 2, **condition}]
    rejected = api.transact(0, writes=writes)
    assert (rejected.status, rejected.etag) == (412, etag)
    assert api.get(0, key).body["value"] == 1
    assert api.get(0, key + "other").status == 404
    assert api.transact(0, writes=[{"key": name, "value": 2, "if-match": etag}]).status == 200


def test_2_2_a_404_carries_the_tag_absent_which_conditions_may_name(api: Client, key: str) -> None:
    """A 404 carries the tag "absent", which conditions may name."""
    absent = '"absent"'
    assert [api.get(0, key).etag, api.delete(0, key).etag] == [absent, absent]
    known = api.get(0, key, headers={"If-None-Match": absent})
    assert (known.status, known.body, known.etag) == (304, None, absent)
    assert api.send(0, "PUT", key, {"value": 1}, headers={"If-None-Match": absent}).status == 412
    assert api.send(0, "PUT", key, {"value": 1}, headers={"If-Match": absent}).status == 201
    assert api.send(0, "PUT", key, {"value": 2}, headers={"If-Match": absent}).status == 412
    assert api.send(0, "PUT", key, {"value": 3}, headers={"If-None-Match": absent}).status == 200


def test_2_2_if_none_match_on_get_gets_304(api: Client, key: str) -> None:
    """If-None-Match: <etag> on GET gets 304 if the winner is that version."""
    put = api.put(0, key, 1)
    known = api.get(0, key, headers={"If-None-Match": put.etag})
    assert (known.status, known.body, known.etag) == (304, None, put.etag)
    assert known.past.items() >= {api.id(0): put.past[api.id(0)]}.items()
    assert api.get(0, key, headers={"If-None-Match": '"other"'}).status == 200
