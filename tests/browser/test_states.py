"""Every page in every theme: no accessibility problem, nothing wider than the screen. The faults that the pages show.

The pages are of constructed statuses, and this process serves them, without a server: the browser's requests go to
Django's test client. So one browser visits many pages in a short time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.test import Client
from playwright.sync_api import Browser, Page, Route, ViewportSize, expect

from kvsite.config import Config
from kvsite.dashboard import details, polling
from kvsite.dashboard import site as site_module
from kvsite.dashboard.cluster_state import ClusterState
from kvsite.dashboard.lag import highest_known
from kvsite.dashboard.polling import Poll
from kvsite.schema import document
from replication.refusals import Refusal, Standing, describe, describe_one
from store.api.context import CONTEXT
from store.settings import RequestLimits
from store.values import as_json, store_bytes
from tests.browser.conftest import CheckedPage, OpenPage, SaveScreenshot
from tests.browser.support import accessibility_problems
from tests.kvsite.dashboard.support import A, B, C, FakeMember, state_of
from tests.support.api import make_context
from tests.support.statuses import NOW_US, Cluster, cluster_of, history, id_of, in_trouble, member, pending, recent
from tests.support.statuses import silent as silenced

pytestmark = [pytest.mark.browser]

ORIGIN = "http://localhost:8090"
DESKTOP: ViewportSize = {"width": 1400, "height": 1000}
PHONE: ViewportSize = {"width": 390, "height": 844}
VARIANTS: dict[str, tuple[ViewportSize, Any]] = {
    "": (DESKTOP, "light"),
    "-dark": (DESKTOP, "dark"),
    "-phone": (PHONE, "light"),
}
"""Suffix of a screenshot -> size of the window, theme."""

HELD_BACK = {"Content-Length", "Content-Encoding"}


class LocalMember(FakeMember):
    """The local replica, with two keys. One of them has two values, of which one is bytes."""

    def keys(self, *_which: Any, **_more: Any) -> list[dict[str, Any]]:
        written = {"dot": (id_of(B), 1), "timestamp": NOW_US}
        plain = {"key": "carts/1", "type": "json", "value": b'{"items":3}', "value_bytes": 11, "versions": 1}
        return [plain | written, {**plain, "key": "dinner", "versions": 2} | written]

    def count_keys(self, _prefix: str, *, conflicts: bool) -> int:
        return 1 if conflicts else 2

    def ranked_keys(self, *_which: Any, **_more: Any) -> tuple[list[dict[str, Any]], bool]:
        return self.keys(), True

    def explain(self, key: str, _max_values_bytes: int = 0) -> dict[str, Any]:
        members = [
            {"address": each, "state": "alive", "self": each == A, "has": has}
            for each, has in zip((A, B, C), (True, False, None), strict=True)
        ]
        version: dict[str, Any] = {"timestamp": NOW_US, "expires_in_s": 90.0, "past": {id_of(A): 7}, "members": members}
        long = b'{"name":"Ada","items":["' + b"bread, butter and jam, " * 6 + b'"]}'
        return {
            "key": key,
            "versions": [
                {**version, "dot": [id_of(A), 7], "origin": id_of(A), "value": long, "value_bytes": len(long)},
                {**version, "dot": [id_of(B), 3], "value": as_json(store_bytes(b"GIF89a")), "value_bytes": 6},
            ],
            "version_count": 2,
            "pending": [
                {"dot": [id_of(C), 9], "deletes": False, "waits_for": [id_of(B), 8], "since_s": 4.0},
            ],
            "merged": None,
            "note": "",
        }


def down_in_views(cluster: Cluster, *addresses: str, silent_s: float = 42.0) -> Cluster:
    """Make replicas of ``cluster`` silent, and down in the views of the others."""
    for address in addresses:
        cluster[address] = silenced(cluster[address], silent_s)
    for each in cluster.values():
        if each["reachable"]:
            each["status"]["view"] = [
                member(other, "down", last_contact_s=silent_s) if other in addresses else member(other)
                for other in cluster
            ]
    return cluster


def isolated() -> Cluster:
    """The third replica is cut off. The others have gone on writing."""
    cluster = cluster_of(3, counter=400)
    for address in (A, B):
        cluster[address]["status"]["clock"] |= {id_of(A): 418, id_of(B): 412}
    down_in_views(cluster, C)
    for address in (A, B):
        cluster[address]["status"]["events"] = [
            {"number": 1, "wall_us": NOW_US - 39_000_000, "kind": "down", "subject": C, "detail": ""}
        ]
    return cluster


def misconfigured() -> Cluster:
    """The second replica was killed, and has been started again with another cluster secret than the others."""
    cluster = cluster_of(3, counter=400)
    standing = Standing(0.0, 0.0, is_serving=True, refusal=Refusal("secret"))

    def refusing(*addresses: str) -> list[dict[str, str]]:
        text = describe_one(Refusal("secret"))
        return [{"address": address, "kind": "secret", "text": text} for address in addresses]

    reason = describe({A: standing, C: standing})
    missed = [{**each, "since_s": 9.0} for each in refusing(A, C)]
    view = [member(B, self=True)]
    restarted = {"state": "joining", "keys": 0, "clock": {}, "uptime_s": 9.0, "replica_id": id_of(B, 2), "view": view}
    cluster[B]["status"].update(not_ready_reason=reason, refusals=refusing(A, C), never_reached=missed, **restarted)
    for address in (A, C):
        cluster[address]["status"].update(refusals=refusing(B))
        cluster[address]["status"]["view"][1] = member(B, "down", last_contact_s=12.0)
    return cluster


def behind() -> Cluster:
    """The third replica lags. An update there waits for one that has not arrived."""
    cluster = cluster_of(3, counter=400)
    for address in (A, B):
        cluster[address]["status"]["clock"] |= {id_of(A): 2_950, id_of(B): 431}
    cluster[C]["status"].update(pending=pending(2, A, B, 401), pending_count=2, deferred_requests=3)
    for each in cluster[C]["status"]["pending"]:
        each["since_s"] = 14.0
    return cluster


def alone() -> Cluster:
    """Two of three replicas have ended."""
    return down_in_views(cluster_of(3, counter=400), B, C, silent_s=64.0)


STATES: dict[str, tuple[Callable[[], Cluster], dict[str, float], str]] = {
    "isolated": (isolated, {}, f"{C} is down"),
    "misconfigured": (misconfigured, {B: 9.0}, f"{B} has another KV_CLUSTER_SECRET than the others"),
    "behind": (behind, {C: 14.0}, f"{C} is behind"),
    "alone": (alone, {}, f"Only {A} responds"),
}
"""Name of a fault -> the statuses, seconds of lag by address, and what the headline says first."""


class Pages:
    """The pages, served by this process. ``shown``: the cluster that they show."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config = Config()
        self.cluster: ClusterState = state_of(cluster_of(3))
        self.lag_s: dict[str, float] = {}
        self.node = LocalMember()
        self._client = Client(**{CONTEXT: make_context(node=self.node)})  # type: ignore[arg-type]
        monkeypatch.setattr(site_module, "poller", self)
        for module in (site_module, polling):
            monkeypatch.setattr(module, "current", lambda: self.config)
        monkeypatch.setattr("kvsite.dashboard.auth.current", lambda: self.config)
        monkeypatch.setattr(details, "cluster_with_recent_updates", lambda _: (self.cluster, {}))
        monkeypatch.setattr(details, "with_history", lambda _node, replica, *_: replica)

    def latest(self, _node: object) -> Poll:
        return Poll(0.0, self.cluster, self.lag_s)

    def count_operations(self) -> int:
        """Return how many operations the API has."""
        schema = document(RequestLimits())
        return sum("operationId" in operation for path in schema["paths"].values() for operation in path.values())

    def show(self, cluster: Cluster, lag_s: dict[str, float] | None = None) -> None:
        self.cluster, self.lag_s = state_of(cluster), lag_s or {}

    def open(self, open_page: OpenPage, **options: Any) -> CheckedPage:
        """Return a page with a context of its own, whose requests this process answers."""
        checked = open_page(host="localhost", **options)
        checked.page.route("**/*", self.answer)
        return checked

    def answer(self, route: Route) -> None:
        url = urlsplit(route.request.url)
        target = f"{url.path}?{url.query}" if url.query else url.path
        data = route.request.post_data or ""
        response = self._client.generic(
            route.request.method,
            target,
            data,
            content_type=route.request.headers.get("content-type", "text/plain"),
            headers={"Accept": route.request.headers.get("accept", "*/*")},
        )
        body = b"".join(response) if response.streaming else response.content
        headers = {name: value for name, value in response.items() if name not in HELD_BACK}
        route.fulfill(status=response.status_code, headers=headers, body=body)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pages]:
    made = Pages(monkeypatch)
    yield made
    made.node.ended.set()


