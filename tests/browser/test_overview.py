"""The front page in a browser, with real replicas."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from django.template.loader import render_to_string
from playwright.sync_api import Page, Route, expect

from kvsite.cluster import LocalCluster
from kvsite.dashboard.cluster_state import parse_cluster
from kvsite.dashboard.overview import overview
from tests.browser.conftest import OpenPage, SaveScreenshot
from tests.browser.support import (
    LIVE_MS,
    QUICK,
    accessibility_problems,
    admin,
    part,
    shown_replicas,
    status,
    wait_consistent,
    wait_live,
    without_connection_errors,
    write,
)
from tests.support.statuses import NOW_US, in_trouble
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.processes]

PORT, PORT_GUARDED = 25100, 25110
PASSWORD = "open sesame"
HEALTHY = "3 of 3 replicas alive, in sync, no updates pending"


@pytest.fixture(scope="module")
def running() -> Iterator[LocalCluster]:
    with LocalCluster(3, PORT, environment=QUICK) as started:
        yield started


@pytest.fixture
def cluster(running: LocalCluster) -> LocalCluster:
    """Three ready replicas. Restarts those that the previous test killed."""
    for i in range(3):
        if not running.is_running(i):
            running.start_one(i)
    running.wait_ready()
    return running


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalCluster]:
    """Two replicas with the same password."""
    secrets = {**QUICK, "KV_ADMIN_PASSWORD": PASSWORD, "KV_CLUSTER_SECRET": "s" * 40}
    with LocalCluster(2, PORT_GUARDED, environment=secrets) as started:
        yield started


def log_in(page: Page, password: str = PASSWORD) -> None:
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def test_the_front_page_shows_three_replicas_and_their_health(
    cluster: LocalCluster, open_page: OpenPage, save_screenshot: SaveScreenshot
) -> None:
    for i in range(3):
        write(cluster, i, 20 + i)
    page = open_page(admin(cluster)).page
    expect(page).to_have_title(f"{cluster.addresses[0]} | Cluster | Causeway")
    expect(page.get_by_role("heading", level=1)).to_have_text("Cluster")
    expect(page.get_by_role("status")).to_have_text(HEALTHY)
    expect(page.get_by_role("article").filter(has_text="serving")).to_have_count(3)
    for address in cluster.addresses:
        expect(page.get_by_role("heading", name=address, level=3).first).to_be_visible()
    expect(page.get_by_text("This store is open.")).to_be_visible()
    assert accessibility_problems(page) == []
    save_screenshot(page, "overview")
    dark = open_page(admin(cluster), color_scheme="dark").page
    expect(dark.get_by_role("status")).to_have_text(HEALTHY)
    save_screenshot(dark, "overview-dark")
    phone = open_page(admin(cluster), 390, 844).page
    expect(phone.get_by_role("status")).to_have_text(HEALTHY)
    save_screenshot(phone, "overview-phone")


def test_a_write_at_another_replica_appears_in_the_clock_matrix(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    origin, address = status(cluster, 1)["replica_id"], cluster.addresses[2]
    before = shown_replicas(page)[address].clock[origin]
    write(cluster, 1)
    wait_live(lambda: shown_replicas(page)[address].clock[origin] == before + 1)


def test_pages_show_what_replicas_report_while_one_is_killed_and_restarted(
    cluster: LocalCluster, open_page: OpenPage, save_screenshot: SaveScreenshot
) -> None:
    """Within two seconds, on the pages of every replica."""
    first, killed = open_page(admin(cluster, 0)), open_page(admin(cluster, 2))
    page, address = first.page, cluster.addresses[2]
    for i in range(3):
        write(cluster, i, 5 + i)
        requests.delete(f"{cluster.url(i)}/kvs/{i}-0", timeout=5).raise_for_status()
        wait_consistent([page, killed.page], cluster)
    last = shown_replicas(page)[address]

    cluster.kill(2)
    wait_live(lambda: shown_replicas(page)[address].is_greyed)
    # A replica that has served no page before knows the clock of the dead replica from their exchanges.
    other = open_page(admin(cluster, 1)).page
    wait_consistent([page, other], cluster)
    write(cluster, 0, 12)
    wait_consistent([page, other], cluster)
    for each in (page, other):
        expect(part(each, "card", address)).to_contain_text("down", timeout=6000)
        assert shown_replicas(each)[address].is_greyed
        assert shown_replicas(each)[address].clock == last.clock
    dead = shown_replicas(page)[address]
    assert (dead.facts["Keys"], dead.facts["Incarnation"]) == (last.facts["Keys"], last.facts["Incarnation"])
    assert dead.facts["Lag"] == "12"
    expect(part(page, "clock", address)).to_contain_text("12 updates missing")
    expect(page.get_by_role("status")).to_have_text(f"{address} is down, 2 of 3 replicas alive")
    faults = [f"{address} is down.", f"{address} is missing 12 updates, as far as is known."]
    expect(page.locator("#health .cw-finding")).to_have_text(faults)
    age = part(page, "card", address).locator(".cw-age")
    expect(age).to_contain_text("The figures are the last known ones")
    expect(age).not_to_have_text(age.inner_text(), timeout=LIVE_MS)
    save_screenshot(page, "overview-down")

    cluster.start_one(2)
    cluster.wait_ready()
    wait_consistent([page, other], cluster)
    write(cluster, 2, 3)
    wait_consistent([page, other], cluster)
    for each in (page, other, killed.page):
        expect(each.get_by_role("status")).to_have_text(HEALTHY, timeout=8000)
        assert not shown_replicas(each)[address].is_greyed
        assert (
            shown_replicas(each)[address].facts["Incarnation"]
            == status(cluster, 2)["incarnation"]
            != last.facts["Incarnation"]
        )
    wait_consistent([page, other, killed.page], cluster)
    killed.problems = without_connection_errors(killed.problems)


def test_the_page_shows_a_warning_when_its_replica_does_not_respond(cluster: LocalCluster, open_page: OpenPage) -> None:
    checked = open_page(admin(cluster, 1))
    warning = checked.page.locator("#stale")
    expect(warning).to_be_hidden()
    cluster.kill(1)
    expect(warning).to_be_visible(timeout=3000)
    expect(warning).to_contain_text("This replica does not respond")
    cluster.start_one(1)
    cluster.wait_ready()
    expect(warning).to_be_hidden(timeout=8000)
    expect(checked.page.get_by_role("status")).to_have_text(HEALTHY, timeout=8000)
    assert checked.problems, "the browser reported the refused connections"
    checked.problems = without_connection_errors(checked.problems)


def test_a_refresh_keeps_focus_and_elements(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    page.locator("#views-scroll").focus()
    page.evaluate("document.getElementById('headline').marked = true")
    before = page.locator("#as-of").inner_text()
    for _ in range(2):
        page.wait_for_function("before => document.getElementById('as-of').textContent !== before", arg=before)
        before = page.locator("#as-of").inner_text()
    assert page.evaluate("document.activeElement.id") == "views-scroll"
    # A live region is announced when its text changes, and also when the element is replaced by an equal one.
    assert page.evaluate("document.getElementById('headline').marked") is True


def test_the_front_page_works_without_scripts(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster), java_script_enabled=False).page
    expect(page.get_by_role("status")).to_have_text(HEALTHY)
    before = page.locator("#as-of").inner_text()
    expect(page.locator("#as-of")).not_to_have_text(before, timeout=6000)


def test_a_hidden_tab_sends_no_requests(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.asleep, configurable: true})")
    page.evaluate("window.asleep = true")
    page.wait_for_timeout(300)  # A request that the page sent before may still be reported.
    requested.clear()
    page.wait_for_timeout(1500)  # A visible page sends a request every second.
    assert requested == []
    with page.expect_request(f"{admin(cluster)}overview/", timeout=500):
        page.evaluate("window.asleep = false; document.dispatchEvent(new Event('visibilitychange'))")


def test_the_front_page_is_read_only(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    assert page.locator("form, input, select, textarea").count() == 0
    buttons = page.get_by_role("button")
    assert [buttons.nth(i).get_attribute("class") for i in range(buttons.count())] == ["theme-toggle"]
    before = [status(cluster, i)["clock"] for i in range(3)]
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("", "overview/"):
            assert requests.request(method, admin(cluster) + path, timeout=5).status_code in {403, 405}
    assert [status(cluster, i)["clock"] for i in range(3)] == before


def test_the_theme_can_be_chosen(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    toggle = page.get_by_role("button")
    colours = set()
    for _ in range(3):
        toggle.click()
        colours.add(page.evaluate("getComputedStyle(document.querySelector('.cw-card')).backgroundColor"))
    assert colours == {"rgb(255, 255, 255)", "rgb(26, 26, 26)"}


@pytest.mark.parametrize(("width", "height"), [(1400, 1000), (390, 844)])
def test_sixteen_replicas_in_trouble_fit_the_screen(
    cluster: LocalCluster, open_page: OpenPage, width: int, height: int
) -> None:
    made = in_trouble(16)
    data = overview(parse_cluster(made, "10.0.0.1:8090", NOW_US), {"10.0.0.3:8090": 12.0})
    html = render_to_string("dashboard/_overview.html", {"overview": data})

    def respond(route: Route) -> None:
        route.fulfill(body=html, content_type="text/html")

    page = open_page(width=width, height=height).page
    page.route("**/admin/overview/", respond)
    page.goto(admin(cluster))
    headline = "10.0.0.16:8090 is down, 1 more problem, 15 of 16 replicas alive"
    expect(page.get_by_role("status")).to_have_text(headline)
    expect(page.locator("#clocks tbody td")).to_have_count(16 * 17)
    expect(page.locator("#queues")).to_contain_text("and 494 more")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "tables scroll inside the page"
    if width > 400:
        assert accessibility_problems(page) == []


# --- behind a password ------------------------------------------------------------------------------------------------


def test_the_login_is_required(guarded: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(guarded)).page
    assert page.url.endswith("/admin/login/?next=/admin/")
    assert "replicas alive" not in page.content()
    log_in(page, "open says me")
    expect(page.locator(".errornote")).to_be_visible()
    log_in(page)
    expect(page.get_by_role("status")).to_have_text("2 of 2 replicas alive, in sync, no updates pending")
    expect(page.get_by_text("This store is open.")).to_have_count(0)

    page.get_by_role("button", name="Log out").click()
    wait_until(lambda: all(cookie["name"] != "sessionid" for cookie in page.context.cookies()), timeout_s=5)
    page.goto(admin(guarded))
    expect(page.get_by_label("Password")).to_be_visible()


def test_a_login_is_valid_at_all_replicas_of_one_host(guarded: LocalCluster, open_page: OpenPage) -> None:
    first = open_page(admin(guarded, 0))
    log_in(first.page)
    expect(first.page.get_by_role("status")).to_be_visible()
    second = first.page.context.new_page()
    for i in (1, 0, 1):
        second.goto(admin(guarded, i))
        expect(second.get_by_role("status")).to_have_text("2 of 2 replicas alive, in sync, no updates pending")
    as_of = first.page.locator("#as-of").inner_text()
    expect(first.page.locator("#as-of")).not_to_have_text(as_of, timeout=LIVE_MS)


def test_a_page_whose_session_ends_opens_the_login(guarded: LocalCluster, open_page: OpenPage) -> None:
    checked = open_page(admin(guarded))
    log_in(checked.page)
    expect(checked.page.get_by_role("status")).to_be_visible()
    checked.page.context.clear_cookies()
    expect(checked.page.get_by_label("Password")).to_be_visible(timeout=4000)
    checked.problems = [problem for problem in checked.problems if "403" not in problem]
