"""The dashboard pages and their data, made from constructed statuses. Tests in a browser: tests/browser."""

from __future__ import annotations

import hashlib
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.contrib.staticfiles import finders
from django.test import Client

from kvsite.config import Config
from kvsite.dashboard import details, polling
from kvsite.dashboard import site as site_module
from kvsite.dashboard.charts import charts
from kvsite.dashboard.cluster_state import ClusterState, HistoryPoint, parse_cluster
from kvsite.dashboard.formatting import ago, listed, rate, short_labels, size, span
from kvsite.dashboard.keys_page import PAGE_SIZE, key_list_page, key_page
from kvsite.dashboard.lag import LagTracker, highest_known
from kvsite.dashboard.overview import Overview, overview
from kvsite.dashboard.polling import FRESH_S, MAX_STALE_S, ClusterPoller, poll_cluster
from kvsite.dashboard.spacetime import diagram
from kvsite.dashboard.status_fetcher import FETCH_TIMEOUT_S, UNRESPONSIVE_TIMEOUT_S, StatusFetcher
from kvsite.dashboard.timeline import MAX_ENTRIES, timeline
from replication.node import Node
from store.api.context import CONTEXT
from tests.browser.statuses import (
    NOW_US,
    Cluster,
    answered,
    cluster_of,
    id_of,
    in_trouble,
    member,
    pending,
    recent,
    silent,
    status,
)
from tests.support.waiting import wait_until

ShowCluster = Callable[[Cluster], None]
A, B, C = (f"10.0.0.{i}:8090" for i in (1, 2, 3))


def state_of(cluster: Cluster, local_address: str = A) -> ClusterState:
    return parse_cluster(cluster, local_address, NOW_US)


def page_of(cluster: Cluster, local_address: str = A, lag_s: dict[str, float] | None = None) -> Overview:
    return overview(state_of(cluster, local_address), lag_s or {})


def texts(page: Overview) -> list[str]:
    return [finding.text for finding in page.health.findings]


def facts(page: Overview, address: str) -> dict[str, str]:
    return next({fact.name: fact.value for fact in card.facts} for card in page.cards if card.address == address)


def numbers(page: Overview) -> list[list[int | None]]:
    return [[cell.counter for cell in row.cells] for row in page.clocks.rows]


class FakeClock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def show_cluster(monkeypatch: pytest.MonkeyPatch) -> ShowCluster:
    """Return a function that makes the pages show a cluster."""

    def show(cluster: Cluster) -> None:
        monkeypatch.setattr(site_module, "poller", ClusterPoller(lambda _: state_of(cluster)))

    return show


# -- health -----------------------------------------------------------------------------------------------------------


def test_a_healthy_cluster_has_no_findings() -> None:
    health = page_of(cluster_of(3)).health
    assert (health.level, health.headline) == ("good", "3 of 3 replicas alive, in sync, no updates pending")
    assert health.findings == ()


def test_a_single_replica_is_not_called_in_sync() -> None:
    assert page_of(cluster_of(1)).health.headline == "1 of 1 replica alive, no updates pending"


def test_a_down_replica_is_named() -> None:
    cluster = cluster_of(3)
    cluster[C] = silent(cluster[C], 12.0)
    for address in (A, B):
        cluster[address]["status"]["view"][2] = member(C, "down", last_contact_s=12.0)
    page = page_of(cluster)
    assert (page.health.level, page.health.headline) == ("bad", "2 of 3 replicas alive, in sync, no updates pending")
    assert texts(page) == [f"{C} is down."]


@pytest.mark.parametrize(
    ("state", "level", "text"),
    [
        ("joining", "busy", "is catching up and not serving yet"),
        ("leaving", "busy", "is leaving the view"),
        ("removed", "bad", "was removed from the view"),
    ],
)
def test_a_reachable_replica_that_does_not_serve_is_named(state: str, level: str, text: str) -> None:
    cluster = cluster_of(3)
    cluster[B]["status"]["state"] = state
    page = page_of(cluster)
    assert page.health.level == level
    assert texts(page) == [f"{B} {text}."]


