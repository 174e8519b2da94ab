"""docs/contract.md, section 2.3: siblings and how a conflict ends."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.contract.client import Client
from tests.support.http import Past

pytestmark = pytest.mark.processes


@pytest.fixture
def conflict(api: Client, key: str) -> str:
    """Return the path of a key that two replicas have written concurrently. All replicas have both writes."""
    for attempt in range(50):
        path, start = f"{key}/{attempt}", threading.Barrier(2)

        def write(replica: int, path: str = path, start: threading.Barrier = start) -> Past:
            start.wait()
            return api.put(replica, path, replica, w="all").past

        with ThreadPoolExecutor(2) as pool:
            both = [*pool.map(write, (0, 1))]
        for past in both:
            assert all(api.get(n, path, past).status == 200 for n in range(3))
        if "conflicts" in api.get(0, path).body:
            return path
    raise AssertionError("two replicas never wrote concurrently")


def test_2_3_siblings_winner_first(api: Client, conflict: str) -> None:
    """siblings=true adds the siblings, winner first. Every GET of a key with several versions has "conflicts": n."""
    plain = api.get(0, conflict)
    assert (plain.body["conflicts"], "siblings" in plain.body) == (2, False)
    responses = [api.get(n, conflict + "?siblings=true") for n in range(3)]
    for response in responses:
        winner, other = response.body["siblings"]
        assert set(winner) == {"value", "version", "origin", "timestamp"}
        assert (winner["timestamp"], winner["origin"]) > (other["timestamp"], other["origin"])
        assert response.body["value"] == winner["value"] == plain.body["value"]
        assert response.etag == plain.etag
        assert response.etag not in [f'"{each["version"]}"' for each in (winner, other)]
        assert response.body["siblings"] == responses[0].body["siblings"]
        # The metadata of a response with siblings covers all of them.
        for sibling in (winner, other):
            assert response.past[sibling["origin"]] >= int(sibling["version"].rpartition(":")[2])
        # There is at most one sibling per replica id.
        assert winner["origin"] != other["origin"]


def test_2_2_a_condition_on_one_version_does_not_hold_for_a_conflict(api: Client, conflict: str) -> None:
    """The tag names all versions: a write with the tag of one does not replace a sibling that arrived since."""
    both = api.get(1, conflict).etag
    for sibling in api.get(1, conflict + "?siblings=true").body["siblings"]:
        rejected = api.send(1, "PUT", conflict, {"value": 3}, headers={"If-Match": f'"{sibling["version"]}"'})
        assert (rejected.status, rejected.etag) == (412, both)
    assert api.send(1, "PUT", conflict, {"value": 3}, headers={"If-Match": both}).status == 200


def test_2_3_conflicts_are_listed_and_the_next_write_resolves_them(api: Client, conflict: str) -> None:
    """GET /kvs?conflicts=true lists the keys in conflict. The next PUT or DELETE resolves the conflict."""
    name = conflict.removeprefix("/kvs/")
    assert name in api.get(2, f"/kvs?conflicts=true&prefix={name}").body["keys"]
    past = api.put(2, conflict, "settled").past
    for n in range(3):
        body = api.get(n, conflict, past).body
        assert (body["value"], "conflicts" in body) == ("settled", False)
        assert name not in api.get(n, "/kvs?conflicts=true").body["keys"]


def test_2_3_delete_resolves_a_conflict(api: Client, conflict: str) -> None:
    past = api.delete(2, conflict).past
    assert [api.get(n, conflict, past).status for n in range(3)] == [404] * 3
