"""docs/contract.md, section 2.10: values that merge, at real replicas (cut apart: tests/cluster/test_merging.py)."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.contract.client import Client
from tests.support.http import Response
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes


def patch(api: Client, replica: int, key: str, **fields: Any) -> Response:
    body = {name.replace("_", "-"): value for name, value in fields.items()}
    return api.send(replica, "PATCH", key, body)


def _returns(api: Client, replica: int, key: str, value: Any) -> bool:
    return bool(api.get(replica, key).body.get("value") == value)


def wait_for(api: Client, key: str, value: Any) -> None:
    for replica in range(3):
        wait_until(partial(_returns, api, replica, key, value), timeout_s=10)
        assert "conflicts" not in api.get(replica, key).body


def test_2_10_increments_at_all_replicas_count_once(api: Client, key: str) -> None:
    """Concurrent PATCHes of one key merge instead of conflicting. A GET returns the sum."""
    for number in range(30):
        assert patch(api, number % 3, key, increment=number).status in (200, 201)
    wait_for(api, key, sum(range(30)))
    assert api.get(0, key).body["type"] == "counter"


def test_2_10_status_and_write_concern(api: Client, key: str) -> None:
    """Response: 201 "created" or 200 "merged". PATCH takes w."""
    created = patch(api, 0, key, increment=1, w="all")
    assert (created.status, created.body["result"], created.body["acks"]) == (201, "created", 3)
    merged = patch(api, 1, key, increment=1, causal_metadata=created.past)
    assert (merged.status, merged.body["result"]) == (200, "merged")
    assert patch(api, 0, f"{key}/absent", remove=["x"]).status == 404
    assert patch(api, 0, key, add=["x"]).body["error"] == "Key holds a counter, not a set"
