"""docs/contract.md, sections 2.1 and 2.8: killed and removed replicas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvsite.cluster import LocalCluster
from tests.contract.client import Client
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

pytestmark = pytest.mark.processes


@pytest.fixture
def disposable() -> Iterator[Client]:
    """Three replicas for a single test that kills or removes some of them."""
    quick = {"KV_SYNC_INTERVAL": "0.2", "KV_DOWN_AFTER": "1"}
    with LocalCluster(3, free_ports(3), environment=quick) as running:
        yield Client(running)


def test_2_1_503_while_the_replica_is_removed_and_while_it_joins(disposable: Client) -> None:
    """503 "Replica is not in the view" while the replica is removed, "Replica is catching up" while it joins."""
    past = disposable.put(0, "/kvs/a", 1, w="all").past
    assert disposable.send(0, "DELETE", "/view", {"socket-address": disposable.cluster.addresses[2]}).status == 200
    wait_until(lambda: disposable.get(2, "/kvs/a").status == 503)
    for response in (disposable.get(2, "/kvs/a", past), disposable.put(2, "/kvs/a", 2, past)):
        assert response.status == 503
        assert response.body == {"error": "Replica is not in the view", "causal-metadata": past}
    assert disposable.put(0, "/kvs/a", 2, w="all").body["acks"] == 2
    disposable.send(0, "PUT", "/view", {"socket-address": disposable.cluster.addresses[2]})
    wait_until(lambda: disposable.get(2, "/kvs/a").status == 200)

    # A joining replica waits for the peers that answer. Stop both peers while it joins.
    disposable.cluster.kill(2)
    with disposable.cut_off(0), disposable.cut_off(1):
        # Without a peer it serves alone after KV_DOWN_AFTER: later than this test needs on a busy machine.
        disposable.cluster.start_one(2, {"KV_DOWN_AFTER": "30"})
        wait_until(lambda: disposable.send(2, "GET", "/healthz").status == 200)
        joining = disposable.get(2, "/kvs/a", past)
        assert (joining.status, joining.body) == (503, {"error": "Replica is catching up", "causal-metadata": past})


def test_2_8_lost_dependency_is_dropped_and_reported(disposable: Client) -> None:
    """The dependency is dropped once that incarnation has ended and every member has reported what it has.

    The test does not kill a replica with unique updates: its client names updates that were never issued. The other
    replicas cannot tell the difference.
    """
    disposable.put(2, "/kvs/a", 1, w="all")
    dead = disposable.id(2)
    has = disposable.status(0)["clock"][dead]
    past = {dead: has + 3}
    # The replica is alive and may still send the updates.
    assert disposable.get(0, "/kvs/a?wait=0.3", past).status == 503
    disposable.cluster.kill(2)
    # Until then the request is deferred: the process may return, and no one has removed its address.
    assert disposable.get(0, "/kvs/a?wait=2", past).status == 503
    disposable.cluster.start_one(2)
    disposable.cluster.wait_ready()
    for replica in range(3):
        served = disposable.get(replica, "/kvs/a?wait=10", past)
        assert (served.status, served.body["value"], served.body["lost"]) == (200, 1, {dead: [has + 1, has + 3]})
        assert served.past.get(dead, 0) <= has
    written = disposable.put(1, "/kvs/b?wait=10", 2, past)
    assert (written.status, written.body["lost"]) == (201, {dead: [has + 1, has + 3]})


def test_2_8_removing_a_dead_member_drops_its_lost_updates(disposable: Client) -> None:
    """The dependency is dropped if the address was removed."""
    disposable.put(2, "/kvs/a", 1, w="all")
    dead = disposable.id(2)
    past = {dead: 10**6}
    disposable.cluster.kill(2)
    assert disposable.get(0, "/kvs/a?wait=1.5", past).status == 503
    assert disposable.send(0, "DELETE", "/view", {"socket-address": disposable.cluster.addresses[2]}).status == 200
    for replica in (0, 1):
        served = disposable.get(replica, "/kvs/a?wait=10", past)
        assert (served.status, served.body["lost"][dead][1]) == (200, 10**6)
