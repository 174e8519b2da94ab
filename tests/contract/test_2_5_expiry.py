"""docs/contract.md, section 2.5: keys with a time to live."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.contract.client import Client
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes


def test_2_5_expired_key_counts_as_deleted_everywhere(api: Client, key: str) -> None:
    """After the ttl, every replica that has the write answers as if the key were deleted."""
    api.put(0, key, "for ever")
    put = api.put(0, key, "short", ttl=0.5, w="all")
    assert put.body["acks"] == 3
    assert [api.get(n, key).body["value"] for n in range(3)] == ["short"] * 3
    wait_until(lambda: all(api.get(n, key).status == 404 for n in range(3)))
    name = key.removeprefix("/kvs/")
    for n in range(3):
        assert api.get(n, key, put.past).status == 404
        assert api.delete(n, key).status == 404
        assert name not in api.get(n, f"/kvs?prefix={name}").body["keys"]
        assert api.transact(n, reads=[name]).body["missing-keys"] == [name]


def test_2_5_expired_version_never_comes_back(api: Client, key: str) -> None:
    """An expired version never comes back, not even from a replica that was cut off meanwhile."""
    with api.cut_off(2):
        put = api.put(0, key, "short", ttl=0.2)
        wait_until(lambda: api.get(0, key).status == 404)
    assert [api.get(n, key + "?wait=10", put.past).status for n in (2, 0, 1)] == [404] * 3
    assert api.put(1, key, "again", put.past).body["result"] == "created"


def test_2_5_deadline_is_the_writers_wall_clock_plus_ttl(api: Client, key: str) -> None:
    before_s = time.time() - 1e-6
    api.put(0, key, 1, ttl=100, w="all")
    after_s = time.time() + 1e-6
    for n in range(3):
        (version,) = api.send(n, "GET", f"/replication/explain/{key.removeprefix('/kvs/')}").body["versions"]
        assert before_s <= version["expires"] - 100 <= after_s
        assert version["expires"] == api.get(n, key).body["expires"]


@pytest.mark.parametrize("ttl", [0, -1, "1", True])
def test_2_5_ttl_must_be_above_0(api: Client, key: str, ttl: Any) -> None:
    """PUT takes "ttl": seconds (> 0)."""
    assert api.put(0, key, 1, ttl=ttl).status == 400