def test_updates_in_flight_are_no_problem_but_old_missing_updates_are() -> None:
    cluster = cluster_of(3)
    cluster[A]["status"]["clock"][id_of(A)] = 150
    assert page_of(cluster, lag_s={B: 0.2, C: 0.2}).health.level == "good"
    late = page_of(cluster, lag_s={B: 4.0, C: 0.2})
    assert (late.health.level, late.health.headline) == (
        "busy",
        "3 of 3 replicas alive, not in sync, no updates pending",
    )
    assert texts(late) == [f"{B} is missing 50 updates, some for 4.0 s."]
    assert page_of(cluster, lag_s={B: 11.0}).health.level == "bad"


def test_pending_updates_are_reported_and_a_problem_when_they_are_old() -> None:
    cluster = cluster_of(3)
    cluster[B]["status"].update(pending=pending(2, A, C), pending_count=2)
    page = page_of(cluster)
    assert (page.health.level, page.health.headline) == ("busy", "3 of 3 replicas alive, in sync, updates pending")
    assert texts(page) == [f"2 updates are pending at {B}, the oldest for 4.0 s."]
    cluster[B]["status"]["pending"][1]["since_s"] = 60
    assert page_of(cluster).health.level == "bad"


def test_a_one_way_network_cut_is_found() -> None:
    cluster = cluster_of(3)
    cluster[C]["status"]["view"][0] = member(A, "down", last_contact_s=9.0)
    page = page_of(cluster)
    assert page.health.level == "bad"
    assert texts(page) == [f"Views differ: {C} does not reach {A}."]


def test_updates_on_unreachable_replicas_only_are_reported() -> None:
    cluster = cluster_of(3)
    cluster[C]["status"]["clock"][id_of(C)] = 107
    cluster[C] = silent(cluster[C], 30.0)
    assert "7 updates are not available on any reachable replica." in texts(page_of(cluster, lag_s={A: 30.0, B: 30.0}))


def test_conflicts_and_a_clock_that_is_ahead_are_notes() -> None:
    cluster = cluster_of(2, conflicts=3, clock_lead_s=90.0, deferred_requests=1)
    page = page_of(cluster)
    assert page.health.level == "good"
    assert texts(page) == [
        "3 keys have concurrent values.",
        "The hybrid clock is 1 min 30 s ahead of a wall clock: the clock of some member is wrong.",
        "2 requests wait for their causal past.",
    ]


def test_many_down_replicas_are_counted() -> None:
    cluster = cluster_of(16)
    for address in list(cluster)[1:]:
        cluster[address] = silent(cluster[address], None)
    cluster[A]["status"]["view"] = [member(address, "alive" if address == A else "down") for address in cluster]
    [text] = texts(page_of(cluster))
    assert text == f"{B}, {C}, 10.0.0.4:8090 and 12 more are down."


# -- lag ---------------------------------------------------------------------------------------------------------------


def test_lag_counts_from_when_the_missing_update_was_first_known() -> None:
    lag, cluster = LagTracker(), cluster_of(2)
    assert lag.lag_s(state_of(cluster), 1.0) == {}
    cluster[A]["status"]["clock"][id_of(A)] = 110
    assert lag.lag_s(state_of(cluster), 2.0) == {B: 0.0}
    assert lag.lag_s(state_of(cluster), 5.0) == {B: 3.0}
    cluster[A]["status"]["clock"][id_of(A)] = 120
    cluster[B]["status"]["clock"][id_of(A)] = 110
    assert lag.lag_s(state_of(cluster), 6.0) == {B: 0.0}, (
        "the update that was missing has arrived; only newer ones are missing"
    )
    cluster[B]["status"]["clock"][id_of(A)] = 120
    assert lag.lag_s(state_of(cluster), 7.0) == {}


