"""The front page's content, made from constructed statuses: health, lag, matrices, queues, cards, events."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client

from kvsite.dashboard.lag import LagTracker, highest_known
from kvsite.dashboard.timeline import MAX_ENTRIES, timeline
from tests.kvsite.dashboard.support import A, B, C, ShowCluster, facts, numbers, page_of, state_of, texts
from tests.support.statuses import (
    NOW_US,
    Cluster,
    answered,
    cluster_of,
    id_of,
    in_trouble,
    member,
    pending,
    silent,
    status,
)

# -- health -----------------------------------------------------------------------------------------------------------


def test_a_healthy_cluster_has_no_findings() -> None:
    health = page_of(cluster_of(3)).health
    assert (health.level, health.headline) == ("good", "3 of 3 replicas alive, in sync, no updates pending")
    assert health.findings == ()


def test_a_single_replica_is_not_called_in_sync_and_says_that_it_is_the_only_one() -> None:
    health = page_of(cluster_of(1)).health
    assert (health.level, health.headline) == ("good", "1 of 1 replica alive, no updates pending")
    assert texts(page_of(cluster_of(1))) == [
        f"This is the only replica, and the data ends with it. Start another one with VIEW={A}."
    ]


def test_a_down_replica_is_named() -> None:
    cluster = cluster_of(3)
    cluster[C] = silent(cluster[C], 12.0)
    for address in (A, B):
        cluster[address]["status"]["view"][2] = member(C, "down", last_contact_s=12.0)
    page = page_of(cluster)
    assert (page.health.level, page.health.headline) == ("bad", f"{C} is down, 2 of 3 replicas alive")
    assert texts(page) == [f"{C} is down."]
    assert any("start it again" in sentence for sentence in page.health.findings[0].advice)


def down(cluster: Cluster, *addresses: str) -> Cluster:
    """Make replicas of ``cluster`` silent, and down in the views of the others."""
    for address in addresses:
        cluster[address] = silent(cluster[address], 12.0)
    for each in cluster.values():
        if each["reachable"]:
            each["status"]["view"] = [
                member(other, "down" if other in addresses else "alive", last_contact_s=12.0) for other in cluster
            ]
    return cluster


def test_a_box_never_says_in_sync_while_a_silent_replica_lacks_updates() -> None:
    cluster = cluster_of(3)
    for address in (A, B):
        cluster[address]["status"]["clock"][id_of(A)] = 130
    page = page_of(down(cluster, C))
    assert "in sync" not in page.health.headline
    assert "pending" not in page.health.headline
    assert texts(page) == [f"{C} is down.", f"{C} is missing 30 updates, as far as is known."]


@pytest.mark.parametrize("size", [2, 3, 16])
def test_the_last_replica_says_what_to_do_and_what_not(size: int) -> None:
    cluster = cluster_of(size)
    page = page_of(down(cluster, *(address for address in cluster if address != A)))
    assert page.health.headline == f"Only {A} responds, 1 of {size} replicas alive"
    alone = page.health.findings[0]
    assert alone.level == "bad"
    assert [sentence.partition(" ")[0] for sentence in alone.advice[:2]] == ["Do", "Do"]
    assert alone.advice[0].startswith(f"Do not stop or restart {A}")
    assert any(f"VIEW={A}" in sentence for sentence in alone.advice)
    assert [each.advice for each in page.health.findings[1:]] == [()] * (len(page.health.findings) - 1)


def test_a_status_that_is_late_once_does_not_make_a_replica_the_last_one() -> None:
    cluster = cluster_of(2)
    cluster[B] = silent(cluster[B], 0.7)
    assert not page_of(cluster).health.headline.startswith("Only")


def test_several_faults_are_counted_in_the_headline() -> None:
    cluster = down(cluster_of(4), C)
    cluster[B]["status"].update(not_ready_reason="The clock is wrong", refusals=[refusal(A)])
    assert page_of(cluster).health.headline == f"{C} is down, 1 more problem, 3 of 4 replicas alive"


def test_a_headline_has_no_numbers_that_change_every_second() -> None:
    """Screen readers announce each change of it."""
    headlines = set()
    for counter, late_s in ((150, 12.0), (163, 13.0)):
        cluster = cluster_of(3)
        cluster[A]["status"]["clock"][id_of(A)] = counter
        cluster[C]["status"].update(pending=pending(counter % 7, A, B), pending_count=counter % 7)
        headlines.add(page_of(cluster, lag_s={B: late_s}).health.headline)
    assert headlines == {f"{B} is behind, 1 more problem, 3 of 3 replicas alive"}


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


def refusal(address: str) -> dict[str, str]:
    return {"address": address, "kind": "clock", "text": "the clocks differ"}


def test_a_replica_that_peers_keep_from_being_ready_is_named_with_the_reason_and_not_green() -> None:
    cluster = cluster_of(3)
    cluster[B]["status"].update(not_ready_reason="The clock is wrong", refusals=[refusal(A), refusal(C)])
    page = page_of(cluster)
    assert page.health.level == "bad"
    fault = f"{B} has another time than the others"
    assert texts(page) == [f"{fault}. The clock is wrong."]
    assert page.health.headline == f"{fault}, 3 of 3 replicas alive"
    card = next(card for card in page.cards if card.address == B)
    assert (card.state, card.tone, card.not_ready_reason) == ("not ready", "warn", "The clock is wrong")


def test_refusals_of_a_ready_replica_are_named_too() -> None:
    cluster = cluster_of(3)
    cluster[A]["status"].update(refusals=[refusal("10.0.0.9:8090"), refusal(C)])
    page = page_of(cluster)
    assert texts(page) == [f"{A} and 10.0.0.9:8090, and 1 more refuse each other: the clocks differ."]
    assert next(card for card in page.cards if card.address == A).tone == "good"


def test_only_some_refused_replicas_are_described() -> None:
    cluster = cluster_of(8)
    for n, each in enumerate(cluster.values()):
        each["status"].update(not_ready_reason="x", refusals=[refusal(f"10.0.1.{n}:8090")])
    assert texts(page_of(cluster))[-1] == "5 more replicas refused by others."


def test_an_address_that_was_never_reached_is_amber_and_named_with_the_reason() -> None:
    cluster = cluster_of(2)
    missed = {"address": "10.0.0.9:8090", "kind": "closed", "text": "nobody listens there", "since_s": 60.0}
    cluster[A]["status"].update(never_reached=[missed])
    page = page_of(cluster)
    assert page.health.level == "warn"
    assert texts(page) == [f"{A} has never reached 10.0.0.9:8090, which VIEW names: nobody listens there."]
    assert "correct VIEW, or remove it from VIEW" in page.health.findings[0].advice[0]
    cluster[A]["status"].update(never_reached=[missed] * 8)
    assert texts(page_of(cluster))[-1] == "3 more of these were never reached."


def test_a_replica_that_waits_for_members_says_so() -> None:
    cluster = cluster_of(1)
    waiting = {"state": "joining", "expected_members": 3, "met_members": 1, "not_ready_reason": "KV_EXPECT asks for 3"}
    cluster[A]["status"].update(waiting)
    page = page_of(cluster)
    assert page.health.level == "warn"
    assert f"{A} is not ready. KV_EXPECT asks for 3." in texts(page)


def test_updates_in_flight_are_no_problem_but_old_missing_updates_are() -> None:
    cluster = cluster_of(3)
    cluster[A]["status"]["clock"][id_of(A)] = 150
    assert page_of(cluster, lag_s={B: 0.2, C: 0.2}).health.level == "good"
    late = page_of(cluster, lag_s={B: 4.0, C: 0.2})
    assert (late.health.level, late.health.headline) == (
        "busy",
        f"{B} is behind, 3 of 3 replicas alive",
    )
    assert texts(late) == [f"{B} is missing 50 updates, some for 4.0 s."]
    assert page_of(cluster, lag_s={B: 11.0}).health.level == "bad"


def test_pending_updates_are_reported_and_a_problem_when_they_are_old() -> None:
    cluster = cluster_of(3)
    cluster[B]["status"].update(pending=pending(2, A, C), pending_count=2)
    page = page_of(cluster)
    assert page.health.level == "busy"
    assert page.health.headline == f"updates are pending at {B}, 3 of 3 replicas alive"
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
    text = texts(page_of(cluster))[1]
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


def test_a_replica_has_lacked_nothing_for_longer_than_it_has_run() -> None:
    lag, cluster = LagTracker(), cluster_of(2)
    lag.lag_s(state_of(cluster), 1.0)
    cluster[B]["status"].update(replica_id=id_of(B, 2), clock={}, uptime_s=3.0)
    assert lag.lag_s(state_of(cluster), 900.0) == {B: 3.0}


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


def test_nothing_is_invented_about_an_unknown_replica() -> None:
    cluster = cluster_of(1)
    cluster[B] = {"status": None, "age_s": None, "reachable": False}
    page = page_of(cluster)
    assert numbers(page)[1] == [None]
    assert texts(page)[1:] == [f"{B} has never been reached."]
    assert facts(page, B) == {"Lag": "unknown", "Incarnation": "unknown"}
    assert [queue.address for queue in page.queues] == [A]


def test_a_down_replica_keeps_its_last_known_state_with_its_age() -> None:
    page = page_of(in_trouble(3))
    card = page.cards[2]
    reason = "No sign of life for 42 s. The figures are the last known ones"
    assert (card.state, card.tone, card.stale_reason) == ("down", "bad", reason)
    assert "Last contact" not in facts(page, C), "the heading of the card has it"
    assert page.queues[2].stale_age == page.clocks.rows[2].stale_age == "42 s old", "one age for one fact"
    assert facts(page, C)["Keys"] == "1,234"
    assert page.views.rows[2].stale_age == "42 s old"
    assert page.views.rows[2].cells[0].contact == "42 s", "0.3 s in a status that is 42 s old"


def test_figures_that_are_older_than_the_last_sign_of_life_say_so() -> None:
    cluster = cluster_of(2)
    cluster[B] = silent(cluster[B], 600.0)
    cluster[A]["status"]["view"][1] = member(B, "down", last_contact_s=42.0)
    page = page_of(cluster)
    reason = page.cards[1].stale_reason
    assert reason == "No sign of life for 42 s. The figures are the last known ones, from 10 min 0 s ago"
    assert page.queues[1].stale_age == page.views.rows[1].stale_age == "10 min 0 s old", "only the status has these"
    assert page.clocks.rows[1].stale_age == "42 s old", "an exchange has renewed it"


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
        "Version": "0.1.0",
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
