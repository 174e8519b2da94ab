"""The dashboard's pages and their data, from hand-made statuses. In a browser: tests/browser."""

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
from kvsite.dashboard import details
from kvsite.dashboard import site as site_module
from kvsite.dashboard.charts import charts
from kvsite.dashboard.cluster_state import Point, Snapshot, read
from kvsite.dashboard.formatting import ago, listed, rate, short_labels, size, span
from kvsite.dashboard.keys_page import PAGE, key_page, keys_page
from kvsite.dashboard.lag import Lag, highest_of
from kvsite.dashboard.members import ASK_TIMEOUT_S, SILENT_TIMEOUT_S, Members
from kvsite.dashboard.overview import Overview, overview
from kvsite.dashboard.polling import FRESH_S, USABLE_S, Keeper, ask_cluster
from kvsite.dashboard.spacetime import diagram
from kvsite.dashboard.timeline import MAX_SHOWN, timeline
from replication.api import context
from replication.node import Node
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

Show = Callable[[Cluster], None]
A, B, C = (f"10.0.0.{i}:8090" for i in (1, 2, 3))


def snapshot_of(cluster: Cluster, asked: str = A) -> Snapshot:
    return read(cluster, asked, NOW_US)


def page_of(cluster: Cluster, asked: str = A, behind_s: dict[str, float] | None = None) -> Overview:
    return overview(snapshot_of(cluster, asked), behind_s or {})


def texts(page: Overview) -> list[str]:
    return [finding.text for finding in page.verdict.findings]


def facts(page: Overview, address: str) -> dict[str, str]:
    return next({fact.name: fact.value for fact in card.facts} for card in page.cards if card.address == address)


def numbers(page: Overview) -> list[list[int | None]]:
    return [[cell.counter for cell in row.cells] for row in page.clocks.rows]


class FakeClock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Show:
    """Return ``show(cluster)``: from then on the pages show it."""

    def show(cluster: Cluster) -> None:
        monkeypatch.setattr(site_module, "keeper", Keeper(lambda: snapshot_of(cluster)))

    return show


# -- the verdict -------------------------------------------------------------------------------------------------------


def test_a_cluster_that_is_well_needs_no_findings() -> None:
    verdict = page_of(cluster_of(3)).verdict
    assert (verdict.level, verdict.headline) == ("good", "3 of 3 replicas alive, in step, nothing pending")
    assert verdict.findings == ()


def test_one_replica_is_in_step_with_nobody() -> None:
    assert page_of(cluster_of(1)).verdict.headline == "1 of 1 replica alive, nothing pending"


def test_a_down_replica_is_named() -> None:
    cluster = cluster_of(3)
    cluster[C] = silent(cluster[C], 12.0)
    for address in (A, B):
        cluster[address]["status"]["view"][2] = member(C, "down", last_contact_s=12.0)
    page = page_of(cluster)
    assert (page.verdict.level, page.verdict.headline) == ("bad", "2 of 3 replicas alive, in step, nothing pending")
    assert texts(page) == [f"{C} is down."]


@pytest.mark.parametrize(
    ("state", "level", "words"),
    [
        ("joining", "busy", "is catching up and does not serve yet"),
        ("leaving", "busy", "is leaving the view"),
        ("removed", "bad", "was removed from the view"),
    ],
)
def test_a_replica_that_answers_but_does_not_serve_is_named(state: str, level: str, words: str) -> None:
    cluster = cluster_of(3)
    cluster[B]["status"]["state"] = state
    page = page_of(cluster)
    assert page.verdict.level == level
    assert texts(page) == [f"{B} {words}."]


def test_updates_on_their_way_are_no_trouble_but_old_ones_are() -> None:
    cluster = cluster_of(3)
    cluster[A]["status"]["clock"][id_of(A)] = 150
    assert page_of(cluster, behind_s={B: 0.2, C: 0.2}).verdict.level == "good"
    late = page_of(cluster, behind_s={B: 4.0, C: 0.2})
    assert (late.verdict.level, late.verdict.headline) == (
        "busy",
        "3 of 3 replicas alive, not in step, nothing pending",
    )
    assert texts(late) == [f"{B} lacks 50 updates, some for 4.0 s."]
    assert page_of(cluster, behind_s={B: 11.0}).verdict.level == "bad"