def test_updates_that_no_replica_has_do_not_count_as_lag() -> None:
    lag, cluster = LagTracker(), cluster_of(2)
    cluster[B]["status"]["clock"][id_of(B)] = 150
    assert lag.lag_s(state_of(cluster), 1.0) == {A: 0.0}
    cluster[B]["status"] = status(B, [], {id_of(A): 100, id_of(B): 100}, replica_id=id_of(B, 2))
    assert lag.lag_s(state_of(cluster), 60.0) == {}


def test_pending_updates_count_as_known() -> None:
    cluster = cluster_of(3)
    cluster[B]["status"].update(pending=pending(1, A, C, first=105), pending_count=1)
    highest = highest_known(state_of(cluster))
    assert (highest[id_of(A)], highest[id_of(B)], highest[id_of(C)]) == (105, 100, 101)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_the_clock_matrix_has_a_cell_for_each_replica_and_origin() -> None:
    cluster = cluster_of(3)
    cluster[B]["status"]["clock"][id_of(A)] = 88
    del cluster[C]["status"]["clock"][id_of(B)]
    clocks = page_of(cluster).clocks
    assert numbers(page_of(cluster)) == [[100, 100, 100], [88, 100, 100], [100, 0, 100]]
    late = clocks.rows[1].cells[0]
    assert (late.missing, late.shade, late.missing_text) == (12, 2, "12 updates missing")
    assert [row.lag for row in clocks.rows] == ["0", "12", "100"]
    assert [column.label for column in clocks.columns] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_ended_incarnations_are_shown_if_a_replica_misses_updates_of_them() -> None:
    cluster = cluster_of(2)
    even, uneven = id_of(A, 0xAA), id_of(B, 0xBB)
    for address in (A, B):
        cluster[address]["status"]["clock"] |= {even: 7, uneven: 9}
    assert (len(page_of(cluster).clocks.columns), page_of(cluster).clocks.omitted) == (2, 2)
    cluster[B]["status"]["clock"][uneven] = 8
    clocks = page_of(cluster).clocks
    assert (clocks.columns[-1].title, clocks.columns[-1].note, clocks.omitted) == (uneven, "ended, …00bb", 1)
    assert [row.cells[-1].counter for row in clocks.rows] == [9, 8]


def test_a_replica_that_never_responded_is_shown_as_its_peer_knows_it() -> None:
    cluster = cluster_of(2)
    cluster[B] = silent(cluster[B], None)
    cluster[A]["status"]["view"][1] = member(B, "down", last_contact_s=65.0, clock={id_of(A): 40, id_of(B): 100})
    page = page_of(cluster)
    assert numbers(page) == [[100, 100], [40, 100]]
    assert page.clocks.rows[1].stale_age == "1 min 5 s old"
    assert page.cards[1].stale_reason.startswith("It has not responded")
    assert facts(page, B)["Last contact"] == "1 min 5 s ago"


def test_nothing_is_invented_about_an_unknown_replica() -> None:
    cluster = cluster_of(1)
    cluster[B] = {"status": None, "age_s": None, "reachable": False}
    page = page_of(cluster)
    assert numbers(page)[1] == [None]
    assert texts(page) == [f"{B} has never been reached."]
    assert facts(page, B) == {"Lag": "unknown", "Last contact": "never", "Incarnation": "unknown"}
    assert [queue.address for queue in page.queues] == [A]


def test_a_down_replica_keeps_its_last_known_state_with_its_age() -> None:
    page = page_of(in_trouble(3))
    card = page.cards[2]
    assert (card.state, card.tone, card.stale_reason) == ("down", "bad", "Last known state, 42 s old")
    assert facts(page, C)["Keys"] == "1,234"
    assert page.views.rows[2].stale_age == "42 s old"
    assert page.views.rows[2].cells[0].contact == "42 s", "0.3 s in a status that is 42 s old"


