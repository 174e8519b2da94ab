"""Pages while the network is cut: what they say of a replica that is cut off, and of an effect before its cause."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import OpenPage
from tests.browser.support import LIVE_MS, LOOKS, admin, agree, barriers, part, put, shown, status
from tools.netns.cluster import NetnsCluster

pytestmark = [pytest.mark.browser, pytest.mark.processes, pytest.mark.netns]

WELL = "3 of 3 replicas alive, in step, nothing pending"
SYNC_INTERVAL_S = 3
"""So long does an update wait until somebody else than its origin passes it on: time to look at what waits for it."""

Keep = Callable[[Page, str], None]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsCluster]:
    environment = {"KV_DOWN_AFTER": str(2 * SYNC_INTERVAL_S), "KV_SYNC_INTERVAL": str(SYNC_INTERVAL_S)}
    with NetnsCluster(3, environment, tmp_path_factory.mktemp("cut")) as started:
        yield started


@pytest.fixture
def cluster(running: NetnsCluster) -> Iterator[NetnsCluster]:
    """The same three, whole again after each test, however that ends."""
    yield running
    running.heal()


def test_what_waits_for_its_cause_is_shown_and_goes(cluster: NetnsCluster, open_page: OpenPage, keep: Keep) -> None:
    for n in range(6):
        put(cluster, n % 3, f"posts/{n}", n)
    host = cluster.addresses[1].split(":")[0]
    page = open_page(admin(cluster, 1), host=host).page
    pictures = {
        look: open_page(f"{admin(cluster, 1)}spacetime/", host=host, **options).page for look, options in LOOKS.items()
    }
    one = open_page(f"{admin(cluster, 1)}replica/{cluster.addresses[2]}/", host=host).page
    expect(page.get_by_role("status")).to_have_text(WELL, timeout=8000)

    cluster.partition([0], [2])
    question = put(cluster, 0, "question", "Who has seen my ring?")
    answer = put(cluster, 1, "answer", "It is in the kitchen.", question)
    queue = part(page, "queue", cluster.addresses[2])
    expect(queue).to_contain_text("1 waiting", timeout=LIVE_MS)
    cause = status(cluster, 0)
    of_cause = f"#{cause['clock'][cause['replica_id']]}"
    expect(queue).to_contain_text("answer")
    expect(queue).to_contain_text(of_cause)
    expect(part(one, "queue", cluster.addresses[2])).to_contain_text("answer", timeout=LIVE_MS)
    picture = pictures[""]
    expect(picture.locator("circle.cw-pending[cx]").first).to_contain_text("waits for", timeout=LIVE_MS)
    for look, each in pictures.items():
        each.locator("#picture-scroll circle.cw-pending").wait_for(state="attached", timeout=LIVE_MS)
        keep(each, f"spacetime{look}")

    # The middle one passes the cause on, though the cut lasts.
    expect(queue).to_contain_text("nothing waits", timeout=2000 * SYNC_INTERVAL_S + LIVE_MS)
    expect(picture.locator("#picture-scroll circle.cw-pending")).to_have_count(0, timeout=LIVE_MS)
    assert status(cluster, 2)["clock"].items() >= answer.items()
    assert barriers(picture) == []
    cluster.heal()
    expect(page.get_by_role("status")).to_have_text(WELL, timeout=15_000)


def test_a_replica_that_is_cut_off_is_greyed_and_recovers(cluster: NetnsCluster, open_page: OpenPage) -> None:
    host, address = cluster.addresses[0].split(":")[0], cluster.addresses[2]
    page = open_page(admin(cluster), host=host).page
    one = open_page(f"{admin(cluster)}replica/{address}/", host=host).page
    expect(page.get_by_role("status")).to_have_text(WELL, timeout=15_000)
    cluster.isolate(2)
    # Packets to it vanish: a page that asks it has to wait, and shows the others in time all the same.
    expect(part(page, "card", address)).to_contain_text("Last known state", timeout=LIVE_MS)
    origin, before = status(cluster, 1)["replica_id"], shown(page)[cluster.addresses[1]].clock
    put(cluster, 1, "while it is away", 1)
    agree(lambda: shown(page)[cluster.addresses[0]].clock[origin] == before[origin] + 1)
    expect(part(page, "card", address)).to_contain_text("down", timeout=12_000)
    expect(one.locator(".cw-card")).to_contain_text("Last known state")
    for greyed in (part(page, "card", address), part(page, "clock", address), one.locator(".cw-card")):
        assert "cw-is-stale" in str(greyed.get_attribute("class"))
    assert barriers(page) == []
    assert barriers(one) == []
    cluster.heal()
    expect(page.get_by_role("status")).to_have_text(WELL, timeout=20_000)
    assert "cw-is-stale" not in part(page, "card", address).get_attribute("class")