def test_pending_updates_are_told_and_trouble_when_they_are_old() -> None:
    cluster = cluster_of(3)
    cluster[B]["status"].update(pending=pending(2, A, C), pending_count=2)
    page = page_of(cluster)
    assert (page.verdict.level, page.verdict.headline) == ("busy", "3 of 3 replicas alive, in step, updates pending")
    assert texts(page) == [f"2 updates wait at {B}, the oldest for 4.0 s."]
    cluster[B]["status"]["pending"][1]["since_s"] = 60
    assert page_of(cluster).verdict.level == "bad"


def test_a_cut_in_one_direction_is_found() -> None:
    cluster = cluster_of(3)
    cluster[C]["status"]["view"][0] = member(A, "down", last_contact_s=9.0)
    page = page_of(cluster)
    assert page.verdict.level == "bad"
    assert texts(page) == [f"Views differ: {C} does not reach {A}."]


def test_updates_that_only_a_silent_replica_has_are_told() -> None:
    cluster = cluster_of(3)
    cluster[C]["status"]["clock"][id_of(C)] = 107
    cluster[C] = silent(cluster[C], 30.0)
    assert "7 updates are at no replica that answers." in texts(page_of(cluster, behind_s={A: 30.0, B: 30.0}))


def test_conflicts_and_a_clock_that_is_ahead_are_notes() -> None:
    cluster = cluster_of(2, conflicts=3, clock_lead_s=90.0, deferred_requests=1)
    page = page_of(cluster)
    assert page.verdict.level == "good"
    assert texts(page) == [
        "3 keys hold concurrent values.",
        "The hybrid clock runs 1 min 30 s ahead of a wall clock: some member's clock is off.",
        "2 requests wait for the causal past that came along.",
    ]


def test_many_that_are_down_are_counted() -> None:
    cluster = cluster_of(16)
    for address in list(cluster)[1:]:
        cluster[address] = silent(cluster[address], None)
    cluster[A]["status"]["view"] = [member(address, "alive" if address == A else "down") for address in cluster]
    [text] = texts(page_of(cluster))
    assert text == f"{B}, {C}, 10.0.0.4:8090 and 12 more are down."


# -- lag ---------------------------------------------------------------------------------------------------------------


def test_lag_has_an_age_from_when_an_update_was_first_seen() -> None:
    lag, cluster = Lag(), cluster_of(2)
    assert lag.behind_s(snapshot_of(cluster), 1.0) == {}
    cluster[A]["status"]["clock"][id_of(A)] = 110
    assert lag.behind_s(snapshot_of(cluster), 2.0) == {B: 0.0}
    assert lag.behind_s(snapshot_of(cluster), 5.0) == {B: 3.0}
    cluster[A]["status"]["clock"][id_of(A)] = 120
    cluster[B]["status"]["clock"][id_of(A)] = 110
    assert lag.behind_s(snapshot_of(cluster), 6.0) == {B: 0.0}, "what was lacking has come; only newer ones lack"
    cluster[B]["status"]["clock"][id_of(A)] = 120
    assert lag.behind_s(snapshot_of(cluster), 7.0) == {}


def test_updates_that_nobody_has_any_more_do_not_count_as_lag() -> None:
    lag, cluster = Lag(), cluster_of(2)
    cluster[B]["status"]["clock"][id_of(B)] = 150
    assert lag.behind_s(snapshot_of(cluster), 1.0) == {A: 0.0}
    cluster[B]["status"] = status(B, [], {id_of(A): 100, id_of(B): 100}, replica_id=id_of(B, 2))
    assert lag.behind_s(snapshot_of(cluster), 60.0) == {}


def test_what_waits_in_a_queue_counts_as_known() -> None:
    cluster = cluster_of(3)
    cluster[B]["status"].update(pending=pending(1, A, C, first=105), pending_count=1)
    highest = highest_of(snapshot_of(cluster))
    assert (highest[id_of(A)], highest[id_of(B)], highest[id_of(C)]) == (105, 100, 101)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_the_matrix_has_a_cell_for_each_replica_and_origin() -> None:
    cluster = cluster_of(3)
    cluster[B]["status"]["clock"][id_of(A)] = 88
    del cluster[C]["status"]["clock"][id_of(B)]
    clocks = page_of(cluster).clocks
    assert numbers(page_of(cluster)) == [[100, 100, 100], [88, 100, 100], [100, 0, 100]]
    late = clocks.rows[1].cells[0]
    assert (late.missing, late.shade, late.behind) == (12, 2, "12 updates missing")
    assert [row.lag for row in clocks.rows] == ["0", "12", "100"]
    assert [column.label for column in clocks.columns] == ["10.0.0.1", "10.0.0.2", "10.0.0.3"]


