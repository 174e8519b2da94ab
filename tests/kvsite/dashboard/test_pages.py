"""The pages as Django renders them, their security, and charts, diagram and key lists. Browser: tests/browser."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import pytest
from django.contrib.staticfiles import finders
from django.test import Client

from kvsite.config import Config
from kvsite.dashboard import details, polling
from kvsite.dashboard import site as site_module
from kvsite.dashboard.charts import charts
from kvsite.dashboard.cluster_state import HistoryPoint
from kvsite.dashboard.keys_page import PAGE_SIZE, key_list_page, key_page
from kvsite.dashboard.polling import ClusterPoller, poll_cluster
from kvsite.dashboard.spacetime import diagram
from kvsite.dashboard.status_fetcher import StatusFetcher
from store.values import as_json, store_bytes
from tests.kvsite.dashboard.support import A, B, C, FakeClock, FakeMember, ShowCluster, client_of, state_of
from tests.support.statuses import NOW_US, Cluster, cluster_of, id_of, in_trouble, pending, recent, silent

# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [{}, cluster_of(1), cluster_of(3), in_trouble(3), in_trouble(16)])
def test_pages_and_their_tables_are_well_formed(show_cluster: ShowCluster, cluster: Cluster) -> None:
    show_cluster(cluster)
    response = Client().get("/admin/")
    html = response.content.decode()
    assert response.status_code == 200
    assert "<title>" in html
    assert html.count("<h1>") == 1
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "ids are unique"
    assert html.count("<caption>") == html.count("<table>") == (2 if cluster else 0)
    assert not re.search(r"<th(?! scope=)[ >]", html), "every table header has a scope"
    assert Client().get("/admin/overview/").content.decode().strip() in html


def test_the_page_of_a_process_without_a_replica_states_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "poller", ClusterPoller(poll_cluster))
    assert "No replica runs in this process" in Client().get("/admin/").content.decode()


def test_no_page_has_inline_scripts_or_styles_or_external_resources(show_cluster: ShowCluster) -> None:
    show_cluster(in_trouble(3))
    for path in ("/admin/", "/admin/login/"):
        response = Client().get(path, follow=True)
        html = response.content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)", html)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
        policy = response["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_pages_only_read(show_cluster: ShowCluster) -> None:
    show_cluster(cluster_of(3))
    client = Client(enforce_csrf_checks=True)
    html = client.get("/admin/").content.decode()
    assert "<form" not in html
    assert set(re.findall(r"\bhx-(get|post|put|patch|delete)=", html)) == {"get"}
    for path in ("/admin/", "/admin/overview/"):
        for send in (client.post, client.put, client.patch, client.delete):
            assert send(path).status_code in {403, 405}, path


@pytest.mark.parametrize("is_open", [True, False])
def test_the_page_says_when_the_store_is_open(show_cluster: ShowCluster, is_open: bool) -> None:
    show_cluster(cluster_of(2, open=is_open))
    assert ("This store is open" in Client().get("/admin/").content.decode()) is is_open


def test_with_a_password_nothing_is_shown_before_the_login(
    show_cluster: ShowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_cluster(cluster_of(2))
    monkeypatch.setattr(site_module, "current", lambda: Config(admin_password="sesame"))
    page = Client().get("/admin/")
    assert (page.status_code, page["Location"]) == (302, "/admin/login/?next=/admin/")
    part = Client().get("/admin/overview/")
    assert (part.status_code, part["HX-Redirect"], part.content) == (403, "/admin/login/", b"")


def test_vendored_scripts_match_their_checksums() -> None:
    readme = finders.find("dashboard/vendor/README.md")
    assert isinstance(readme, str)
    sums = dict(re.findall(r"^\| (\S+\.js) \|.*\| ([0-9a-f]{64}) \|$", Path(readme).read_text(), re.MULTILINE))
    scripts = sorted(Path(readme).parent.glob("*.js"))
    assert sorted(sums) == [script.name for script in scripts]
    for script in scripts:
        assert hashlib.sha256(script.read_bytes()).hexdigest() == sums[script.name]


# -- the other pages ---------------------------------------------------------------------------------------------------


def points(*values: tuple[float, float]) -> list[HistoryPoint]:
    """Make samples from (age, reads per second), oldest first."""
    return [HistoryPoint(age_s=age_s, reads=reads) for age_s, reads in values]


def test_a_chart_has_a_gap_where_the_replica_took_no_samples() -> None:
    chart, lag = charts(points((500, 4), (494, 8), (300, 2), (294, 12)), NOW_US)
    reads = chart.curves[0]
    assert [step[0] for step in reads.path.split() if step[0] in "ML"] == ["M", "L", "M", "L"]
    assert (reads.now, reads.maximum, chart.top) == ("12", "12", "20")
    assert "reads now 12, maximum 12" in chart.summary
    assert lag.top == "1", "a flat curve has a scale, too"


def test_the_charts_of_a_replica_that_just_started_are_empty() -> None:
    assert [chart.is_empty for chart in charts([], NOW_US)] == [True, True]


@pytest.mark.parametrize("cluster", [{}, cluster_of(1), recent(cluster_of(3)), recent(in_trouble(16), 40)])
def test_the_diagram_and_its_table_show_the_same_updates(cluster: Cluster) -> None:
    picture = diagram(state_of(cluster))
    issued = [mark for mark in picture.marks if mark.kind == "issued"]
    assert len(issued) == sum("issued" in row.cells for row in picture.table)
    assert len(picture.lanes) == len(cluster)
    for mark in picture.marks:
        assert 0 <= mark.x <= picture.width
        assert 0 <= mark.y <= picture.height
    for arrow in picture.arrows:
        assert arrow.x2 > arrow.x1, "no update is applied before it was issued"


def test_a_wall_clock_that_is_behind_draws_no_arrow_into_the_past() -> None:
    cluster = recent(cluster_of(2), 1)
    cluster[B]["status"]["recent"][0]["wall_us"] -= 5_000_000
    picture = diagram(state_of(cluster))
    [arrow] = picture.arrows
    assert arrow.x2 > arrow.x1
    assert picture.table[0].cells == ("issued", "−4,997 ms"), "the table shows the difference between the clocks"


def test_a_pending_update_is_marked_and_named_in_the_table() -> None:
    cluster = recent(cluster_of(3), 3)
    cluster[B]["status"].update(pending=pending(1, A, C), pending_count=1)
    picture = diagram(state_of(cluster))
    [mark] = [mark for mark in picture.marks if mark.kind == "pending"]
    assert mark.title == "10.0.0.1 #101 (carts/0/items): pending at 10.0.0.2 for 4.0 s, waits for 10.0.0.3 #101"
    assert "pending, waits for 10.0.0.3 #101" in {cell for row in picture.table for cell in row.cells}


def test_the_diagram_shows_only_what_an_unreachable_replica_is_known_to_have() -> None:
    cluster = recent(cluster_of(3), 3)
    for address in (A, B):
        applied = {"dot": [id_of(A), 200], "wall_us": NOW_US - 1000, "key": "later"}
        cluster[address]["status"]["recent"].append(applied)
        cluster[address]["status"]["clock"][id_of(A)] = 200
    cluster[C]["status"].update(pending=pending(1, A, B), pending_count=1)
    cluster[C] = silent(cluster[C], 5.0)
    picture = diagram(state_of(cluster))
    assert [lane.note for lane in picture.lanes] == ["", "", "no response"]
    assert not any(mark.kind == "pending" for mark in picture.marks), "the update may have been applied in the meantime"
    rows = {row.update: row.cells for row in picture.table}
    assert rows["10.0.0.3 #92"][2] == "issued"
    assert rows["10.0.0.1 #90"][2].startswith("+")
    assert rows["10.0.0.1 #200"][2] == "unknown", "it may have the update"


def test_the_diagram_keeps_the_recent_updates_of_a_replica_that_stops_responding(
    monkeypatch: pytest.MonkeyPatch, fake_node: FakeMember
) -> None:
    known = recent(cluster_of(3), 3)
    monkeypatch.setattr(fake_node, "status", lambda **_: known[A]["status"])
    monkeypatch.setattr(fake_node, "status_of", lambda address, _query: (known.get(address) or {}).get("status"))
    monkeypatch.setattr(polling, "status_fetcher", StatusFetcher())
    clock = FakeClock()
    monkeypatch.setattr(details, "_recent_cache", details.FetchCache(details._fetch_recent, clock))
    client = client_of(fake_node)
    assert "no response" not in client.get("/admin/spacetime/now/").content.decode()
    del known[C]
    clock.now_s += 1
    html = client.get("/admin/spacetime/now/").content.decode()
    assert "no response" in html
    assert "10.0.0.3 #92 (carts/2): issued" in html


def test_key_pages_send_no_requests_to_peers(monkeypatch: pytest.MonkeyPatch, fake_node: FakeMember) -> None:
    """They need only the addresses of the other members, so a member that hangs must not delay them."""
    fake_node.late_s[C] = None
    monkeypatch.setattr(site_module, "poller", ClusterPoller(poll_cluster))
    client = client_of(fake_node)
    assert "10.0.0.2 #1" in client.get("/admin/keys/").content.decode(), "it has the short label"
    assert client.get("/admin/keys/key/?key=k").status_code == 200
    assert fake_node.requests == []


def test_the_key_list_has_pages() -> None:
    keys = [
        {
            "key": f"k/{n}",
            "versions": 1,
            "dot": (id_of(A), n),
            "timestamp": NOW_US,
            "type": "json",
            "value": b"1",
            "value_bytes": 1,
        }
        for n in range(1, PAGE_SIZE + 2)
    ]
    page = key_list_page(keys, [A, B], prefix="k/", after="", conflicts=False)
    assert (len(page.rows), page.next_query) == (PAGE_SIZE, f"prefix=k%2F&after=k%2F{PAGE_SIZE}")
    assert page.rows[0].written_by == "10.0.0.1 #1"
    assert key_list_page(keys[:1], [A, B], prefix="k/", after="", conflicts=True).next_query == ""
    assert key_page(None, []).is_running is False


@pytest.mark.parametrize(
    ("content", "shown", "note"),
    [
        (b"", "", "0 bytes in base64."),
        (b"\xff", "/w==", "1 byte in base64."),
        (b"\xff" * 90, "/" * 120, "90 bytes in base64."),
        (b"\xff" * 3000, "/" * 4000, "3,000 bytes in base64."),
        (b"\xff" * 100_000, "/" * 4000 + "…", "The first 4,000 characters of 100 kB in base64."),
    ],
)
def test_bytes_are_shown_in_base64(content: bytes, shown: str, note: str) -> None:
    stored = store_bytes(content)
    version = {"dot": [id_of(A), 1], "origin": id_of(A), "timestamp": NOW_US, "past": {}, "members": []}
    version |= {"value": as_json(stored), "value_bytes": len(content), "expires_in_s": None}
    (card,) = key_page({"versions": [version], "version_count": 1, "pending": [], "merged": None}, [A]).versions
    assert (card.value, card.note) == (shown, note)
    listed = {"key": "k", "versions": 1, "dot": (id_of(A), 1), "timestamp": NOW_US}
    of_bytes = listed | {"type": "bytes", "value": stored[:400], "value_bytes": len(content)}
    keys = [of_bytes, listed | {"type": "json", "value": b"1", "value_bytes": 1}]
    row, of_json = key_list_page(keys, [A], prefix="", after="", conflicts=False).rows
    assert (row.value, row.kind) == (shown if len(shown) <= 120 else f"{'/' * 120}…", "bytes")
    assert (of_json.value, of_json.kind) == ("1", "")


def test_every_page_works_without_a_replica_and_requires_the_login(
    show_cluster: ShowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_cluster(cluster_of(2))
    paths = [f"/admin/replica/{B}/", "/admin/keys/", "/admin/keys/key/?key=a", "/admin/spacetime/"]
    parts = [f"/admin/replica/{B}/now/", "/admin/spacetime/now/"]
    for path in (*paths, *parts):
        assert Client().get(path).status_code == 200, path
        assert Client().post(path).status_code == 405, path
    assert "is not in the view" in Client().get("/admin/replica/10.9.9.9:1/").content.decode()
    monkeypatch.setattr(site_module, "current", lambda: Config(admin_password="sesame"))
    for path in paths:
        assert Client().get(path)["Location"].startswith("/admin/login/?next=/admin/"), path
    for path in parts:
        assert (Client().get(path).status_code, Client().get(path).content) == (403, b""), path