def test_the_view_matrix_compares_the_views() -> None:
    cluster = cluster_of(3)
    cluster[C]["status"]["view"][0] = member(A, "suspect", last_contact_s=2.0)
    rows = page_of(cluster).views.rows
    assert [cell.state for cell in rows[0].cells] == ["itself", "alive", "alive"]
    assert (rows[2].cells[0].state, rows[2].cells[0].contact) == ("suspect", "2.0 s")


# -- queues, cards, events ---------------------------------------------------------------------------------------------


def test_a_few_of_500_pending_updates_are_listed_and_the_others_counted() -> None:
    queue = page_of(in_trouble(16)).queues[1]
    assert (queue.count, len(queue.items), queue.more) == (500, 6, 494)
    first = queue.items[0]
    assert (first.update, first.effect) == ("10.0.0.1 #2,501", "carts/0/items and carts/0/total")
    assert (first.waits_for, first.duration) == ("10.0.0.3 #101", "4.0 s")


def test_long_keys_are_truncated() -> None:
    cluster = cluster_of(2)
    waiting = {"dot": [id_of(A), 101], "keys": ["k" * 500], "waits_for": [id_of(B), 101], "since_s": 1}
    cluster[B]["status"].update(pending=[waiting], pending_count=1)
    assert page_of(cluster).queues[1].items[0].effect == "k" * 40 + "…"


def test_a_card_shows_what_the_replica_reports() -> None:
    page = page_of(cluster_of(2), local_address=B)
    assert facts(page, A) == {
        "Keys": "1,234",
        "Operations": "12/s",
        "Pending": "0",
        "Lag": "0",
        "Memory": "70.0 MB",
        "Uptime": "1 min 40 s",
        "Last contact": "0.3 s ago",
        "Incarnation": "0000000000000001",
    }
    assert facts(page, B)["Last contact"] == "this replica"


def test_an_event_that_several_replicas_recorded_is_listed_once() -> None:
    cluster = cluster_of(3)
    for delay_s, address in enumerate((B, A)):
        at_us = NOW_US - 60_000_000 + delay_s * 1_000_000
        cluster[address]["status"]["events"] = [
            {"number": 7, "wall_us": at_us, "kind": "joined", "subject": C, "detail": "1"}
        ]
    again = {"number": 8, "wall_us": NOW_US - 5_000_000, "kind": "joined", "subject": C, "detail": "1"}
    cluster[A]["status"]["events"].append(again)
    latest, first = timeline(state_of(cluster)).entries
    assert (latest.text, latest.ago, latest.recorded_by) == (f"{C} joined the view", "5.0 s ago", "10.0.0.1")
    assert (first.recorded_by, first.ago) == ("10.0.0.2 and 10.0.0.1", "1 min 0 s ago")


def test_events_of_an_unknown_kind_are_shown_as_they_are_and_many_are_counted() -> None:
    odd = [
        {"number": n, "wall_us": NOW_US - n, "kind": "od{d", "subject": A, "detail": f"{{x}} {n}"}
        for n in range(MAX_ENTRIES + 5)
    ]
    events = timeline(state_of(cluster_of(1, events=odd)))
    assert (len(events.entries), events.more) == (MAX_ENTRIES, 5)
    assert events.entries[0].text == f"{A}: od{{d {{x}} 0"


# -- statuses of peers are not trusted ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "invalid", [[], "up", 7, {"clock": 3}, {"replica_id": "x", "address": "y", "clock": {"a": "b"}}]
)
def test_an_invalid_status_is_reported(invalid: Any) -> None:
    cluster = cluster_of(2)
    cluster[B] = answered(invalid)
    page = page_of(cluster)
    assert texts(page) == [f"{B} returned an invalid status."]
    assert page.cards[1].stale_reason.startswith("Invalid status: ")


def test_a_status_of_another_version_may_lack_fields() -> None:
    cluster = cluster_of(2)
    cluster[B] = answered({"replica_id": id_of(B), "address": B, "state": "serving", "new": {}})
    page = page_of(cluster)
    assert facts(page, B)["Memory"] == "unknown"
    assert page.cards[1].tone == "good"


