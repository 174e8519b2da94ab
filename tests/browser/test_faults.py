"""Pages during a partition: they show an unreachable replica as such, and an update that waits for its cause."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import expect

from tests.browser.conftest import OpenPage, SaveScreenshot
from tests.browser.support import (
    LIVE_MS,
    VARIANTS,
    admin,
    part,
    put,
    shown_replicas,
    status,
    wait_live,
)
from tools.netns.cluster import NetnsCluster

pytestmark = [pytest.mark.browser, pytest.mark.processes, pytest.mark.netns]

HEALTHY = "3 of 3 replicas alive, in sync, no updates pending"
SYNC_INTERVAL_S = 3
"""A replica other than the origin forwards an update only after this time. Until then, the test can see what waits
for the update."""


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsCluster]:
    environment = {"KV_DOWN_AFTER": str(2 * SYNC_INTERVAL_S), "KV_SYNC_INTERVAL": str(SYNC_INTERVAL_S)}
    with NetnsCluster(3, environment, tmp_path_factory.mktemp("partition")) as started:
        yield started


@pytest.fixture
def cluster(running: NetnsCluster) -> Iterator[NetnsCluster]:
    """Three replicas. Ends every partition after the test, whether it passed or failed."""
    yield running
    running.heal()


def test_a_pending_update_is_shown_until_it_is_applied(
    cluster: NetnsCluster, open_page: OpenPage, save_screenshot: SaveScreenshot
) -> None:
    for n in range(6):
        put(cluster, n % 3, f"posts/{n}", n)
    host = cluster.addresses[1].split(":")[0]
    page = open_page(admin(cluster, 1), host=host).page
    diagrams = {
        variant: open_page(f"{admin(cluster, 1)}spacetime/", host=host, **options).page
        for variant, options in VARIANTS.items()
    }
    replica_page = open_page(f"{admin(cluster, 1)}replica/{cluster.addresses[2]}/", host=host).page
    expect(page.get_by_role("status")).to_have_text(HEALTHY, timeout=8000)

    cluster.partition([0], [2])
    question = put(cluster, 0, "question", "Who has seen my ring?")
    answer = put(cluster, 1, "answer", "It is in the kitchen.", question)
    queue = part(page, "queue", cluster.addresses[2])
    expect(queue).to_contain_text("1 pending", timeout=LIVE_MS)
    origin = status(cluster, 0)
    cause = f"#{origin['clock'][origin['replica_id']]}"
    expect(queue).to_contain_text("answer")
    expect(queue).to_contain_text(cause)
    expect(part(replica_page, "queue", cluster.addresses[2])).to_contain_text("answer", timeout=LIVE_MS)
    diagram = diagrams[""]
    expect(diagram.locator("circle.cw-pending[cx]").first).to_contain_text("waits for", timeout=LIVE_MS)
    for variant, each in diagrams.items():
        each.locator("#diagram-scroll circle.cw-pending").wait_for(state="attached", timeout=LIVE_MS)
        save_screenshot(each, f"spacetime{variant}")

    # The second replica forwards the cause while the partition lasts.
    expect(queue).to_contain_text("none pending", timeout=2000 * SYNC_INTERVAL_S + LIVE_MS)
    expect(diagram.locator("#diagram-scroll circle.cw-pending")).to_have_count(0, timeout=LIVE_MS)
    assert status(cluster, 2)["clock"].items() >= answer.items()
    cluster.heal()
    expect(page.get_by_role("status")).to_have_text(HEALTHY, timeout=15_000)


def test_a_partitioned_replica_is_greyed_and_recovers(cluster: NetnsCluster, open_page: OpenPage) -> None:
    host, address = cluster.addresses[0].split(":")[0], cluster.addresses[2]
    page = open_page(admin(cluster), host=host).page
    replica_page = open_page(f"{admin(cluster)}replica/{address}/", host=host).page
    expect(page.get_by_role("status")).to_have_text(HEALTHY, timeout=15_000)
    cluster.isolate(2)
    # Packets to it are lost. A page must show the other replicas in time although requests to this one time out.
    expect(part(page, "card", address)).to_contain_text("The figures are the last known ones", timeout=LIVE_MS)
    origin, before = status(cluster, 1)["replica_id"], shown_replicas(page)[cluster.addresses[1]].clock
    put(cluster, 1, "while it is away", 1)
    wait_live(lambda: shown_replicas(page)[cluster.addresses[0]].clock[origin] == before[origin] + 1)
    expect(part(page, "card", address)).to_contain_text("down", timeout=12_000)
    expect(replica_page.locator(".cw-card")).to_contain_text("The figures are the last known ones")
    for greyed in (part(page, "card", address), part(page, "clock", address), replica_page.locator(".cw-card")):
        assert "cw-is-stale" in str(greyed.get_attribute("class"))
    cluster.heal()
    expect(page.get_by_role("status")).to_have_text(HEALTHY, timeout=20_000)
    assert "cw-is-stale" not in part(page, "card", address).get_attribute("class")
