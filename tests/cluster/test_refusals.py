"""Replicas that live peers refuse, as processes: not ready, with the reason, and ready by themselves afterwards."""

from __future__ import annotations

from typing import Any

import pytest
import requests

from kvsite.cluster import LocalCluster
from tests.cluster.support import wait_for_value
from tests.conftest import ClusterFactory
from tests.support.waiting import assert_stays, wait_until
from tools.netns.client import get, put, status
from tools.netns.client import send as send_in
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import DOWN_AFTER_S

SECRET, OTHER = "the secret of this cluster", "the secret of another cluster"
QUICK = {"KV_DOWN_AFTER": "1", "KV_SYNC_INTERVAL": "0.2"}
DAY_S = 86_400.0
REFUSED = "Replica and live peers refuse each other. "
RECOVERS_WITHIN_S = 2 * DOWN_AFTER_S + 1


def send(made: LocalCluster, i: int, method: str, path: str, body: Any = None) -> requests.Response:
    return requests.request(method, made.url(i) + path, json=body, timeout=5)


def readyz(made: LocalCluster, i: int) -> dict[str, Any]:
    """Return the answer of ``/readyz``, with its status."""
    response = send(made, i, "GET", "/readyz")
    return {"status": response.status_code, **response.json()}


def is_refused(made: LocalCluster, i: int, why: str) -> bool:
    """Return whether replica ``i`` answers and is not ready because peers refuse it, with ``why`` in the reason."""
    try:
        answer = readyz(made, i)
    except requests.ConnectionError:
        return False
    return answer["status"] == 503 and answer["reason"].startswith(REFUSED) and why in answer["reason"]


@pytest.mark.processes
@pytest.mark.parametrize(
    "odd", [{"KV_CLUSTER_SECRET": OTHER}, {"KV_OPEN": "true"}], ids=["another-secret", "no-secret"]
)
def test_a_replica_with_a_wrong_secret_is_not_ready_and_says_why(cluster: ClusterFactory, odd: dict[str, str]) -> None:
    """Contract P6. The two that agree serve, also after a restart of one; the odd one does not until it agrees, too."""
    made = cluster(3, start=False, **QUICK)
    made.start_one(0, {"KV_CLUSTER_SECRET": SECRET})
    made.start_one(1, {"KV_CLUSTER_SECRET": SECRET})
    made.wait_ready()
    assert send(made, 0, "PUT", "/kvs/a", {"value": 1, "w": 2}).status_code == 201
    made.start_one(2, odd)
    wait_until(lambda: is_refused(made, 2, "set the same KV_CLUSTER_SECRET"), timeout_s=20)
    made.kill(1)
    made.start_one(1, {"KV_CLUSTER_SECRET": SECRET})
    wait_until(lambda: made.is_ready(1), timeout_s=20)
    assert send(made, 1, "GET", "/kvs/a").json()["value"] == 1
    assert_stays(lambda: readyz(made, 2)["status"] == 503, for_s=2)
    written = send(made, 2, "PUT", "/kvs/b", {"value": 2})
    assert (written.status_code, written.json()["error"]) == (503, "Replica is catching up")
    said = send(made, 2, "GET", "/replication/status").json()
    assert (said["state"], said["ready"], said["not_ready_reason"]) == ("joining", False, readyz(made, 2)["reason"])
    assert [(each["address"], each["kind"]) for each in said["refusals"]] == [
        (at, "secret") for at in made.addresses[:2]
    ]
    metrics = send(made, 2, "GET", "/metrics").text
    assert f'causeway_peer_refuses{{peer="{made.addresses[0]}",reason="secret"}} 1.0' in metrics
    assert "causeway_ready 0.0" in metrics
    assert made.log(2).count("not ready: " + REFUSED) == 1
    made.kill(2)
    made.start_one(2, {"KV_CLUSTER_SECRET": SECRET})
    made.wait_ready()
    assert send(made, 2, "GET", "/kvs/a").json()["value"] == 1


@pytest.mark.processes
def test_a_right_replica_becomes_ready_without_a_restart_when_the_wrong_peer_is_gone(cluster: ClusterFactory) -> None:
    made = cluster(2, start=False, **QUICK)
    made.start_one(0, {"KV_CLUSTER_SECRET": SECRET})
    made.start_one(1, {"KV_CLUSTER_SECRET": OTHER})
    wait_until(lambda: is_refused(made, 0, made.addresses[1]), timeout_s=20)
    wait_until(lambda: is_refused(made, 1, made.addresses[0]), timeout_s=20)
    made.kill(1)
    made.start_one(1, {"KV_CLUSTER_SECRET": SECRET})
    made.wait_ready()
    assert readyz(made, 0) == {"status": 200, "ready": True}


@pytest.mark.parametrize("offset_s", [2 * DAY_S, -2 * DAY_S], ids=["ahead", "behind"])
def test_a_running_replica_with_a_wrong_clock_is_not_ready_answers_and_recovers(
    trio: NetnsCluster, offset_s: float
) -> None:
    """Contract 6, P4, P5: it says why, its writes reach the others, and it is ready again when the clock is right."""
    trio.skew(2, offset_s)
    wait_until(lambda: why_not_ready(trio, 2), timeout_s=RECOVERS_WITHIN_S)
    assert "the clocks differ by more than KV_MAX_CLOCK_LEAD" in why_not_ready(trio, 2)
    assert trio.is_ready(0)
    assert trio.is_ready(1)
    assert put(trio, 2, f"clock/{offset_s}", "kept").status == 201
    trio.skew(2, 0)
    trio.wait_ready_one(2, RECOVERS_WITHIN_S)
    wait_for_value(trio, f"clock/{offset_s}", "kept", timeout_s=RECOVERS_WITHIN_S)
    assert status(trio, 0)["clock_lead_s"] < DAY_S


@pytest.mark.parametrize("offset_s", [2 * DAY_S, -2 * DAY_S, 60 * 365 * DAY_S], ids=["ahead", "behind", "2086"])
def test_a_replica_that_starts_with_a_wrong_clock_is_not_ready_and_joins_when_it_is_right(
    trio: NetnsCluster, offset_s: float
) -> None:
    put(trio, 0, "clock/before", offset_s, w="all")
    trio.kill(2)
    trio.skew(2, offset_s)
    trio.start_one(2)
    wait_until(lambda: why_not_ready(trio, 2), timeout_s=20)
    assert_stays(lambda: not trio.is_ready(2), for_s=2 * DOWN_AFTER_S)
    assert get(trio, 2, "clock/before").status == 503
    assert "the clocks differ by more than KV_MAX_CLOCK_LEAD" in trio.log(2)
    trio.skew(2, 0)
    trio.wait_ready_one(2, RECOVERS_WITHIN_S)
    assert get(trio, 2, "clock/before").value == offset_s
    put(trio, 2, "clock/after", offset_s)
    wait_for_value(trio, "clock/after", offset_s)


def why_not_ready(cluster: NetnsCluster, i: int) -> str:
    """Return why replica ``i`` is refused; empty if it is ready or does not answer."""
    try:
        response = send_in(cluster, i, "GET", "/readyz")
    except requests.ConnectionError:
        return ""
    reason: str = response.body.get("reason", "")
    return reason if reason.startswith(REFUSED) else ""