def test_texts_from_peers_and_clients_are_escaped(show_cluster: ShowCluster) -> None:
    evil = "<script>alert(1)</script>"
    cluster = cluster_of(2)
    waiting = {"dot": [evil, 1], "keys": [evil], "waits_for": [evil, 1], "since_s": 1}
    event = {"number": 1, "wall_us": NOW_US, "kind": evil, "subject": evil, "detail": evil}
    cluster[B]["status"].update(pending=[waiting], pending_count=1, events=[event], state=evil)
    cluster[B]["status"]["clock"][evil] = 3
    show_cluster(cluster)
    html = Client().get("/admin/").content.decode()
    assert evil not in html
    assert "&lt;script&gt;alert(1)" in html


# -- one poll for all pages --------------------------------------------------------------------------------------------


def test_the_cluster_is_polled_at_most_twice_a_second_for_any_number_of_pages() -> None:
    clock, polls = FakeClock(), itertools.count()
    poller = ClusterPoller(lambda _: replace(state_of(cluster_of(1)), wall_us=next(polls)), clock)
    results = [poller.latest(None) for _ in range(50)]
    assert all(result is results[0] for result in results)
    clock.now_s += FRESH_S
    assert [poll.cluster.wall_us for poll in (results[0], poller.latest(None))] == [0, 1]


def test_one_thread_polls_while_the_others_get_the_last_poll_at_once() -> None:
    clock, gate, polling_again = FakeClock(), threading.Event(), threading.Event()
    polls = 0

    def poll(_: object) -> ClusterState:
        nonlocal polls
        polls += 1
        if polls > 1:
            polling_again.set()
            gate.wait(10)
        return state_of(cluster_of(1))

    poller = ClusterPoller(poll, clock)
    first = poller.latest(None)
    clock.now_s += FRESH_S
    slow = threading.Thread(target=poller.latest, args=(None,))
    slow.start()
    assert polling_again.wait(10)
    assert [poller.latest(None) for _ in range(20)] == [first] * 20
    clock.now_s += MAX_STALE_S
    waiters = [threading.Thread(target=poller.latest, args=(None,)) for _ in range(5)]
    for waiter in waiters:
        waiter.start()
    gate.set()
    for thread in (slow, *waiters):
        thread.join(10)
        assert not thread.is_alive()
    assert polls == 2, "the threads that waited used the result of the first one"


def test_the_age_of_a_poll_counts_from_its_request() -> None:
    """A member that hangs must not make the statuses of the others look newer than they are."""
    clock, polls = FakeClock(), itertools.count()

    def poll(_: object) -> ClusterState:
        clock.now_s += FRESH_S
        return replace(state_of(cluster_of(1)), wall_us=next(polls))

    poller = ClusterPoller(poll, clock)
    assert [poller.latest(None).cluster.wall_us for _ in range(2)] == [0, 1]


def client_of(node: object) -> Client:
    """Return a client whose requests ``node`` serves."""
    return Client(**{CONTEXT: SimpleNamespace(node=node)})  # type: ignore[arg-type]  # environ may hold any object


class FakeNode:
    """The node of one of three replicas. Its peers respond after ``late_s`` seconds; None: never."""

    def __init__(self) -> None:
        self.inspector = self
        self.replica = SimpleNamespace(address=A)
        self.late_s: dict[str, float | None] = {B: 0.0, C: 0.0}
        self.requests: list[tuple[str, str]] = []
        """(address, query) of each status request to a peer."""
        self.ended = threading.Event()

    def members(self) -> list[str]:
        return [A, B, C]

    def status(self, **_more: Any) -> dict[str, Any]:
        return {"of": A}

    def keys(self, *_which: Any, **_more: Any) -> list[dict[str, Any]]:
        written = {"dot": (id_of(B), 1), "timestamp": NOW_US, "versions": 1}
        return [{"key": "k", "value": b"1", "value_bytes": 1, **written}]

    def explain(self, key: str) -> dict[str, Any]:
        return {"key": key, "versions": [], "pending": []}

    def status_of(self, address: str, query: str = "") -> dict[str, Any] | None:
        self.requests.append((address, query))
        late_s = self.late_s[address]
        if late_s is None:
            self.ended.wait(10)
            return None
        time.sleep(late_s)
        return {"of": address, "late_s": late_s}


