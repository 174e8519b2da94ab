"""The front page in a browser, on real replicas."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import requests
from django.template.loader import render_to_string
from playwright.sync_api import Page, Route, expect

from kvsite.cluster import LocalCluster
from kvsite.dashboard.cluster_state import read
from kvsite.dashboard.overview import overview
from tests.browser.conftest import OpenPage
from tests.browser.statuses import NOW_US, in_trouble
from tests.browser.support import LIVE_MS, QUICK, admin, agree, barriers, live, part, shown, status, unrefused, write

pytestmark = [pytest.mark.browser, pytest.mark.processes]

PORT, PORT_GUARDED = 25100, 25110
PASSWORD = "open sesame"
WELL = "3 of 3 replicas alive, in step, nothing pending"

Keep = Callable[[Page, str], None]


@pytest.fixture(scope="module")
def running() -> Iterator[LocalCluster]:
    with LocalCluster(3, PORT, environment=QUICK) as started:
        yield started


@pytest.fixture
def cluster(running: LocalCluster) -> LocalCluster:
    """Three replicas that are ready, whatever the last test did to them."""
    for i in range(3):
        if not running.is_running(i):
            running.start_one(i)
    running.wait_ready()
    return running


@pytest.fixture(scope="module")
def guarded() -> Iterator[LocalCluster]:
    """Two replicas behind one password."""
    secrets = {**QUICK, "KV_ADMIN_PASSWORD": PASSWORD, "KV_CLUSTER_SECRET": "s" * 40}
    with LocalCluster(2, PORT_GUARDED, environment=secrets) as started:
        yield started


def log_in(page: Page, password: str = PASSWORD) -> None:
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def test_it_shows_three_replicas_and_a_verdict(cluster: LocalCluster, open_page: OpenPage, keep: Keep) -> None:
    for i in range(3):
        write(cluster, i, 20 + i)
    page = open_page(admin(cluster)).page
    expect(page).to_have_title(f"{cluster.addresses[0]} | Cluster | Causeway")
    expect(page.get_by_role("heading", level=1)).to_have_text("Cluster")
    expect(page.get_by_role("status")).to_have_text(WELL)
    expect(page.get_by_role("article").filter(has_text="serving")).to_have_count(3)
    for address in cluster.addresses:
        expect(page.get_by_role("heading", name=address, level=3).first).to_be_visible()
    expect(page.get_by_text("This store is open.")).to_be_visible()
    assert barriers(page) == []
    keep(page, "overview")
    dark = open_page(admin(cluster), color_scheme="dark").page
    expect(dark.get_by_role("status")).to_have_text(WELL)
    assert barriers(dark) == []
    keep(dark, "overview-dark")
    phone = open_page(admin(cluster), 390, 844).page
    expect(phone.get_by_role("status")).to_have_text(WELL)
    keep(phone, "overview-phone")


def test_a_key_that_is_written_elsewhere_changes_the_matrix(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    origin, address = status(cluster, 1)["replica_id"], cluster.addresses[2]
    before = shown(page)[address].clock[origin]
    write(cluster, 1)
    agree(lambda: shown(page)[address].clock[origin] == before + 1)


def test_every_figure_is_what_the_replica_says_while_one_is_killed_and_comes_back(
    cluster: LocalCluster, open_page: OpenPage, keep: Keep
) -> None:
    """Issue 6: within two seconds, whichever replica is asked."""
    first, gone = open_page(admin(cluster, 0)), open_page(admin(cluster, 2))
    page, address = first.page, cluster.addresses[2]
    for i in range(3):
        write(cluster, i, 5 + i)
        requests.delete(f"{cluster.url(i)}/kvs/{i}-0", timeout=5).raise_for_status()
        live([page, gone.page], cluster)
    last = shown(page)[address]

    cluster.kill(2)
    agree(lambda: shown(page)[address].is_greyed)
    # A replica that nobody had pointed a browser at knows of the dead one what the exchange told it.
    other = open_page(admin(cluster, 1)).page
    live([page, other], cluster)
    write(cluster, 0, 12)
    live([page, other], cluster)
    for asked in (page, other):
        expect(part(asked, "card", address)).to_contain_text("down", timeout=6000)
        assert shown(asked)[address].is_greyed
        assert shown(asked)[address].clock == last.clock
    dead = shown(page)[address]
    assert (dead.facts["Keys"], dead.facts["Incarnation"]) == (last.facts["Keys"], last.facts["Incarnation"])
    assert dead.facts["Lag"] == "12"
    expect(part(page, "clock", address)).to_contain_text("12 updates missing")
    expect(page.get_by_role("status")).to_have_text("2 of 3 replicas alive, in step, nothing pending")
    expect(page.locator("#verdict li")).to_have_text([f"{address} is down."])
    age = part(page, "card", address).locator(".cw-age")
    expect(age).to_contain_text("Last known state")
    expect(age).not_to_have_text(age.inner_text(), timeout=LIVE_MS)
    keep(page, "overview-down")

    cluster.start_one(2)
    cluster.wait_ready()
    live([page, other], cluster)
    write(cluster, 2, 3)
    live([page, other], cluster)
    for asked in (page, other, gone.page):
        expect(asked.get_by_role("status")).to_have_text(WELL, timeout=8000)
        assert not shown(asked)[address].is_greyed
        assert (
            shown(asked)[address].facts["Incarnation"] == status(cluster, 2)["incarnation"] != last.facts["Incarnation"]
        )
    live([page, other, gone.page], cluster)
    gone.problems = unrefused(gone.problems)


def test_the_page_says_when_its_own_replica_is_gone(cluster: LocalCluster, open_page: OpenPage) -> None:
    watched = open_page(admin(cluster, 1))
    warning = watched.page.locator("#stale")
    expect(warning).to_be_hidden()
    cluster.kill(1)
    expect(warning).to_be_visible(timeout=3000)
    expect(warning).to_contain_text("This replica has stopped answering")
    cluster.start_one(1)
    cluster.wait_ready()
    expect(warning).to_be_hidden(timeout=8000)
    expect(watched.page.get_by_role("status")).to_have_text(WELL, timeout=8000)
    assert watched.problems, "the browser told of the refused connections"
    watched.problems = unrefused(watched.problems)


def test_refreshing_keeps_focus_and_elements(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    page.locator("#views-scroll").focus()
    page.evaluate("document.getElementById('headline').marked = true")
    before = page.locator("#as-of").inner_text()
    for _ in range(2):
        page.wait_for_function("before => document.getElementById('as-of').textContent !== before", arg=before)
        before = page.locator("#as-of").inner_text()
    assert page.evaluate("document.activeElement.id") == "views-scroll"
    # A live region is read out when its text changes, not when it is replaced by its like.
    assert page.evaluate("document.getElementById('headline').marked") is True


def test_it_works_without_scripts(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster), java_script_enabled=False).page
    expect(page.get_by_role("status")).to_have_text(WELL)
    before = page.locator("#as-of").inner_text()
    expect(page.locator("#as-of")).not_to_have_text(before, timeout=6000)


def test_a_hidden_tab_asks_for_nothing(cluster: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(cluster)).page
    requested: list[str] = []
    page.on("request", lambda request: requested.append(request.url))
    page.evaluate("Object.defineProperty(document, 'hidden', {get: () => window.asleep, configurable: true})")
    page.evaluate("window.asleep = true")
    page.wait_for_timeout(300)
    requested.clear()
    page.wait_for_timeout(1500)
    assert requested == []
    with page.expect_request(f"{admin(cluster)}overview/", timeout=500):
        page.evaluate("window.asleep = false; document.dispatchEvent(new Event('visibilitychange'))")


def test_no_control_changes_anything(cluster: LocalCluster, open_page: OpenPage) -> None:
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
    told = overview(read(made, "10.0.0.1:8090", NOW_US), {"10.0.0.3:8090": 12.0})
    html = render_to_string("dashboard/_overview.html", {"overview": told})

    def answer(route: Route) -> None:
        route.fulfill(body=html, content_type="text/html")

    page = open_page(width=width, height=height).page
    page.route("**/admin/overview/", answer)
    page.goto(admin(cluster))
    expect(page.get_by_role("status")).to_have_text("15 of 16 replicas alive, not in step, updates pending")
    expect(page.locator("#clocks tbody td")).to_have_count(16 * 17)
    expect(page.locator("#queues")).to_contain_text("and 494 more")
    assert page.evaluate("document.documentElement.scrollWidth") == width, "tables scroll by themselves"
    if width > 400:
        assert barriers(page) == []


# --- behind a password ------------------------------------------------------------------------------------------------


def test_the_login_keeps_strangers_out(guarded: LocalCluster, open_page: OpenPage) -> None:
    page = open_page(admin(guarded)).page
    assert page.url.endswith("/admin/login/?next=/admin/")
    assert "replicas alive" not in page.content()
    log_in(page, "open says me")
    expect(page.locator(".errornote")).to_be_visible()
    log_in(page)
    expect(page.get_by_role("status")).to_have_text("2 of 2 replicas alive, in step, nothing pending")
    expect(page.get_by_text("This store is open.")).to_have_count(0)

    page.get_by_role("button", name="Log out").click()
    deadline = time.monotonic() + 5
    while page.context.cookies() and any(c["name"] == "sessionid" for c in page.context.cookies()):
        assert time.monotonic() < deadline
    page.goto(admin(guarded))
    expect(page.get_by_label("Password")).to_be_visible()


def test_a_login_holds_at_all_replicas_of_one_host(guarded: LocalCluster, open_page: OpenPage) -> None:
    first = open_page(admin(guarded, 0))
    log_in(first.page)
    expect(first.page.get_by_role("status")).to_be_visible()
    second = first.page.context.new_page()
    for i in (1, 0, 1):
        second.goto(admin(guarded, i))
        expect(second.get_by_role("status")).to_have_text("2 of 2 replicas alive, in step, nothing pending")
    as_of = first.page.locator("#as-of").inner_text()
    expect(first.page.locator("#as-of")).not_to_have_text(as_of, timeout=LIVE_MS)


def test_a_page_whose_session_ends_goes_to_the_login(guarded: LocalCluster, open_page: OpenPage) -> None:
    watched = open_page(admin(guarded))
    log_in(watched.page)
    expect(watched.page.get_by_role("status")).to_be_visible()
    watched.page.context.clear_cookies()
    expect(watched.page.get_by_label("Password")).to_be_visible(timeout=4000)
    watched.problems = [problem for problem in watched.problems if "403" not in problem]
