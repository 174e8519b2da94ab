"""docs/contract.md, section 2.7: writes that wait for acks."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from tests.contract.client import Client
from tests.support.http import Response
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes


@pytest.mark.parametrize(("w", "least"), [(1, 1), (2, 2), (3, 3), ("majority", 2), ("all", 3)])
def test_2_7_acks(api: Client, key: str, w: int | str, least: int) -> None:
    """PUT, POST and DELETE take "w": a number, "majority" or "all". The response then has "acks": n."""
    writes = [{"key": key.removeprefix("/kvs/"), "value": 3}]
    posted = api.send(1, "POST", key + "b", {"value": 2, "w": w})
    for response, status in (
        (api.put(0, key, 1, w=w), 201),
        (posted, 201),
        (api.transact(2, writes=writes, w=w), 200),
        (api.delete(0, key + "b", posted.past, w=w), 200),
    ):
        assert response.status == status
        assert least <= response.body["acks"] <= 3
        assert response.took_s < 5
    assert "acks" not in api.put(0, key, 1).body
    assert (
        "acks" not in api.delete(0, key + "none", w=w).body
    )  # No update was issued, so there is nothing to acknowledge.


def test_2_7_members_that_acknowledged_have_the_write(api: Client, key: str) -> None:
    for n in range(20):
        assert api.put(n % 3, key, n, w="all", w_timeout=10).body["acks"] == 3
        assert [api.get(m, key).body["value"] for m in range(3)] == [n] * 3


def test_2_7_too_few_acks_get_202_and_the_write_stands(api: Client, key: str) -> None:
    """Too few acks in time: the same body with status 202; the write stands and keeps spreading."""
    name = key.removeprefix("/kvs/")
    api.put(0, key + "gone", 1, w="all")
    with api.cut_off(2):
        put = api.put(0, key, "safe", w="all", w_timeout=0.5)
        assert (put.status, put.body) == (202, {"result": "created", "causal-metadata": put.past, "acks": 2})
        assert 0.5 <= put.took_s < 5
        # The default of w-timeout is 1 s.
        deleted = api.delete(0, key + "gone", w=3)
        assert (deleted.status, deleted.body["result"], deleted.body["acks"]) == (202, "deleted", 2)
        assert 1 <= deleted.took_s < 5
        both = api.transact(1, writes=[{"key": name + "t", "value": 1}], w="all", w_timeout=0)
        assert (both.status, both.body["acks"]) == (202, 1)
        # Two of three members are a majority.
        assert api.put(0, key + "m", 1, w="majority", w_timeout=5).status == 201
        assert api.put(0, key + "five", 1, w=5, w_timeout=0.1).status == 202
    for path, value in ((key, "safe"), (key + "t", 1), (key + "m", 1), (key + "five", 1)):
        wait_until(lambda path=path, value=value: api.get(2, path).body.get("value") == value)  # type: ignore[misc]
    wait_until(lambda: api.get(2, key + "gone").status == 404)
    assert api.put(0, key, "all again", w="all", w_timeout=5).body["acks"] == 3


def test_2_7_all_counts_members_that_are_down(api: Client, key: str) -> None:
    """ "all" means all members in the membership table, reachable or not."""
    with api.cut_off(2):
        wait_until(lambda: len(api.send(0, "GET", "/view").body["view"]) == 2)
        assert api.put(0, key, 1, w="all", w_timeout=0.2).status == 202
        assert api.put(0, key, 2, w="majority", w_timeout=2).body["acks"] == 2
    wait_until(lambda: len(api.send(0, "GET", "/view").body["view"]) == 3)


def test_2_7_at_most_512_writes_wait_for_acks(api: Client, key: str) -> None:
    """512 writes may wait for acks. With one more, the one that has waited longest gets its 202 early, and stands."""
    with api.cut_off(2), ThreadPoolExecutor(513) as pool:
        longest = pool.submit(api.put, 0, f"{key}/longest", 1, w="all", w_timeout=50)
        wait_until(lambda: api.get(0, f"{key}/longest").status == 200)
        waiting: list[Future[Response]] = [
            pool.submit(api.put, 0, f"{key}/{n}", n, w="all", w_timeout=12) for n in range(511)
        ]
        wait_until(lambda: all(api.get(1, f"{key}/{n}").status == 200 for n in range(511)), timeout_s=30)
        assert not longest.done()
        waiting.append(pool.submit(api.put, 0, key, 1, w="all", w_timeout=12))
        early = longest.result(timeout=10)
        assert (early.status, early.body["acks"]) == (202, 2)
        assert early.took_s < 25
        assert api.get(0, f"{key}/longest").status == 200
        assert api.put(0, key, 1, w=1).took_s < 5
        assert {one.result().status for one in waiting} == {202}


@pytest.mark.parametrize("w", [0, -1, 1.5, True, "most", "", "2", [], 2**53])
def test_2_7_invalid_w_gets_400(api: Client, key: str, w: Any) -> None:
    assert api.put(0, key, 1, w=w).status == 400
    assert api.delete(0, key, w=w).status == 400
    assert api.transact(0, writes=[{"key": "x", "value": 1}], w=w).status == 400
    assert api.get(0, key).status == 404


@pytest.mark.parametrize("timeout", [-1, 61, "1", True])
def test_2_7_invalid_w_timeout_gets_400(api: Client, key: str, timeout: Any) -> None:
    assert api.put(0, key, 1, w=1, w_timeout=timeout).status == 400
    assert api.get(0, key).status == 404