@pytest.fixture
def fake_node() -> Iterator[FakeNode]:
    node = FakeNode()
    yield node
    node.ended.set()


def duration_s(call: Callable[[], object]) -> float:
    started_s = time.monotonic()
    call()
    return time.monotonic() - started_s


def test_a_member_that_hangs_gets_the_full_timeout_only_once(fake_node: FakeNode) -> None:
    fetcher, node = StatusFetcher(), cast("Node", fake_node)
    known = fetcher.fetch_all(node)
    assert {address: each["reachable"] for address, each in known.items()} == {A: True, B: True, C: True}
    fake_node.late_s[C] = None
    first_s, second_s = duration_s(lambda: fetcher.fetch_all(node)), duration_s(lambda: fetcher.fetch_all(node))
    assert first_s >= FETCH_TIMEOUT_S
    assert UNRESPONSIVE_TIMEOUT_S <= second_s < FETCH_TIMEOUT_S
    silent = fetcher.fetch_all(node)
    assert [each["reachable"] for each in silent.values()] == [True, True, False]
    assert silent[C]["status"] == known[C]["status"]
    assert silent[C]["age_s"] > first_s + second_s
    assert silent[B]["age_s"] < UNRESPONSIVE_TIMEOUT_S + 0.2


def test_a_slow_member_gets_the_full_timeout_again_after_a_late_response(fake_node: FakeNode) -> None:
    fetcher, node = StatusFetcher(), cast("Node", fake_node)
    fake_node.late_s[C] = FETCH_TIMEOUT_S + 0.05
    assert not fetcher.fetch_all(node)[C]["reachable"]
    fake_node.late_s[C] = UNRESPONSIVE_TIMEOUT_S + 0.15
    wait_until(lambda: C not in fetcher._unresponsive)  # The late response to the first request has arrived.
    assert fetcher.fetch_all(node)[C]["reachable"], "it gets the full timeout again"


def test_the_last_known_status_has_the_parts_that_were_requested(fake_node: FakeNode) -> None:
    """The space-time diagram requests more than the overview. Each finds what it needs in the last known status."""
    fetcher, node = StatusFetcher(), cast("Node", fake_node)
    known = fetcher.fetch_all(node, recent=7)
    assert (C, "recent=7") in fake_node.requests
    fake_node.late_s[C] = 0.01
    fetcher.fetch_all(node)
    fake_node.late_s[C] = None
    silent, silent_in_overview = fetcher.fetch_all(node, recent=7)[C], fetcher.fetch_all(node)[C]
    assert (silent["reachable"], silent["status"]) == (False, known[C]["status"])
    assert silent["age_s"] >= FETCH_TIMEOUT_S
    assert silent_in_overview["status"] == {"of": C, "late_s": 0.01}


def test_only_members_are_asked_for_their_status(fake_node: FakeNode) -> None:
    assert StatusFetcher().fetch(cast("Node", fake_node), ["10.9.9.9:1", B]) == {B: {"of": B, "late_s": 0.0}}


def test_a_failed_poll_does_not_block_the_next() -> None:
    failures = [ValueError("no")]

    def poll(_: object) -> ClusterState:
        if failures:
            raise failures.pop()
        return state_of(cluster_of(1))

    poller = ClusterPoller(poll, FakeClock())
    with pytest.raises(ValueError, match="no"):
        poller.latest(None)
    assert poller.latest(None).cluster.local_address == A


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [{}, cluster_of(1), cluster_of(3), in_trouble(3), in_trouble(16)])
def test_pages_and_their_tables_are_well_formed(show_cluster: ShowCluster, cluster: Cluster) -> None:
    show_cluster(cluster)
    answer = Client().get("/admin/")
    html = answer.content.decode()
    assert answer.status_code == 200
    assert "<title>" in html
    assert html.count("<h1>") == 1
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "ids are unique"
    assert html.count("<caption>") == html.count("<table>") == (2 if cluster else 0)
    assert not re.search(r"<th(?! scope=)[ >]", html), "every table header has a scope"
    assert Client().get("/admin/overview/").content.decode().strip() in html