@pytest.fixture(scope="module")
def shared_page(browser: Browser) -> Iterator[CheckedPage]:
    """One page for the tests of this module: its first load in a new context takes more than a second."""
    context = browser.new_context(viewport=DESKTOP)
    yield CheckedPage(context.new_page(), "localhost")
    context.close()


@pytest.fixture
def checked(pages: Pages, shared_page: CheckedPage) -> Iterator[CheckedPage]:
    """The shared page, empty, on a desktop, without cookies. This process answers its requests."""
    page = shared_page.page
    show_as(page, *VARIANTS[""])
    page.route("**/*", pages.answer)
    yield shared_page
    page.goto("about:blank")  # Before the route ends: the page refreshes itself.
    page.unroute_all(behavior="ignoreErrors")
    page.context.clear_cookies()
    problems, shared_page.problems[:] = list(shared_page.problems), []
    assert problems == []


def show_as(page: Page, size: ViewportSize, theme: Any) -> None:
    page.set_viewport_size(size)
    page.emulate_media(color_scheme=theme)


def overflowing(page: Page) -> list[str]:
    """Return the elements whose text is wider than their box, and that do not scroll."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll("#content *")].filter((node) => {
          const style = getComputedStyle(node);
          const scrolls = ["auto", "scroll"].includes(style.overflowX) || node.closest("svg, .visually-hidden");
          return !scrolls && style.display !== "inline" && node.scrollWidth > node.clientWidth + 1 && node.clientWidth
            && style.textOverflow !== "ellipsis";
        }).map((node) => node.outerHTML.slice(0, 200))"""
    )
    return found