def test_earlier_incarnations_are_shown_where_somebody_lacks_something_of_them() -> None:
    cluster = cluster_of(2)
    even, uneven = id_of(A, 0xAA), id_of(B, 0xBB)
    for address in (A, B):
        cluster[address]["status"]["clock"] |= {even: 7, uneven: 9}
    assert (len(page_of(cluster).clocks.columns), page_of(cluster).clocks.left_out) == (2, 2)
    cluster[B]["status"]["clock"][uneven] = 8
    clocks = page_of(cluster).clocks
    assert (clocks.columns[-1].title, clocks.columns[-1].note, clocks.left_out) == (uneven, "earlier, …00bb", 1)
    assert [row.cells[-1].counter for row in clocks.rows] == [9, 8]


def test_a_replica_that_never_answered_is_told_by_what_its_peer_knows_of_it() -> None:
    cluster = cluster_of(2)
    cluster[B] = silent(cluster[B], None)
    cluster[A]["status"]["view"][1] = member(B, "down", last_contact_s=65.0, clock={id_of(A): 40, id_of(B): 100})
    page = page_of(cluster)
    assert numbers(page) == [[100, 100], [40, 100]]
    assert page.clocks.rows[1].stale == "1 min 5 s old"
    assert page.cards[1].stale.startswith("It does not answer")
    assert facts(page, B)["Last contact"] == "1 min 5 s ago"


def test_nothing_is_made_up_of_a_replica_of_which_nothing_is_known() -> None:
    cluster = cluster_of(1)
    cluster[B] = {"status": None, "age_s": None, "reachable": False}
    page = page_of(cluster)
    assert numbers(page)[1] == [None]
    assert texts(page) == [f"{B} has not been heard of yet."]
    assert facts(page, B) == {"Lag": "unknown", "Last contact": "never", "Incarnation": "unknown"}
    assert [queue.address for queue in page.queues] == [A]


def test_a_down_replica_keeps_its_last_known_state_with_its_age() -> None:
    page = page_of(in_trouble(3))
    card = page.cards[2]
    assert (card.state, card.tone, card.stale) == ("down", "bad", "Last known state, 42 s old")
    assert facts(page, C)["Keys"] == "1,234"
    assert page.views.rows[2].stale == "42 s old"
    assert page.views.rows[2].cells[0].contact == "42 s", "0.3 s then, 42 s ago"


def test_views_stand_side_by_side() -> None:
    cluster = cluster_of(3)
    cluster[C]["status"]["view"][0] = member(A, "suspect", last_contact_s=2.0)
    rows = page_of(cluster).views.rows
    assert [cell.state for cell in rows[0].cells] == ["itself", "alive", "alive"]
    assert (rows[2].cells[0].state, rows[2].cells[0].contact) == ("suspect", "2.0 s")


# -- queues, cards, events ---------------------------------------------------------------------------------------------


def test_of_500_pending_updates_a_few_are_listed_and_the_rest_is_counted() -> None:
    queue = page_of(in_trouble(16)).queues[1]
    assert (queue.count, len(queue.items), queue.more) == (500, 6, 494)
    first = queue.items[0]
    assert (first.update, first.what) == ("10.0.0.1 #2,501", "carts/0/items and carts/0/total")
    assert (first.waits_for, first.since) == ("10.0.0.3 #101", "4.0 s")


def test_long_keys_are_cut() -> None:
    cluster = cluster_of(2)
    waiting = {"dot": [id_of(A), 101], "keys": ["k" * 500], "waits_for": [id_of(B), 101], "since_s": 1}
    cluster[B]["status"].update(pending=[waiting], pending_count=1)
    assert page_of(cluster).queues[1].items[0].what == "k" * 40 + "…"


def test_a_card_tells_what_the_replica_says_of_itself() -> None:
    page = page_of(cluster_of(2), asked=B)
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


