"""A replica that never finds its cluster, as a process: what it says, and what KV_EXPECT does."""

from __future__ import annotations

import pytest
import requests

from kvsite.cluster import LocalCluster
from tests.conftest import ClusterFactory
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

QUICK = {"KV_DOWN_AFTER": "1", "KV_SYNC_INTERVAL": "0.2"}

pytestmark = pytest.mark.processes


def get(made: LocalCluster, i: int, path: str) -> requests.Response:
    return requests.get(made.url(i) + path, timeout=5)


def test_a_replica_with_a_wrong_view_warns_and_waits_for_the_members_that_it_expects(cluster: ClusterFactory) -> None:
    """Contract P6. The second replica knows the first one; the third address of VIEW is wrong."""
    wrong = f"127.0.0.1:{free_ports(1)}"
    made = cluster(2, start=False, KV_EXPECT=2, **QUICK)
    made.start_one(0, {"VIEW": wrong})
    made.wait_logged(0, f"{wrong} in VIEW was never reached: nobody listens there. This replica has met no other one")
    ready = get(made, 0, "/readyz")
    assert (ready.status_code, ready.json()["reason"]) == (
        503,
        "KV_EXPECT asks for 2 members, and this replica has met no other",
    )
    assert get(made, 0, "/kvs/x").status_code == 503
    stated = get(made, 0, "/replication/status").json()["never_reached"]
    assert [(each["address"], each["kind"]) for each in stated] == [(wrong, "closed")]
    assert f'causeway_peer_never_reached{{peer="{wrong}",reason="closed"}} 1.0' in get(made, 0, "/metrics").text
    page = get(made, 0, "/admin/").text
    assert "is alone: it has reached no other replica in VIEW" in page
    assert wrong in page
    made.start_one(1)
    wait_until(lambda: made.is_ready(0) and made.is_ready(1), timeout_s=20)
    assert get(made, 0, "/replication/status").json()["never_reached"], "the warning stands"
