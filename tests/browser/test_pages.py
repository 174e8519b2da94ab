"""The other pages in a browser: a replica, keys, the space-time diagram. Their links and their accessibility."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
from django.template.loader import render_to_string
from playwright.sync_api import Page, Route, expect

from kvsite.cluster import LocalCluster
from kvsite.dashboard.cluster_state import parse_cluster
from kvsite.dashboard.replica_page import replica_page
from kvsite.dashboard.spacetime import diagram
from tests.browser.conftest import OpenPage, SaveScreenshot
from tests.browser.support import (
    LIVE_MS,
    QUICK,
    VARIANTS,
    accessibility_problems,
    admin,
    part,
    put,
    status,
    wait_live,
    write,
)
from tests.support.statuses import NOW_US, cluster_of, history, in_trouble, pending, recent

pytestmark = [pytest.mark.browser, pytest.mark.processes]

PORT = 25140


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """Two replicas with some keys. One key has concurrent values."""
    with LocalCluster(2, PORT, environment=QUICK) as started:
        for i in range(60):
            put(started, i % 2, f"carts/{i:03}", {"items": i, "note": ", ".join(["ten of these, please"] * (i % 3))})
        put(started, 0, "greeting", "<script>alert('hello')</script>")
        put(started, 1, "long", "x" * 9000)
        create_conflict(started)
        yield started


def create_conflict(cluster: LocalCluster) -> None:
    """Write a key at both replicas at the same time. Repeat with other keys until two writes were concurrent."""
    with ThreadPoolExecutor(2) as pool:
        for attempt in range(50):
            meals = ["pizza", "pasta"]
            list(pool.map(put, [cluster] * 2, range(2), [f"dinner{attempt}"] * 2, meals))
            if status(cluster, 1)["conflicts"]:
                return
    raise AssertionError("no two writes were concurrent")


def check_layout(page: Page, width: int) -> None:
    """Check that the page is not wider than the screen. Accessibility: test_states.py."""
    assert page.evaluate("document.documentElement.scrollWidth") == width, "tables scroll inside the page"


def serve_fragment(page: Page, url: str, template: str, context: dict[str, Any]) -> None:
    """Replace the part of the page that is refreshed by one that is made from constructed statuses."""
    html = render_to_string(template, context)

    def respond(route: Route) -> None:
        route.fulfill(body=html, content_type="text/html")

    page.route(url, respond)


# --- one replica ------------------------------------------------------------------------------------------------------


def test_three_clicks_from_the_front_page_to_a_key(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    page.get_by_role("heading", name=cluster.addresses[1]).first.get_by_role("link").click()
    expect(page.get_by_role("heading", level=1)).to_have_text(cluster.addresses[1])
    page.get_by_role("link", name="Keys", exact=True).click()
    page.get_by_role("link", name="carts/007").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("carts/007")


def test_a_replica_page_shows_what_the_replica_reports(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(f"{admin(cluster)}replica/{cluster.addresses[1]}/").page
    write(cluster, 0, 7)
    clock = """() => Object.fromEntries([...document.querySelectorAll("#clock tbody tr")].map((row) =>
      [row.querySelector("abbr").title, parseInt(row.querySelector("td").textContent)]))"""
    wait_live(lambda: page.evaluate(clock) == status(cluster, 1)["clock"])

    def shows(name: str, value: int) -> bool:
        names, values = page.locator("#facts dt").all_inner_texts(), page.locator("#facts dd").all_inner_texts()
        return dict(zip(names, values, strict=True))[name] == str(value)

    assert shows("Keys in conflict", status(cluster, 1)["conflicts"])
    # The log drops what every member has, so the page may be older or younger than one status.
    wait_live(lambda: shows("Log", status(cluster, 1)["log"]["updates"]))
    expect(part(page, "member", cluster.addresses[0])).to_contain_text("alive")
    expect(page.locator("#queues")).to_contain_text("none pending")


def test_the_throughput_chart_is_live(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(f"{admin(cluster)}replica/{cluster.addresses[0]}/").page
    page.locator("#chart-throughput svg").wait_for(timeout=15_000)
    write(cluster, 0, 40)
    expect(page.locator("#chart-throughput figcaption")).not_to_contain_text("writes 0 max 0", timeout=5000)
    assert status(cluster, 0).keys().isdisjoint({"history", "recent"}), "optional parts are sent only on request"
    assert len(status(cluster, 0, "?history=true")["history"]) >= 2


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replica_page_with_ten_minutes_of_history(
    cluster: LocalCluster, open_page: OpenPage, save_screenshot: SaveScreenshot, variant: str
) -> None:
    made = cluster_of(3, counter=4211)
    address = "10.0.0.2:8090"
    made[address]["status"].update(history=history(), pending=pending(2, "10.0.0.1:8090", "10.0.0.3:8090"))
    made[address]["status"].update(
        events=[
            {"number": 1, "wall_us": NOW_US - 260_000_000, "kind": "suspected", "subject": "10.0.0.3:8090"},
            {"number": 2, "wall_us": NOW_US - 259_000_000, "kind": "down", "subject": "10.0.0.3:8090"},
            {"number": 3, "wall_us": NOW_US - 200_000_000, "kind": "healed", "subject": "10.0.0.3:8090"},
        ],
        throughput={"reads_per_s": 423.0, "writes_per_s": 145.0, "exchanges": 90_127, "exchange_failures": 41},
        data_bytes=612_000,
        uptime_s=8112.0,
    )
    made[address]["status"].update(pending_count=2, deferred_requests=3, log={"updates": 812, "bytes": 411_000})
    state = parse_cluster(made, "10.0.0.1:8090", NOW_US)
    page = open_page(**VARIANTS[variant]).page
    data = replica_page(state, state.replicas[1])
    serve_fragment(page, "**/now/*", "dashboard/_replica.html", {"page": data, "address": address})
    page.goto(f"{admin(cluster)}replica/{cluster.addresses[1]}/")
    expect(page.locator("#chart-lag svg")).to_have_attribute("aria-label", data.charts[1].summary)
    # The rest of the page names the replica that the test requested.
    page.evaluate(f"document.querySelector('#content h1').textContent = '{address}'")
    page.evaluate(f"document.querySelector('.cw-nav [aria-current]').textContent = '{address}'")
    check_layout(page, VARIANTS[variant].get("width", 1400))
    save_screenshot(page, f"replica{variant}")


def test_sixteen_members_and_500_pending_updates_fit_the_screen(cluster: LocalCluster, open_page: OpenPage) -> None:
    state = parse_cluster(in_trouble(16), "10.0.0.1:8090", NOW_US)
    page = open_page(width=390, height=844).page
    data = replica_page(state, state.replicas[1])
    serve_fragment(page, "**/now/*", "dashboard/_replica.html", {"page": data, "address": data.address})
    page.goto(f"{admin(cluster)}replica/{cluster.addresses[1]}/")
    expect(page.locator("#queues")).to_contain_text("and 400 more")
    expect(page.locator("#members tbody tr")).to_have_count(16)
    check_layout(page, 390)


def test_an_address_that_is_not_in_the_view(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(f"{admin(cluster)}replica/10.9.9.9:1/").page
    expect(page.locator("#live")).to_contain_text("10.9.9.9:1 is not in the view")
    assert accessibility_problems(page) == []


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_key_list_has_pages(
    cluster: LocalCluster, open_page: OpenPage, save_screenshot: SaveScreenshot, variant: str
) -> None:
    page = open_page(f"{admin(cluster)}keys/", **VARIANTS[variant]).page
    rows = page.locator("#keys tbody tr")
    expect(rows).to_have_count(50)
    check_layout(page, VARIANTS[variant].get("width", 1400))
    page.get_by_role("link", name="Next page").click()
    expect(page.get_by_role("link", name="First page")).to_be_visible()
    page.get_by_label("Keys that start with").fill("gr")
    page.keyboard.press("Enter")
    expect(page.get_by_role("link", name="greeting")).to_be_visible()
    expect(page.locator("#keys")).to_contain_text("<script>alert('hello')</script>")
    expect(page.get_by_role("link", name="Next page")).to_have_count(0)
    page.goto(f"{admin(cluster)}keys/?prefix=carts/01")
    save_screenshot(page, f"keys{variant}")


def test_keys_can_be_searched_by_prefix_with_the_keyboard(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(f"{admin(cluster)}keys/").page
    page.get_by_label("Keys that start with").fill("carts/00")
    page.keyboard.press("Enter")
    expect(page.locator("#keys tbody tr")).to_have_count(10)
    page.get_by_label("Keys that start with").fill("nothing/")
    page.keyboard.press("Enter")
    expect(page.get_by_text("No key starts with nothing/.")).to_be_visible()
    assert accessibility_problems(page) == []
    page.get_by_label("Keys that start with").fill("")
    page.get_by_label("conflicts only").check()
    page.get_by_role("button", name="Search").click()
    for name in page.locator("#keys tbody a").all_inner_texts():
        assert name.startswith("dinner")
    assert "conflicts=true" in page.url


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_key_in_conflict_shows_both_values_and_which_members_have_them(
    cluster: LocalCluster, open_page: OpenPage, save_screenshot: SaveScreenshot, variant: str
) -> None:
    page = open_page(f"{admin(cluster)}keys/?conflicts=true", **VARIANTS[variant]).page
    page.locator("#keys tbody a").first.click()
    cards = page.locator(".cw-version")
    expect(cards).to_have_count(2)
    expect(cards.first).to_contain_text("winner")
    expect(cards.last).to_contain_text("sibling")
    assert sorted(page.locator("pre").all_inner_texts()) == ['"pasta"', '"pizza"']
    name = page.get_by_role("heading", level=1).inner_text()
    explanation = requests.get(f"{cluster.url(0)}/replication/explain/{name}", timeout=5).json()
    dots = page.locator(".cw-version .cw-details .cw-mono").all_inner_texts()
    assert dots == [
        f"{origin}:{counter}" for origin, counter in (version["dot"] for version in explanation["versions"])
    ]
    for address in cluster.addresses:
        expect(cards.first.get_by_role("listitem").filter(has_text=address)).to_contain_text("has it")
    check_layout(page, VARIANTS[variant].get("width", 1400))
    save_screenshot(page, f"key{variant}")


def test_a_long_value_is_truncated_and_an_absent_key_is_reported(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(f"{admin(cluster)}keys/key/?key=long").page
    expect(page.locator("pre")).to_have_text('"' + "x" * 3999 + "…")
    expect(page.get_by_text("The first 4,000 characters of 9.0 kB.")).to_be_visible()
    page.goto(f"{admin(cluster)}keys/key/?key=no%20such%3Ckey%3E")
    expect(page.get_by_role("heading", level=1)).to_have_text("no such<key>")
    expect(page.get_by_text("This key does not exist on this replica.")).to_be_visible()


# --- the space-time diagram -------------------------------------------------------------------------------------------


def test_a_new_update_appears_in_the_diagram(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(f"{admin(cluster)}spacetime/").page
    write(cluster, 1)
    content = status(cluster, 1)
    counter = content["clock"][content["replica_id"]]
    for action in ("issued at", f"applied at :{PORT}"):
        pattern = re.compile(f":{PORT + 1} #{counter}( .1-0.)?: {action}")
        page.locator("#diagram circle", has_text=pattern).wait_for(state="attached", timeout=LIVE_MS)
    expect(page.locator("#updates tbody tr").first).to_contain_text(f"#{counter:,}")
    expect(page.locator("#updates tbody tr").first).to_contain_text("ms")
    check_layout(page, 1400)
    box = "document.getElementById('diagram-scroll')"
    assert page.evaluate(f"{box}.scrollLeft + {box}.clientWidth >= {box}.scrollWidth - 1"), (
        "it is scrolled to the present"
    )


def test_sixteen_lanes_fit_the_screen(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(width=390, height=844).page
    data = diagram(parse_cluster(recent(in_trouble(16), 20), "10.0.0.1:8090", NOW_US))
    serve_fragment(page, "**/now/", "dashboard/_spacetime.html", {"diagram": data})
    page.goto(f"{admin(cluster)}spacetime/")
    expect(page.locator(".cw-lanes li")).to_have_count(16)
    expect(page.locator(".cw-lanes")).to_contain_text("500 pending")
    check_layout(page, 390)


# --- all pages --------------------------------------------------------------------------------------------------------


def test_all_pages_are_read_only_and_work_without_scripts(cluster: LocalCluster, open_page: OpenPage) -> None:
    paths = [f"replica/{cluster.addresses[0]}/", "keys/", "keys/key/?key=greeting", "spacetime/"]
    for path in paths:
        page = open_page(admin(cluster) + path, java_script_enabled=False).page
        expect(page.get_by_role("navigation", name="Pages", exact=True)).to_be_visible()
        assert page.locator("form:not([method='get'])").count() == 0
        assert page.locator("[hx-post], [hx-put], [hx-patch], [hx-delete]").count() == 0
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert requests.request(method, admin(cluster) + path, timeout=5).status_code in {403, 405}
    page = open_page(f"{admin(cluster)}spacetime/", java_script_enabled=False).page
    before = page.locator("#as-of").inner_text()
    expect(page.locator("#as-of")).not_to_have_text(before, timeout=6000)


def test_the_api_documentation_works_under_its_content_security_policy(
    cluster: LocalCluster, open_page: OpenPage
) -> None:
    """``open_page`` fails the test if the browser reports a violation of the policy."""
    page = open_page(f"{cluster.url(0)}/docs/").page
    operation = page.locator(".opblock-get").first
    expect(operation).to_be_visible()
    operation.locator(".opblock-summary").first.click()
    expect(operation.locator(".opblock-body")).to_be_visible()