def test_an_event_that_several_noted_is_told_once() -> None:
    cluster = cluster_of(3)
    for delay_s, address in enumerate((B, A)):
        at_us = NOW_US - 60_000_000 + delay_s * 1_000_000
        cluster[address]["status"]["events"] = [
            {"number": 7, "wall_us": at_us, "kind": "joined", "subject": C, "detail": "1"}
        ]
    again = {"number": 8, "wall_us": NOW_US - 5_000_000, "kind": "joined", "subject": C, "detail": "1"}
    cluster[A]["status"]["events"].append(again)
    latest, first = timeline(snapshot_of(cluster)).entries
    assert (latest.text, latest.ago, latest.noted_by) == (f"{C} joined the view", "5.0 s ago", (A,))
    assert (first.by, first.ago) == ("10.0.0.2 and 10.0.0.1", "1 min 0 s ago")


def test_events_of_a_kind_that_is_not_known_are_told_as_they_are_and_many_are_counted() -> None:
    odd = [
        {"number": n, "wall_us": NOW_US - n, "kind": "od{d", "subject": A, "detail": f"{{x}} {n}"}
        for n in range(MAX_SHOWN + 5)
    ]
    told = timeline(snapshot_of(cluster_of(1, events=odd)))
    assert (len(told.entries), told.more) == (MAX_SHOWN, 5)
    assert told.entries[0].text == f"{A}: odd {{x}} 0"


# -- what peers say is not trusted -------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", [[], "up", 7, {"clock": 3}, {"replica_id": "x", "address": "y", "clock": {"a": "b"}}])
def test_a_status_that_cannot_be_read_is_told_as_such(told: Any) -> None:
    cluster = cluster_of(2)
    cluster[B] = answered(told)
    page = page_of(cluster)
    assert texts(page) == [f"{B} has a status that cannot be read."]
    assert page.cards[1].stale.startswith("Its status cannot be read")


def test_what_is_absent_from_a_status_of_another_version_is_done_without() -> None:
    cluster = cluster_of(2)
    cluster[B] = answered({"replica_id": id_of(B), "address": B, "state": "serving", "new": {}})
    page = page_of(cluster)
    assert facts(page, B)["Memory"] == "unknown"
    assert page.cards[1].tone == "good"


def test_texts_of_peers_and_clients_are_escaped(shown: Show) -> None:
    evil = "<script>alert(1)</script>"
    cluster = cluster_of(2)
    waiting = {"dot": [evil, 1], "keys": [evil], "waits_for": [evil, 1], "since_s": 1}
    event = {"number": 1, "wall_us": NOW_US, "kind": evil, "subject": evil, "detail": evil}
    cluster[B]["status"].update(pending=[waiting], pending_count=1, events=[event], state=evil)
    cluster[B]["status"]["clock"][evil] = 3
    shown(cluster)
    html = Client().get("/admin/").content.decode()
    assert evil not in html
    assert "&lt;script&gt;alert(1)" in html


# -- one look for all --------------------------------------------------------------------------------------------------


def test_the_cluster_is_asked_at_most_twice_a_second_however_many_watch() -> None:
    clock, asked = FakeClock(), itertools.count()
    keeper = Keeper(lambda: replace(snapshot_of(cluster_of(1)), wall_us=next(asked)), clock)
    looks = [keeper.look() for _ in range(50)]
    assert all(look is looks[0] for look in looks)
    clock.now_s += FRESH_S
    assert [look.snapshot.wall_us for look in (looks[0], keeper.look())] == [0, 1]


def test_one_asks_while_the_others_get_the_last_look_at_once() -> None:
    clock, gate, asking = FakeClock(), threading.Event(), threading.Event()
    asked = 0

    def ask() -> Snapshot:
        nonlocal asked
        asked += 1
        if asked > 1:
            asking.set()
            gate.wait(10)
        return snapshot_of(cluster_of(1))

    keeper = Keeper(ask, clock)
    first = keeper.look()
    clock.now_s += FRESH_S
    slow = threading.Thread(target=keeper.look)
    slow.start()
    assert asking.wait(10)
    assert [keeper.look() for _ in range(20)] == [first] * 20
    clock.now_s += USABLE_S
    waiters = [threading.Thread(target=keeper.look) for _ in range(5)]
    for waiter in waiters:
        waiter.start()
    gate.set()
    for thread in (slow, *waiters):
        thread.join(10)
        assert not thread.is_alive()
    assert asked == 2, "those that waited took what the first one found"


def test_a_look_is_as_old_as_its_question() -> None:
    """Waiting for one that hangs must not make what the others said newer than it is."""
    clock, asked = FakeClock(), itertools.count()

    def ask() -> Snapshot:
        clock.now_s += FRESH_S
        return replace(snapshot_of(cluster_of(1)), wall_us=next(asked))

    keeper = Keeper(ask, clock)
    assert [keeper.look().snapshot.wall_us for _ in range(2)] == [0, 1]


