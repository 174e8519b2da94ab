"""Mistakes that random runs hardly ever meet, each caught by a directed scene (the random ones: test_simulation.py).

A scene is a test of tests/replication/protocol or one of those below: with the mistake made, it must fail.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from store.errors import DependenciesMissing
from tests.replication import test_discovery
from tests.replication.protocol import test_joining, test_lost_past, test_marking, test_snapshots
from tests.support.wire import Wire, write
from tests.tools.simulation.mutants import DIRECTED, MUTANTS

Scene = Callable[[Wire], None]


def what_a_member_reports_to_have_is_not_lost(wire: Wire) -> None:
    """r2 alone has what r3 wrote before it died. Its log was cut, so r1 is told of it before it can have it."""
    wire.cluster("r1", "r2", "r3")
    wire.cut("r1", "r3")
    update = wire.issue("r3", "x", b"1")
    wire.round_trip("r3", "r2")
    wire["r2"].store.log.drop_origin(update.origin)
    wire.crash("r3")
    wire.cuts.clear()
    wire.cut("r2", "r3")
    wire.start("r3", "r1")
    for _ in range(3):
        wire.round_trip("r3", "r1")
    wire["r2"].membership.merge(wire["r1"].membership.table.entries)
    token = wire["r1"].loss.ask(update.past)
    wire.round_trip("r1", "r2")
    wire.round_trip("r1", "r3")
    assert not wire.has("r1", update.dot)
    assert wire["r1"].peers.find("r2:80").acked.report is not None  # type: ignore[union-attr]
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}


def who_saw_an_absence_does_not_meet_what_was_deleted(wire: Wire) -> None:
    """Carl reads x at r1 where it was deleted, and then at r2, which has not heard of that."""
    r1, r2 = wire.cluster("r1", "r2")
    write(r1.store, "x", b"1", {}, wire.now("r1"))
    wire.flow(2.0)
    write(r1.store, "x", None, {}, wire.now("r1"))
    seen = r1.store.get("x", {}, wire.now("r1"))
    assert not seen.versions
    with pytest.raises(DependenciesMissing):
        r2.store.get("x", seen.metadata, wire.now("r2"))


SCENES: dict[str, Scene] = {
    "a_marker_whose_past_is_not_the_whole_clock": test_marking.test_a_dot_that_no_marker_covers_stays_in_the_metadata,
    "a_marker_used_before_every_member_has_it": test_marking.test_a_marker_is_used_only_once_every_member_has_it,
    "lost_without_asking_members_that_are_down": (
        test_lost_past.test_rule_2_a_down_member_may_have_the_update_until_it_is_removed
    ),
    "lost_from_reports_older_than_the_request": (test_lost_past.test_rule_2_reports_older_than_the_query_do_not_count),
    "lost_from_reports_made_under_another_register": (
        test_lost_past.test_rule_2_reports_under_another_membership_table_do_not_count
    ),
    "lost_before_the_own_clock_covers_the_reports": what_a_member_reports_to_have_is_not_lost,
    "pending_updates_kept_that_wait_for_what_is_lost": (
        test_lost_past.test_a_pending_update_that_waits_for_a_lost_one_is_dropped
    ),
    "an_incarnation_without_random_bits": (
        lambda wire: test_joining.test_processes_that_start_in_the_same_millisecond_have_different_incarnations()
    ),
    "a_joiner_that_waits_for_a_dead_peer": (
        test_joining.test_a_joiner_does_not_wait_for_a_member_that_its_peers_report_as_down
    ),
    "a_replica_that_thinks_that_it_knows_everybody": (
        test_discovery.test_an_undiscovered_replica_declares_no_update_unrecoverable
    ),
    "alone_because_a_lookup_found_nobody_else": (
        test_discovery.test_a_joiner_that_discovers_itself_first_still_waits_for_others
    ),
    "found_late_and_not_waited_for": (
        test_discovery.test_a_joiner_that_discovers_others_late_still_waits_for_their_replies
    ),
    "lost_while_one_that_was_put_out_may_bring_it": (
        test_lost_past.test_rule_2_a_removed_replica_may_still_hand_over_its_own_updates
    ),
    "lost_from_reports_from_before_the_put_out_fell_silent": (
        test_lost_past.test_rule_2_reports_older_than_the_silence_of_removed_replicas_do_not_count
    ),
    "lost_while_it_is_being_applied": (
        test_lost_past.test_rule_4_updates_of_a_message_that_is_applied_in_chunks_count_as_pending
    ),
    "who_was_put_out_is_not_told_of": (test_lost_past.test_rule_2_members_report_heartbeats_of_a_removed_replica),
    "named_late_and_not_waited_for": test_joining.test_a_joiner_waits_for_a_member_that_a_late_reply_names,
    "put_back_and_served_at_once": (
        test_snapshots.test_a_replica_that_is_added_back_serves_no_client_before_it_has_caught_up
    ),
    "an_address_asked_once_in_a_life": (test_discovery.test_an_address_that_reappears_is_contacted_anew),
    "an_address_asked_for_ever": (
        test_discovery.test_an_unanswered_address_is_contacted_until_it_disappears_from_the_name
    ),
    "answers_without_the_delete_clock": who_saw_an_absence_does_not_meet_what_was_deleted,
}


def test_every_directed_mutant_has_a_scene() -> None:
    assert DIRECTED.keys() <= SCENES.keys()


@pytest.mark.parametrize("name", sorted(SCENES))
def test_a_scene_passes_without_its_mistake_and_fails_with_it(name: str) -> None:
    SCENES[name](a_wire())
    with {**MUTANTS, **DIRECTED}[name](), pytest.raises((AssertionError, pytest.fail.Exception)):
        SCENES[name](a_wire())


def a_wire() -> Wire:
    """Return a wire on which every replica is reached by an IP address too, as those of test_discovery.py are."""
    return Wire(aliases={ip: name for name, ip in test_discovery.IPS.items()})