def too_wide(page: Page) -> list[str]:
    """Return what does not fit on the screen."""
    found = [f"{page.url}: {each} is wider than its box" for each in overflowing(page)]
    is_wider = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    return [*found, f"{page.url} is wider than the screen"] if is_wider else found


def problems_of(page: Page) -> list[str]:
    """Return what is wrong with the page in each variant. The variants differ in nothing but CSS: one load shows all.

    All rules are checked once. The dark theme can differ in contrast only, the narrow screen in what fits.
    """
    found = []
    for suffix, variant in VARIANTS.items():
        show_as(page, *variant)
        found += too_wide(page)
        if suffix == "":
            found += accessibility_problems(page)
        elif suffix == "-dark":
            found += accessibility_problems(page, rules=["color-contrast"])
    return found


@pytest.mark.parametrize("state", STATES)
def test_a_fault_is_the_first_thing_that_a_page_says(
    pages: Pages, checked: CheckedPage, save_screenshot: SaveScreenshot, state: str
) -> None:
    make, lag_s, headline = STATES[state]
    pages.show(make(), lag_s)
    page = checked.page
    page.goto(f"{ORIGIN}/admin/")
    for suffix, variant in VARIANTS.items():
        show_as(page, *variant)
        expect(page.get_by_role("status")).to_contain_text(headline)
        box = page.get_by_role("status").bounding_box()
        assert box is not None
        assert box["y"] + box["height"] < 320, "it is seen without scrolling"
        assert "in sync" not in page.get_by_role("status").inner_text()
        assert not (problems := too_wide(page)), "\n".join(problems)
        save_screenshot(page, f"state-{state}{suffix}")
    # Other tests check the rest of the page.
    show_as(page, *VARIANTS[""])
    assert not (problems := accessibility_problems(page, "#health")), "\n".join(problems)


def test_the_advice_to_the_last_replica_is_read_before_its_cards(pages: Pages, checked: CheckedPage) -> None:
    pages.show(alone())
    page = checked.page
    page.goto(f"{ORIGIN}/admin/")
    expect(page.locator("#health .cw-advice li").first).to_contain_text(f"Do not stop or restart {A}")
    advice, cards = page.locator("#health").bounding_box(), page.locator("#replicas").bounding_box()
    assert advice is not None
    assert cards is not None
    assert advice["y"] + advice["height"] <= cards["y"] < DESKTOP["height"]


PAGES = {
    "overview": "/admin/",
    "replica": f"/admin/replica/{A}/?window=hour",
    "silent replica": f"/admin/replica/{C}/",
    "no member": "/admin/replica/10.9.9.9:1/",
    "keys": "/admin/keys/?order=largest",
    "key": "/admin/keys/key/?key=dinner",
    "update": f"/admin/update/?update={id_of(A)}:2501",
    "space-time": "/admin/spacetime/",
    "error": "/admin/no/such/page/",
    "too old": "/docs/no-such-page",
}