class FakeNode:
    """A node of three, whose peers answer after ``late_s`` seconds; None: never."""

    def __init__(self) -> None:
        self.replica = SimpleNamespace(address=A)
        self.late_s: dict[str, float | None] = {B: 0.0, C: 0.0}
        self.asked: list[tuple[str, str]] = []
        """Address and query, of each question to a peer."""
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
        self.asked.append((address, query))
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


def took_s(what: Callable[[], object]) -> float:
    began_s = time.monotonic()
    what()
    return time.monotonic() - began_s


def test_one_that_hangs_is_waited_for_at_length_once(fake_node: FakeNode) -> None:
    members, node = Members(), cast("Node", fake_node)
    known = members.cluster(node)
    assert {address: each["reachable"] for address, each in known.items()} == {A: True, B: True, C: True}
    fake_node.late_s[C] = None
    first_s, second_s = took_s(lambda: members.cluster(node)), took_s(lambda: members.cluster(node))
    assert first_s >= ASK_TIMEOUT_S
    assert SILENT_TIMEOUT_S <= second_s < ASK_TIMEOUT_S
    silent = members.cluster(node)
    assert [each["reachable"] for each in silent.values()] == [True, True, False]
    assert silent[C]["status"] == known[C]["status"]
    assert silent[C]["age_s"] > first_s + second_s
    assert silent[B]["age_s"] < SILENT_TIMEOUT_S + 0.2


def test_one_that_is_slow_is_heard_again_when_it_answers_late(fake_node: FakeNode) -> None:
    members, node = Members(), cast("Node", fake_node)
    fake_node.late_s[C] = ASK_TIMEOUT_S + 0.05
    assert not members.cluster(node)[C]["reachable"]
    fake_node.late_s[C] = SILENT_TIMEOUT_S + 0.15
    time.sleep(0.2)  # its late answer to the first question has come
    assert members.cluster(node)[C]["reachable"], "it is given its time again"


def test_of_one_that_falls_silent_the_last_answer_to_the_same_question_is_told(fake_node: FakeNode) -> None:
    """The space-time diagram asks for more than the overview: each finds in the last status what it needs."""
    members, node = Members(), cast("Node", fake_node)
    shown = members.cluster(node, recent=7)
    assert (C, "recent=7") in fake_node.asked
    fake_node.late_s[C] = 0.01
    members.cluster(node)
    fake_node.late_s[C] = None
    silent, silent_in_overview = members.cluster(node, recent=7)[C], members.cluster(node)[C]
    assert (silent["reachable"], silent["status"]) == (False, shown[C]["status"])
    assert silent["age_s"] >= ASK_TIMEOUT_S
    assert silent_in_overview["status"] == {"of": C, "late_s": 0.01}


def test_nobody_but_members_is_asked(fake_node: FakeNode) -> None:
    assert Members().statuses(cast("Node", fake_node), ["10.9.9.9:1", B]) == {B: {"of": B, "late_s": 0.0}}


def test_a_failed_look_does_not_hold_up_the_next() -> None:
    failures = [ValueError("no")]

    def ask() -> Snapshot:
        if failures:
            raise failures.pop()
        return snapshot_of(cluster_of(1))

    keeper = Keeper(ask, FakeClock())
    with pytest.raises(ValueError, match="no"):
        keeper.look()
    assert keeper.look().snapshot.asked == A


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cluster", [{}, cluster_of(1), cluster_of(3), in_trouble(3), in_trouble(16)])
def test_pages_and_their_tables_are_well_formed(shown: Show, cluster: Cluster) -> None:
    shown(cluster)
    answer = Client().get("/admin/")
    html = answer.content.decode()
    assert answer.status_code == 200
    assert "<title>" in html
    assert html.count("<h1>") == 1
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len(set(ids)), "ids are unique"
    assert html.count("<caption>") == html.count("<table>") == (2 if cluster else 0)
    assert not re.search(r"<th(?! scope=)[ >]", html), "every head says what it is the head of"
    assert Client().get("/admin/overview/").content.decode().strip() in html


def test_a_process_without_a_replica_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "bound", lambda: False)
    monkeypatch.setattr(site_module, "keeper", Keeper(ask_cluster))
    assert "No replica runs in this process" in Client().get("/admin/").content.decode()


