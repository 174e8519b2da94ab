"""The pages as Django renders them, their security, and charts, diagram and key lists. Browser: tests/browser."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.staticfiles import finders
from django.test import Client

from kvsite.config import Config
from kvsite.dashboard import details, polling
from kvsite.dashboard import site as site_module
from kvsite.dashboard.charts import WINDOWS, charts
from kvsite.dashboard.cluster_state import HistoryPoint
from kvsite.dashboard.keys_page import (
    PAGE_SIZE,
    FoundKeys,
    KeySearch,
    key_list_page,
    key_page,
    key_search,
    raw_value,
)
from kvsite.dashboard.polling import ClusterPoller, poll_cluster
from kvsite.dashboard.spacetime import HALF_LABEL, TICK_DISTANCE, diagram
from kvsite.dashboard.status_fetcher import StatusFetcher
from kvsite.server import build
from store.api.context import CONTEXT
from store.api_tokens import ApiToken
from store.values import as_json, store_bytes
from store.version import VERSION
from tests.kvsite.dashboard.support import A, B, C, FakeClock, FakeMember, ShowCluster, client_of, state_of
from tests.support.statuses import NOW_US, Cluster, cluster_of, id_of, in_trouble, pending, recent, silent

TOKENS_ONLY = Config(api_tokens=(ApiToken("app", "token-of-app", "write"),))
LISTED = {"versions": 1, "timestamp": NOW_US, "type": "json", "value": b"1", "value_bytes": 1}

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


def test_the_page_lists_the_open_settings_while_any_of_them_is_open(
    show_cluster: ShowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    secured: dict[str, Any] = {
        "cluster_secret": "a long enough secret",
        "api_tokens": (ApiToken("app", "token-of-app", "write"),),
        "admin_password": "sesame",
        "tls_cert": Path("some.pem"),
    }
    variables = ("KV_CLUSTER_SECRET", "KV_API_TOKENS", "KV_ADMIN_PASSWORD", "KV_TLS_CERT")
    monkeypatch.setattr(site_module.DashboardSite, "has_permission", lambda *_: True)
    # Without a cluster secret, a replica with tokens has no peers, so that nothing is open there.
    for left_out in ((), *((name,) for name in secured if name != "cluster_secret"), tuple(secured)):
        config = Config(**{name: value for name, value in secured.items() if name not in left_out})
        monkeypatch.setattr(polling, "current", lambda config=config: config)
        show_cluster(cluster_of(2))
        html = Client().get("/admin/").content.decode()
        assert ("This store is open" in html, "This store is partly open" in html) == (
            len(left_out) == 4,
            0 < len(left_out) < 4,
        )
        named = [name for name, variable in zip(secured, variables, strict=True) if f"set {variable}" in html]
        assert named == list(left_out)


def test_the_page_names_other_replicas_that_are_open(
    show_cluster: ShowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "current", lambda: SimpleNamespace(security_warnings=(), is_open=False))
    cluster = cluster_of(2)
    cluster[B]["status"]["open"] = True
    show_cluster(cluster)
    assert f"Open as well, without any secret, token or password: {B}." in Client().get("/admin/").content.decode()


def test_conflicts_link_to_their_list(show_cluster: ShowCluster) -> None:
    show_cluster(cluster_of(2, conflicts=3))
    html = Client().get("/admin/").content.decode()
    assert re.search(r'3 keys have concurrent values\.</span> <a href="/admin/keys/\?conflicts=true">', html)


def test_every_page_links_to_the_api_and_to_the_metrics(
    show_cluster: ShowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_cluster(cluster_of(2))
    for config, metrics in ((Config(), "/metrics"), (TOKENS_ONLY, "/admin/metrics/")):
        monkeypatch.setattr(site_module, "current", lambda config=config: config)
        html = Client().get("/admin/").content.decode()
        assert '<a href="/docs/">API</a>' in html
        assert f'<a href="{metrics}">Metrics</a>' in html
        assert f"Causeway {VERSION}." in html


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
    chart, lag = charts(points((500, 4), (494, 8), (300, 2), (294, 12)), NOW_US, WINDOWS["minutes"])
    reads = chart.curves[0]
    assert [step[0] for step in reads.path.split() if step[0] in "ML"] == ["M", "L", "M", "L"]
    assert (reads.now, reads.maximum, chart.top) == ("12", "12", "20")
    assert "reads now 12, maximum 12" in chart.summary
    assert lag.top == "1", "a flat curve has a scale, too"


def test_the_charts_of_a_replica_that_just_started_are_empty() -> None:
    assert [chart.is_empty for chart in charts([], NOW_US, WINDOWS["minutes"])] == [True, True]


@pytest.mark.parametrize("window", WINDOWS)
def test_a_chart_shows_its_whole_window(window: str) -> None:
    size = WINDOWS[window]
    ages_s = [size.window_s - size.bucket_s, size.bucket_s]
    chart, _ = charts(points(*((age_s, 3.0) for age_s in ages_s)), NOW_US, size)
    first, last = (float(step[1:]) for step in chart.curves[0].path.split()[::2])
    assert first < 10
    assert last > 590
    assert f"over the last {size.name}" in chart.summary


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
    search = KeySearch(prefix="k/")
    page = key_list_page(FoundKeys(keys, 120), [A, B], search)
    assert (len(page.rows), page.next_query) == (PAGE_SIZE, f"prefix=k%2F&after=k%2F{PAGE_SIZE}")
    assert (page.previous_query, page.summary) == ("", "120 keys with this prefix.")
    assert page.rows[0].written_by == "10.0.0.1 #1"
    second = key_list_page(FoundKeys(keys[:1], 120), [A, B], replace(search, after="k/0"))
    assert (second.next_query, second.previous_query) == ("", "prefix=k%2F&before=k%2F1")
    back = key_list_page(FoundKeys(keys, 120), [A, B], replace(search, before="k/9"))
    assert (back.previous_query, len(back.rows)) == ("prefix=k%2F&before=k%2F2", PAGE_SIZE)
    assert back.next_query == f"prefix=k%2F&after=k%2F{PAGE_SIZE + 1}"
    first = key_list_page(FoundKeys(keys[:3], 120), [A, B], replace(search, before="k/4"))
    assert (first.previous_query, first.next_query) == ("", "prefix=k%2F&after=k%2F3")
    assert key_list_page(FoundKeys(keys[:1], 1), [A], KeySearch(conflicts=True)).next_query == ""
    assert key_page(None, []).is_running is False


def test_keys_by_size_or_age_are_one_page_that_says_so() -> None:
    keys = [{**LISTED, "key": f"k/{n}", "dot": (id_of(A), n)} for n in range(PAGE_SIZE)]
    page = key_list_page(FoundKeys(keys, 9000, is_whole=False), [A], key_search({"order": "largest", "prefix": "k/"}))
    assert (page.next_query, page.previous_query, page.first_query) == ("", "", "prefix=k%2F&order=largest")
    assert page.summary == (
        "9,000 keys with this prefix. The 50 largest keys are shown. "
        "Only the first 100,000 keys by name were looked at."
    )
    assert [order for order, _, is_chosen in page.orders if is_chosen] == ["largest"]
    assert key_search({"order": "sideways"}).order == "name"
    few = key_list_page(FoundKeys(keys[:2], 2), [A], key_search({"order": "oldest"}))
    assert few.summary == "2 keys."


def test_a_long_json_value_is_shown_indented_and_a_short_one_in_its_line() -> None:
    long = b'{"name":"' + b"x" * 80 + b'","list":[1,1.50]}'
    for stored, shown in (
        (long, '{\n  "name": "' + "x" * 80 + '",\n  "list": [\n    1,\n    1.50\n  ]\n}'),
        (b"[1]", "[1]"),
    ):
        version = {"dot": [id_of(A), 1], "origin": id_of(A), "timestamp": NOW_US, "past": {}, "members": []}
        version |= {"value": stored, "value_bytes": len(stored), "expires_in_s": None}
        content = {"key": "k", "versions": [version], "version_count": 1, "pending": [], "merged": None, "note": ""}
        (card,) = key_page(content, [A]).versions
        assert (card.value, card.note) == (shown, "")
        assert raw_value(content, f"{id_of(A)}:1") == (stored, True), "the raw value is not formatted"
        assert raw_value(content, f"{id_of(A)}:2") is None


def test_the_page_of_a_key_shows_its_note(fake_node: FakeMember) -> None:
    found = fake_node.explain("k")
    for note, shown in (("Update <b> deleted this key.", "Update &lt;b&gt; deleted this key.</p>"), ("", "")):
        fake_node.explain = lambda *_, note=note: {**found, "note": note}  # type: ignore[method-assign]
        page = client_of(fake_node).get("/admin/keys/key/", {"key": "k"}).content.decode()
        assert "This key does not exist on this replica." in page
        assert ("cw-note-line" in page, shown in page) == (bool(note), True)


def test_the_raw_value_of_bytes_is_a_download_and_that_of_json_is_json(fake_node: FakeMember) -> None:
    client = client_of(fake_node)
    versions = [
        {"dot": [id_of(A), 1], "value": as_json(store_bytes(b"<script>\xff"))},
        {"dot": [id_of(A), 2], "value": b'"<script>"'},
        {"dot": [id_of(A), 3], "value": None},
    ]
    fake_node.explain = lambda *_: {"versions": versions}  # type: ignore[method-assign]
    raw = [client.get("/admin/keys/raw/", {"key": "k", "version": f"{id_of(A)}:{n}"}) for n in range(1, 5)]
    assert [reply.status_code for reply in raw] == [200, 200, 404, 404]
    assert raw[0].content == b"<script>\xff"
    assert raw[0]["Content-Type"] == "application/octet-stream"
    assert raw[0]["Content-Disposition"].startswith("attachment")
    assert (raw[1].content, raw[1]["Content-Type"]) == (b'"<script>"', "application/json")
    for reply in raw:
        assert reply["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in reply["Content-Security-Policy"]


def test_the_metrics_of_the_dashboard_are_those_of_the_replica() -> None:
    client = Client(**{CONTEXT: build(Config(), pytest.fail)})  # type: ignore[arg-type]  # environ may hold any object
    metrics = client.get("/admin/metrics/")
    assert metrics["Content-Type"] == client.get("/metrics")["Content-Type"]
    assert b"causeway_ready" in metrics.content
    assert client.get("/admin/schema/").json() == client.get("/schema/").json()
    assert Client().get("/admin/metrics/").status_code == 404


# -- the diagram's keys and times --------------------------------------------------------------------------------------


def test_a_key_stays_known_while_its_update_is_shown() -> None:
    memory = details.KeyMemory()
    cluster = recent(cluster_of(2), 3)
    assert set(memory.learn(state_of(cluster)).values()) == {"carts/0", "carts/1", "carts/2"}
    for each in cluster.values():
        each["status"]["recent"] = [{**update, "key": None} for update in each["status"]["recent"][1:]]
    keys = memory.learn(state_of(cluster))
    assert set(keys.values()) == {"carts/1", "carts/2"}, "those that are not shown any more are forgotten"
    assert [row.key for row in diagram(state_of(cluster), keys).table] == ["carts/2", "carts/1"]
    assert [row.key for row in diagram(state_of(cluster)).table] == [None, None]


def test_the_time_axis_has_ticks_that_do_not_overlap() -> None:
    picture = diagram(state_of(recent(cluster_of(3), 20)))
    assert len(picture.ticks) >= 3
    gaps = [after.x - before.x for before, after in pairwise(picture.ticks)]
    assert min(gaps) >= TICK_DISTANCE
    assert all(HALF_LABEL <= tick.label_x <= picture.width - HALF_LABEL for tick in picture.ticks)
    labels = [tick.label for tick in picture.ticks]
    assert labels == sorted(labels)
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{3}", labels[0])


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
    found = {"key": "k", "versions": [version], "version_count": 1, "pending": [], "merged": None, "note": ""}
    (card,) = key_page(found, [A]).versions
    assert (card.value, card.note) == (shown, note)
    listed = {"key": "k", "versions": 1, "dot": (id_of(A), 1), "timestamp": NOW_US}
    of_bytes = listed | {"type": "bytes", "value": stored[:400], "value_bytes": len(content)}
    keys = [of_bytes, listed | {"type": "json", "value": b"1", "value_bytes": 1}]
    row, of_json = key_list_page(FoundKeys(keys, 2), [A], KeySearch()).rows
    assert (row.value, row.kind) == (shown if len(shown) <= 120 else f"{'/' * 120}…", "bytes")
    assert (of_json.value, of_json.kind) == ("1", "")


def test_every_page_works_without_a_replica_and_requires_the_login(
    show_cluster: ShowCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    show_cluster(cluster_of(2))
    paths = [f"/admin/replica/{B}/", "/admin/keys/", "/admin/keys/key/?key=a", "/admin/spacetime/"]
    paths += [f"/admin/update/?update={id_of(B)}:1", f"/admin/replica/{B}/?window=day"]
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