def test_every_page_has_no_accessibility_problem_in_any_theme_and_on_a_phone(
    pages: Pages, checked: CheckedPage
) -> None:
    cluster = recent(in_trouble(3), 12)
    cluster[A]["status"].update(history=history(), refusals=[], snapshots={"taking_from": B, "giving_to": [id_of(C)]})
    cluster[A]["status"]["conflicts"] = 2
    pages.show(cluster, {B: 14.0})
    assert highest_known(pages.cluster)
    page = checked.page
    problems = []
    for path in PAGES.values():
        page.goto(ORIGIN + path)
        problems += problems_of(page)
    checked.problems = [problem for problem in checked.problems if "404" not in problem]
    assert not problems, "\n".join(problems)


def test_the_login_and_the_error_of_a_wrong_password_have_no_accessibility_problem(
    pages: Pages, checked: CheckedPage
) -> None:
    pages.config = Config(admin_password="open sesame")
    page = checked.page
    page.goto(f"{ORIGIN}/admin/login/?next=/admin/")
    expect(page.get_by_role("heading", level=1)).to_have_text("Log in to the dashboard")
    assert not (problems := problems_of(page)), "\n".join(problems)
    page.get_by_label("Password").fill("open says me")
    page.get_by_role("button", name="Log in").click()
    expect(page.locator(".errornote")).to_be_visible()
    assert not (problems := problems_of(page)), "\n".join(problems)


def test_the_api_page_has_no_accessibility_problem_and_its_examples_are_sent_as_they_are(
    pages: Pages, checked: CheckedPage
) -> None:
    page = checked.page
    page.goto(f"{ORIGIN}/docs/")
    expect(page.get_by_role("heading", level=1)).to_contain_text("Causeway API")
    expect(page.get_by_role("button", name="Authorize")).to_be_visible()
    expect(page.locator(".opblock")).to_have_count(pages.count_operations())
    assert not (problems := accessibility_problems(page)), "\n".join(problems)
    for operation, status in (("put", "201"), ("get", "200"), ("delete", "200")):
        block = page.locator(f"#operations-kvs-{operation}Key")
        block.locator(".opblock-summary-control").click()
        block.get_by_role("button", name="Try it out").click()
        block.get_by_role("button", name="Execute").click()
        expect(block.locator(".live-responses-table .response-col_status").last).to_contain_text(status)
        if operation == "put":  # The parts of the others are the same.
            problems = accessibility_problems(page, "#operations-kvs-putKey")
            assert not problems, "\n".join(problems)
    block = page.locator("#operations-view-addToView")
    block.locator(".opblock-summary-control").click()
    block.get_by_role("button", name="Try it out").click()
    block.get_by_role("button", name="Execute").click()
    expect(block.locator(".live-responses-table .response-col_status").last).to_contain_text("400")
    assert pages.node.addresses == [A, B, C], "no example changes the view"
    checked.problems = [problem for problem in checked.problems if "400 (Bad Request)" not in problem]


def test_pages_are_complete_without_scripts(pages: Pages, open_page: OpenPage) -> None:
    pages.show(recent(in_trouble(3), 12), {B: 14.0})
    page = pages.open(open_page, java_script_enabled=False).page
    for name, selector in {
        "overview": "#clocks",
        "silent replica": "#gone",
        "keys": "#total",
        "key": ".cw-version pre",
        "update": "#places",
        "space-time": "#diagram svg",
    }.items():
        page.goto(ORIGIN + PAGES[name])
        expect(page.locator(selector).first).to_be_visible()
        expect(page.locator(".cw-copy:visible")).to_have_count(0)
        assert page.locator("form:not([method='get'])").count() == 0, "read-only"


def test_a_mark_of_the_diagram_opens_its_update_with_a_finger(pages: Pages, open_page: OpenPage) -> None:
    pages.show(recent(cluster_of(3), 6))
    page = pages.open(open_page, **PHONE, has_touch=True).page
    page.goto(f"{ORIGIN}/admin/spacetime/")
    mark = page.locator("#diagram-scroll a").last
    box = mark.locator(".cw-touch").bounding_box()
    assert box is not None
    assert min(box["width"], box["height"]) >= 24
    mark.tap()
    expect(page.get_by_role("heading", level=1)).to_contain_text("Update")
    expect(page.locator("#places tbody tr")).to_have_count(3)


def test_a_value_can_be_copied(pages: Pages, open_page: OpenPage) -> None:
    checked = pages.open(open_page, permissions=["clipboard-read", "clipboard-write"])
    page = checked.page
    page.goto(f"{ORIGIN}/admin/keys/key/?key=dinner")
    page.get_by_role("button", name="Copy").first.click()
    expect(page.get_by_role("button", name="Copied")).to_be_visible()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == bytes(pages.node.explain("dinner")["versions"][0]["value"]).decode(), "as it is stored"
