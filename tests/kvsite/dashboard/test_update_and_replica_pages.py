"""The pages of one update and of one replica: who has what, what waits, and what is known of a silent replica."""

from __future__ import annotations

import pytest
from django.template.loader import render_to_string

from kvsite.dashboard.formatting import time_of_day
from kvsite.dashboard.replica_page import replica_page
from kvsite.dashboard.update_page import parse_update, update_page
from tests.kvsite.dashboard.support import A, B, C, FakeMember, client_of, state_of
from tests.support.statuses import NOW_US, cluster_of, id_of, in_trouble, member, pending, recent, silent

D = "10.0.0.4:8090"

# -- one update --------------------------------------------------------------------------------------------------------


def test_the_page_of_an_update_says_who_has_it_and_why_it_waits() -> None:
    cluster = recent(cluster_of(4), 4)
    cause, effect = (id_of(C), 101), (id_of(A), 101)
    cluster[C]["status"]["clock"][id_of(C)] = 101
    cluster[A]["status"]["clock"] |= {id_of(A): 101, id_of(C): 101}
    cluster[A]["status"]["recent"].append({"dot": effect, "wall_us": NOW_US - 9000, "key": "answer"})
    cluster[B]["status"].update(pending=pending(1, A, C), pending_count=1)
    cluster[D] = silent(cluster[D], 42.0)
    cluster[A]["status"]["view"][3] = member(D, "down", last_contact_s=42.0)
    page = update_page(state_of(cluster), effect, "answer")
    assert (page.name, page.key, page.issued[-4:]) == ("10.0.0.1 #101", "answer", " UTC")
    places = {place.address: place for place in page.places}
    assert {address: place.text for address, place in places.items()} == {
        A: "has it",
        B: "pending",
        C: "not yet",
        D: "unknown",
    }
    assert places[A].detail == "It issued the update."
    assert places[B].cause == "10.0.0.3 #101"
    assert places[B].detail == f"It was received 4.0 s ago. {A} and {C} have what is missing."
    assert places[C].detail == f"{A} has what is missing."
    assert places[D].detail == "It does not respond, no sign of life for 42 s."
    assert page.summary == f"1 of 4 replicas have this update. It waits at {B}."
    assert parse_update(places[B].cause_query.removeprefix("update=").replace("%40", "@").replace("%3A", ":")) == cause


def test_an_update_that_only_an_unreachable_replica_had_is_named_as_such() -> None:
    cluster = cluster_of(3)
    cluster[C]["status"]["clock"][id_of(C)] = 105
    cluster[C] = silent(cluster[C], 5.0)
    page = update_page(state_of(cluster), (id_of(C), 105), None)
    details_of = {place.address: place.detail for place in page.places}
    assert details_of[A] == f"Only {C} had what is missing, without contact now."
    everywhere = update_page(state_of(cluster_of(3)), (id_of(C), 100), None)
    assert everywhere.summary == "Every replica has this update."
    nowhere = update_page(state_of(cluster_of(3)), (id_of(C), 999), None)
    assert nowhere.places[0].detail == "No replica is known to have what is missing."


def test_the_key_page_tells_the_page_of_an_update_its_key_which_is_checked(fake_node: FakeMember) -> None:
    fake_node.explain = lambda key, *_: {  # type: ignore[method-assign]
        "versions": [{"dot": [id_of(B), 7]}] if key == "carts/7" else []
    }
    client = client_of(fake_node)
    for key, is_shown in (("carts/7", True), ("<other>", False), ("", False)):
        page = client.get("/admin/update/", {"update": f"{id_of(B)}:7", "key": key}).content.decode()
        assert ("carts/7" in page.partition("<main")[2], "not known any more</span>" in page) == (
            is_shown,
            not is_shown,
        )


@pytest.mark.parametrize("text", ["", "x", "a@1", "a@1:", "a@1:-1", "a@1:1.5", "a@1:\u0661", "@" * 500 + ":1", ":1"])
def test_what_names_no_update_gets_404(fake_node: FakeMember, text: str) -> None:
    assert parse_update(text) is None
    assert client_of(fake_node).get("/admin/update/", {"update": text}).status_code == 404


# -- a replica that does not respond -----------------------------------------------------------------------------------


def test_the_page_of_a_silent_replica_is_grey_as_a_whole_and_explains_its_charts_and_events() -> None:
    cluster = in_trouble(3)
    state = state_of(cluster)
    own = {"number": 1, "wall_us": NOW_US - 60_000_000, "kind": "serving", "subject": C, "detail": "3 keys"}
    later = {"number": 2, "wall_us": NOW_US - 41_000_000, "kind": "down", "subject": A, "detail": ""}
    cluster[C]["status"]["events"] = [own]
    cluster[A]["status"]["events"].append(later)
    state = state_of(cluster)
    page = replica_page(state, state.replicas[2])
    assert "42 s" in page.stale_text
    assert "no charts" in page.stale_text
    assert [(entry.text, entry.recorded_by) for entry in page.events.entries] == [
        (f"{C} is down", "10.0.0.1"),
        (f"{C} joined the view", "10.0.0.1"),
        (f"{C} caught up and is serving with 3 keys", "10.0.0.3"),
    ]
    assert page.last_event_text.startswith(f"The replica recorded nothing after {time_of_day(NOW_US - 60_000_000)} UTC")
    html = render_to_string("dashboard/_replica.html", {"page": page, "address": C})
    inside = html[html.index('id="replica-data" class="cw-is-stale') :]
    assert all(f'id="{name}"' in inside for name in ("facts", "clock", "members", "queues", "events"))
    alive = replica_page(state, state.replicas[0])
    assert (alive.stale_text, alive.last_event_text) == ("", "")


def test_a_replica_page_shows_waiting_requests_feeds_and_snapshots() -> None:
    cluster = cluster_of(2, watchers=4, streams=3, ack_waits=2, deferred_requests=1)
    cluster[A]["status"]["snapshots"] = {"taken": 1, "given": 2, "taking_from": B, "giving_to": [id_of(C)]}
    state = state_of(cluster)
    shown = {fact.name: fact.value for fact in replica_page(state, state.replicas[0]).facts}
    names = ("Deferred requests", "Watchers", "Feeds", "Waiting for acks", "Snapshots under way")
    assert [shown[name] for name in names] == ["1", "4", "3", "2", f"from {B}, to {C}"]
    assert {fact.name: fact.value for fact in replica_page(state, state.replicas[1]).facts}[
        "Snapshots under way"
    ] == "none"