def test_no_page_holds_anything_inline_or_from_elsewhere(shown: Show) -> None:
    shown(in_trouble(3))
    for path in ("/admin/", "/admin/login/"):
        answer = Client().get(path, follow=True)
        html = answer.content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)", html)
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=", html)
        assert not re.search(r'(?:src|href)="(?:https?:)?//', html)
        policy = answer["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy


def test_pages_only_read(shown: Show) -> None:
    shown(cluster_of(3))
    client = Client(enforce_csrf_checks=True)
    html = client.get("/admin/").content.decode()
    assert "<form" not in html
    assert set(re.findall(r"\bhx-(get|post|put|patch|delete)=", html)) == {"get"}
    for path in ("/admin/", "/admin/overview/"):
        for send in (client.post, client.put, client.patch, client.delete):
            assert send(path).status_code in {403, 405}, path


@pytest.mark.parametrize("is_open", [True, False])
def test_the_page_says_when_the_store_is_open(shown: Show, is_open: bool) -> None:
    shown(cluster_of(2, open=is_open))
    assert ("This store is open" in Client().get("/admin/").content.decode()) is is_open


def test_with_a_password_strangers_see_nothing(shown: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    shown(cluster_of(2))
    monkeypatch.setattr(site_module, "current", lambda: Config(admin_password="sesame"))
    page = Client().get("/admin/")
    assert (page.status_code, page["Location"]) == (302, "/admin/login/?next=/admin/")
    part = Client().get("/admin/overview/")
    assert (part.status_code, part["HX-Redirect"], part.content) == (403, "/admin/login/", b"")


def test_vendored_scripts_are_what_their_table_says() -> None:
    readme = finders.find("dashboard/vendor/README.md")
    assert isinstance(readme, str)
    sums = dict(re.findall(r"^\| (\S+\.js) \|.*\| ([0-9a-f]{64}) \|$", Path(readme).read_text(), re.MULTILINE))
    scripts = sorted(Path(readme).parent.glob("*.js"))
    assert sorted(sums) == [script.name for script in scripts]
    for script in scripts:
        assert hashlib.sha256(script.read_bytes()).hexdigest() == sums[script.name]


# -- the other pages ---------------------------------------------------------------------------------------------------


def points(*values: tuple[float, float]) -> list[Point]:
    """Samples of (age, reads per second), oldest first."""
    return [Point(age_s=age_s, reads=reads) for age_s, reads in values]


def test_a_chart_has_a_gap_where_the_replica_took_no_samples() -> None:
    chart, lag = charts(points((500, 4), (494, 8), (300, 2), (294, 12)), NOW_US)
    reads = chart.lines[0]
    assert [step[0] for step in reads.path.split() if step[0] in "ML"] == ["M", "L", "M", "L"]
    assert (reads.now, reads.most, chart.top) == ("12", "12", "20")
    assert "reads now 12, at most 12" in chart.summary
    assert lag.top == "1", "a flat line has a scale all the same"


def test_a_chart_of_a_replica_that_just_started_says_so() -> None:
    assert [chart.is_empty for chart in charts([], NOW_US)] == [True, True]


@pytest.mark.parametrize("cluster", [{}, cluster_of(1), recent(cluster_of(3)), recent(in_trouble(16), 40)])
def test_a_diagram_holds_what_its_table_does(cluster: Cluster) -> None:
    told = diagram(snapshot_of(cluster))
    issued = [mark for mark in told.marks if mark.kind == "issued"]
    assert len(issued) == sum("issued" in line.cells for line in told.table)
    assert len(told.lanes) == len(cluster)
    for mark in told.marks:
        assert 0 <= mark.x <= told.width
        assert 0 <= mark.y <= told.height
    for arrow in told.arrows:
        assert arrow.x2 > arrow.x1, "nothing arrives before it was sent"


def test_a_clock_that_is_behind_draws_no_arrow_into_the_past() -> None:
    cluster = recent(cluster_of(2), 1)
    cluster[B]["status"]["recent"][0]["wall_us"] -= 5_000_000
    told = diagram(snapshot_of(cluster))
    [arrow] = told.arrows
    assert arrow.x2 > arrow.x1
    assert told.table[0].cells == ("issued", "−4,997 ms"), "the table tells what the clocks said"


def test_what_is_pending_is_hollow_and_named_in_the_table() -> None:
    cluster = recent(cluster_of(3), 3)
    cluster[B]["status"].update(pending=pending(1, A, C), pending_count=1)
    told = diagram(snapshot_of(cluster))
    [mark] = [mark for mark in told.marks if mark.kind == "pending"]
    assert mark.title == "10.0.0.1 #101 (carts/0/items): pending at 10.0.0.2, waits for 10.0.0.3 #101 since 4.0 s"
    assert "pending, waits for 10.0.0.3 #101" in {cell for line in told.table for cell in line.cells}


def test_of_a_replica_that_does_not_answer_the_diagram_shows_what_it_had_and_no_more() -> None:
    cluster = recent(cluster_of(3), 3)
    for address in (A, B):
        applied = {"dot": [id_of(A), 200], "wall_us": NOW_US - 1000, "key": "later"}
        cluster[address]["status"]["recent"].append(applied)
        cluster[address]["status"]["clock"][id_of(A)] = 200
    cluster[C]["status"].update(pending=pending(1, A, B), pending_count=1)
    cluster[C] = silent(cluster[C], 5.0)
    told = diagram(snapshot_of(cluster))
    assert [lane.note for lane in told.lanes] == ["", "", "no answer"]
    assert not any(mark.kind == "pending" for mark in told.marks), "it may have got what it waited for"
    lines = {line.update: line.cells for line in told.table}
    assert lines["10.0.0.3 #92"][2] == "issued"
    assert lines["10.0.0.1 #90"][2].startswith("+")
    assert lines["10.0.0.1 #200"][2] == "unknown", "it is not known not to have it"


def test_the_diagram_keeps_what_a_replica_that_falls_silent_told(
    monkeypatch: pytest.MonkeyPatch, fake_node: FakeNode
) -> None:
    known = recent(cluster_of(3), 3)
    monkeypatch.setattr(fake_node, "status", lambda **_: known[A]["status"])
    monkeypatch.setattr(fake_node, "status_of", lambda address, _query: (known.get(address) or {}).get("status"))
    monkeypatch.setattr(context, "bound", lambda: True)
    monkeypatch.setattr(context, "node", lambda: fake_node)
    monkeypatch.setattr(details, "members", Members())
    clock = FakeClock()
    monkeypatch.setattr(details, "_latest", details.Kept(details._ask_latest, clock))
    assert "no answer" not in Client().get("/admin/spacetime/now/").content.decode()
    del known[C]
    clock.now_s += 1
    html = Client().get("/admin/spacetime/now/").content.decode()
    assert "no answer" in html
    assert "10.0.0.3 #92 (carts/2): issued" in html


def test_pages_of_keys_ask_nobody(monkeypatch: pytest.MonkeyPatch, fake_node: FakeNode) -> None:
    """All that they need of the others are addresses: one that hangs must not hold them up."""
    fake_node.late_s[C] = None
    monkeypatch.setattr(context, "bound", lambda: True)
    monkeypatch.setattr(context, "node", lambda: fake_node)
    monkeypatch.setattr(site_module, "keeper", Keeper(ask_cluster))
    client = Client()
    assert "10.0.0.2 #1" in client.get("/admin/keys/").content.decode(), "its label is the short one"
    assert client.get("/admin/keys/key/?key=k").status_code == 200
    assert fake_node.asked == []


def test_a_page_of_keys_and_of_a_key() -> None:
    found = [
        {"key": f"k/{n}", "versions": 1, "dot": (id_of(A), n), "timestamp": NOW_US, "value": b"1", "value_bytes": 1}
        for n in range(1, PAGE + 2)
    ]
    page = keys_page(found, [A, B], prefix="k/", after="", conflicts=False)
    assert (len(page.rows), page.more) == (PAGE, f"prefix=k%2F&after=k%2F{PAGE}")
    assert page.rows[0].written == "10.0.0.1 #1"
    assert keys_page(found[:1], [A, B], prefix="k/", after="", conflicts=True).more == ""
    assert key_page(None, "k", []).is_running is False


def test_every_page_works_without_a_replica_and_with_a_stranger(shown: Show, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "bound", lambda: False)
    shown(cluster_of(2))
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


# -- words -------------------------------------------------------------------------------------------------------------


def test_words() -> None:
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
def test_short_labels_are_what_differs(addresses: list[str], labels: list[str]) -> None:
    assert list(short_labels(addresses).values()) == labels