def test_a_process_without_a_replica_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_module, "poller", ClusterPoller(poll_cluster))
    assert "No replica runs in this process" in Client().get("/admin/").content.decode()


def test_no_page_has_inline_scripts_or_styles_or_external_resources(show_cluster: ShowCluster) -> None:
    show_cluster(in_trouble(3))
    for path in ("/admin/", "/admin/login/"):
        answer = Client().get(path, follow=True)
        html = answer.content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)", html)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
        policy = answer["Content-Security-Policy"]
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
    monkeypatch: pytest.MonkeyPatch, fake_node: FakeNode
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


def test_key_pages_send_no_requests_to_peers(monkeypatch: pytest.MonkeyPatch, fake_node: FakeNode) -> None:
    """They need only the addresses of the other members, so a member that hangs must not delay them."""
    fake_node.late_s[C] = None
    monkeypatch.setattr(site_module, "poller", ClusterPoller(poll_cluster))
    client = client_of(fake_node)
    assert "10.0.0.2 #1" in client.get("/admin/keys/").content.decode(), "it has the short label"
    assert client.get("/admin/keys/key/?key=k").status_code == 200
    assert fake_node.requests == []


def test_the_key_list_has_pages() -> None:
    keys = [
        {"key": f"k/{n}", "versions": 1, "dot": (id_of(A), n), "timestamp": NOW_US, "value": b"1", "value_bytes": 1}
        for n in range(1, PAGE_SIZE + 2)
    ]
    page = key_list_page(keys, [A, B], prefix="k/", after="", conflicts=False)
    assert (len(page.rows), page.next_query) == (PAGE_SIZE, f"prefix=k%2F&after=k%2F{PAGE_SIZE}")
    assert page.rows[0].written_by == "10.0.0.1 #1"
    assert key_list_page(keys[:1], [A, B], prefix="k/", after="", conflicts=True).next_query == ""
    assert key_page(None, []).is_running is False


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


# -- formatting --------------------------------------------------------------------------------------------------------


def test_formatting() -> None:
    assert [span(s) for s in (None, 0, 9.96, 42.9, 61, 3700, 90000)] == [
        "unknown",
        "0.0 s",
        "10.0 s",
        "42 s",
        "1 min 1 s",
        "1 h 1 min",
        "1 d 1 h",
    ]
    assert (ago(None), ago(3)) == ("never", "3.0 s ago")
    assert [size(n) for n in (None, 0, 1500, 150_000, 66_800_000, 2_000_000_000)] == [
        "unknown",
        "0 B",
        "1.5 kB",
        "150 kB",
        "66.8 MB",
        "2.0 GB",
    ]
    assert [rate(n) for n in (0, 0.4, 12.4, 12345)] == ["0/s", "0.4/s", "12/s", "12,345/s"]
    assert [listed(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"], list("abcde"))] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b, c and 2 more",
    ]


@pytest.mark.parametrize(
    ("addresses", "labels"),
    [
        (["127.0.0.1:1", "127.0.0.1:2"], [":1", ":2"]),
        (["kv-1:8090", "kv-2:8090"], ["kv-1", "kv-2"]),
        (["a:1", "b:2"], ["a:1", "b:2"]),
        (["[::1]:1", "[::1]:2"], [":1", ":2"]),
        ([], []),
    ],
)
def test_short_labels_are_the_parts_that_differ(addresses: list[str], labels: list[str]) -> None:
    assert list(short_labels(addresses).values()) == labels
