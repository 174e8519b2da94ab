"""Directed tests catch the mutants that random runs hardly ever catch (for the others: test_simulation.py).

Each such mutant has one directed test, of tests/replication or of this module. It passes without the mutant and fails
with it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from store.errors import DependenciesMissing
from tests.replication import test_discovery, test_membership_table, test_time_limits
from tests.replication.protocol import (
    test_acks,
    test_exchange,
    test_hostile_messages,
    test_joining,
    test_leaving,
    test_loss,
    test_markers,
    test_merging,
    test_met,
    test_refusals,
    test_removals,
    test_short_form,
    test_snapshots,
    test_unreached,
)
from tests.store import test_feed
from tests.support.wire import Wire, address, write
from tests.tools.simulation.mutants import DIRECTED, MUTANTS

DirectedTest = Callable[[Wire], None]


def an_update_that_a_member_reports_is_not_lost(wire: Wire) -> None:
    """Only r2 has r3's update, and its log does not hold it any more. So r2 reports it and cannot send it."""
    wire.cluster("r1", "r2", "r3")
    wire.cut("r1", "r3")
    update = wire.issue("r3", "x", b"1")
    wire.round_trip("r3", "r2")
    wire["r2"].store.log.drop_origin(update.origin)
    wire.crash("r3")
    wire.cuts.clear()
    wire.cut("r2", "r3")
    wire.start("r3", "r1")
    while wire.state("r3") == "joining":
        wire.round_trip("r3", "r1")
        wire.tick(1.0)
    wire["r2"].membership.merge(wire["r1"].membership.table.entries)
    token = wire["r1"].loss.fetch(update.past)
    wire.round_trip("r1", "r2")
    wire.round_trip("r1", "r3")
    assert not wire.has("r1", update.dot)
    assert wire["r1"].peers.find("r2:80").acked.report is not None  # type: ignore[union-attr]
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}


def a_client_that_read_an_absence_never_reads_the_deleted_version(wire: Wire) -> None:
    """A client reads x at r1, where it was deleted, and then at r2, which lacks the delete."""
    r1, r2 = wire.cluster("r1", "r2")
    write(r1.store, "x", b"1", {}, wire.now("r1"))
    wire.flow(2.0)
    write(r1.store, "x", None, {}, wire.now("r1"))
    absence = r1.store.get("x", {}, wire.now("r1"))
    assert not absence.versions
    with pytest.raises(DependenciesMissing):
        r2.store.get("x", absence.metadata, wire.now("r2"))


def duplicate_whose_seed_is_the_process_at_its_address(wire: Wire) -> None:
    """r1b asks a1, an alias of r1, and is answered by r1: under its own address, with a lower incarnation."""
    wire.cluster("r1", "r2")
    wire.flow(4.0)
    wire.aliases[address("a1")] = "r1"
    wire.start("r1b", "a1", at=address("r1"))
    wire.flow(6.0)
    assert wire.stopped.keys() == {"r1b"}


def without_wire(test: Callable[[], None]) -> DirectedTest:
    """Return ``test``, which makes a wire of its own, in the form of a directed test."""
    return lambda wire: test()


def with_rejections(test: DirectedTest) -> DirectedTest:
    """Return ``test`` on a network in which messages may be rejected."""

    def run(wire: Wire) -> None:
        wire.rejected = []
        test(wire)

    return run


DIRECTED_TESTS: dict[str, DirectedTest] = {
    "omit_retired_entries_from_markers": test_markers.test_a_dot_that_no_marker_covers_stays_in_the_metadata,
    "use_marker_before_all_have_it": test_markers.test_a_marker_is_used_only_once_every_member_has_it,
    "declare_lost_without_down_members": (test_loss.test_rule_2_a_down_member_may_have_the_update_until_it_is_removed),
    "declare_lost_from_old_reports": (test_loss.test_rule_2_reports_older_than_the_query_do_not_count),
    "declare_lost_under_another_table": (test_loss.test_rule_2_reports_under_another_membership_table_do_not_count),
    "count_reports_of_joining_members": test_loss.test_rule_2_a_member_that_joins_has_not_reported,
    "fold_without_marks": test_merging.test_a_base_and_concurrent_increments_of_marked_entries_merge,
    "fold_before_the_mark_is_settled": test_merging.test_no_base_is_made_while_a_member_may_lack_the_mark,
    "take_the_latest_report_for_settled": test_merging.test_no_base_is_made_while_a_member_may_lack_the_mark,
    "fold_removed_origins": test_merging.test_no_base_is_made_of_a_removed_replica_that_may_return,
    "extend_entries_that_are_not_the_latest": (
        test_merging.test_increments_that_two_others_keep_alive_after_a_delete_count_once
    ),
    "declare_lost_what_a_member_has": an_update_that_a_member_reports_is_not_lost,
    "keep_pending_on_lost_updates": (test_loss.test_a_pending_update_that_waits_for_a_lost_one_is_dropped),
    "omit_random_bits_of_incarnations": (
        lambda wire: test_joining.test_processes_that_start_in_the_same_millisecond_have_different_incarnations()
    ),
    "wait_for_dead_peers": (test_joining.test_a_joiner_does_not_wait_for_a_member_that_its_peers_report_as_down),
    "ignore_discovery": (test_discovery.test_an_undiscovered_replica_declares_no_update_unrecoverable),
    "serve_alone_after_one_lookup": (test_discovery.test_a_joiner_that_discovers_itself_first_still_waits_for_others),
    "ignore_late_lookups": (test_discovery.test_a_joiner_that_discovers_others_late_still_waits_for_their_replies),
    "ignore_removed_holders": (test_loss.test_rule_2_a_removed_replica_may_still_hand_over_its_own_updates),
    "declare_lost_from_reports_before_silence": (
        test_loss.test_rule_2_reports_older_than_the_silence_of_removed_replicas_do_not_count
    ),
    "declare_lost_while_applying": (
        test_loss.test_rule_4_updates_of_a_message_that_is_applied_in_chunks_count_as_pending
    ),
    "hide_heartbeats_of_removed_replicas": (test_loss.test_rule_2_members_report_heartbeats_of_a_removed_replica),
    "ignore_late_members": test_joining.test_a_joiner_waits_for_a_member_that_a_late_reply_names,
    "serve_at_once_when_added_back": (
        test_snapshots.test_a_replica_that_is_added_back_serves_no_client_before_it_has_caught_up
    ),
    "ask_an_address_only_once": (test_discovery.test_an_address_that_reappears_is_contacted_anew),
    "ask_vanished_addresses": (
        test_discovery.test_an_unanswered_address_is_contacted_until_it_disappears_from_the_name
    ),
    "tell_no_expiries": without_wire(test_feed.test_an_expiry_is_a_change),
    "pause_for_known_updates": test_exchange.test_known_updates_of_a_message_cost_no_pause,
    "stop_whoever_answers": test_hostile_messages.test_no_message_stops_a_replica,
    "never_ask_the_own_address": (
        test_joining.test_a_process_that_lost_its_address_to_a_higher_incarnation_stops_within_seconds
    ),
    "wait_for_the_other_process_for_ever": duplicate_whose_seed_is_the_process_at_its_address,
    "check_the_own_address_again_at_once": (
        test_hostile_messages.test_a_forged_incarnation_that_others_relay_keeps_a_replica_out_for_seconds_only
    ),
    "take_the_own_address_for_an_alias": (
        test_hostile_messages.test_another_replica_at_the_own_address_is_no_duplicate_and_no_alias
    ),
    "keep_forged_acknowledgements": (
        test_hostile_messages.test_a_forged_acknowledgement_holds_updates_back_until_the_next_exchange_only
    ),
    "forget_acknowledgements_of_requests": (
        test_hostile_messages.test_an_acknowledgement_that_comes_while_a_request_is_in_flight_is_kept
    ),
    "pace_writes_that_wait_for_acks": (
        test_acks.test_writes_that_wait_for_acks_leave_together_as_soon_as_the_exchange_before_ends
    ),
    "never_pace_again": test_acks.test_after_a_write_that_waited_for_acks_other_writes_are_paced_again,
    "expect_acks_of_an_earlier_incarnation": (
        test_acks.test_what_the_incarnation_before_waited_for_does_not_end_pacing
    ),
    "expect_acks_only_of_a_peer_that_failed": test_acks.test_after_a_failure_the_other_members_are_asked_at_once,
    "expect_acks_of_peers_that_hang": test_acks.test_a_member_that_hangs_is_not_chosen,
    "expect_too_few_acks": test_acks.test_as_many_members_are_asked_as_have_to_acknowledge,
    "let_hybrid_time_run_on": (
        test_hostile_messages.test_a_hybrid_time_as_far_ahead_as_is_allowed_leaves_all_replicas_working
    ),
    "require_rising_heartbeats_of_replies": (
        lambda wire: test_hostile_messages.test_a_forged_heartbeat_makes_no_replica_look_down(wire, "heard")
    ),
    "accept_times_far_ahead": (
        lambda wire: test_time_limits.test_nothing_of_a_message_with_such_a_time_is_taken(wire, "stamp")
    ),
    "keep_no_log_for_receivers_of_snapshots": (
        test_snapshots.test_the_log_reaches_back_to_a_snapshot_that_its_receiver_has_just_joined
    ),
    "keep_the_reserve_for_ever": (
        lambda wire: test_snapshots.test_the_log_has_its_limit_again_when_no_receiver_catches_up_any_more(
            wire, "caught up"
        )
    ),
    "give_the_log_an_unlimited_reserve": (
        test_snapshots.test_the_log_keeps_its_limit_and_a_bounded_reserve_while_receivers_catch_up
    ),
    "pull_snapshots_without_pauses": (test_snapshots.test_each_pull_counts_for_the_pauses_also_if_its_sender_dies),
    "send_whole_snapshots_only": test_snapshots.test_a_snapshot_after_a_snapshot_has_only_what_has_changed,
    "join_a_partial_snapshot_for_another_clock": (
        lambda wire: test_snapshots.test_a_partial_snapshot_for_another_clock_than_the_receivers_is_rejected(wire, {})
    ),
    "cover_only_known_incarnations": (
        test_removals.test_removing_an_address_that_nothing_names_is_recorded_for_clients_that_depend_on_it
    ),
    "wait_for_removed_seeds": (
        test_removals.test_after_the_loss_of_all_replicas_clients_of_one_that_was_never_heard_of_again_are_served
    ),
    "take_every_removal_for_an_old_one": (
        test_removals.test_a_process_that_belonged_once_takes_a_removal_as_meant_for_it_even_while_it_joins
    ),
    "leave_like_a_command": lambda wire: (
        test_leaving.test_processes_that_left_and_started_cut_off_with_their_clocks_set_back_belong_again(
            wire, ("r3", "r4")
        )
    ),
    "lose_what_the_next_process_wrote": lambda wire: (
        test_leaving.test_processes_that_were_added_by_command_and_left_and_started_cut_off_belong_again(wire, ("r3",))
    ),
    "remove_the_address_when_leaving": lambda wire: (
        test_leaving.test_processes_that_left_and_started_cut_off_belong_again_however_far_hybrid_time_is_ahead(
            wire, ("r3",), 120.0
        )
    ),
    "forget_that_it_leaves": without_wire(
        test_leaving.test_a_replica_that_leaves_hands_over_its_updates_although_its_removal_is_forgotten
    ),
    "leave_above_every_command": (
        test_leaving.test_a_command_that_knows_less_than_a_process_that_left_still_covers_the_next_one
    ),
    "narrow_a_command": without_wire(
        test_leaving.test_clients_of_a_process_that_a_command_removed_are_served_also_after_it_has_left
    ),
    "return_although_removed": (
        test_leaving.test_a_process_that_was_removed_stays_out_when_a_later_one_at_its_address_leaves
    ),
    "return_after_losing_the_address": (
        test_leaving.test_a_process_that_has_lost_its_address_does_not_return_while_it_drains
    ),
    "command_with_any_stamp": (
        test_leaving.test_after_a_process_left_a_command_removes_the_next_one_that_it_has_not_heard_of
    ),
    "let_the_higher_incarnation_win_over_a_removal": (
        test_removals.test_a_process_unknown_to_those_who_removed_its_address_stays_out_and_hands_over_its_updates
    ),
    "merge_no_horizon": without_wire(test_removals.test_a_joining_replica_takes_over_the_horizon),
    "revive_forgotten_entries": without_wire(
        test_membership_table.test_what_is_forgotten_here_is_not_brought_back_by_a_table_that_has_it
    ),
    "stay_out_if_forgotten": without_wire(
        test_removals.test_a_live_replica_that_others_do_not_name_and_count_as_forgotten_returns_with_its_data
    ),
    "let_a_removed_replica_be_forgotten": without_wire(
        test_removals.test_a_removed_replica_that_was_forgotten_writes_its_removal_again_and_hands_over_its_updates
    ),
    "never_ask_seeds_again": without_wire(
        test_removals.test_a_removed_replica_that_reaches_no_member_asks_its_seeds_again
    ),
    "never_ask_dropped_members": (
        test_removals.test_replicas_that_drop_all_members_at_once_because_of_forged_horizons_find_each_other_again
    ),
    "leave_the_horizon_out_of_the_digest": without_wire(
        test_removals.test_a_horizon_reaches_a_replica_whose_entries_are_the_same
    ),
    "change_below_the_horizon": without_wire(test_membership_table.test_a_change_after_forgetting_is_above_the_horizon),
    "keep_the_base_of_another_table": test_short_form.test_an_entry_that_becomes_present_again_is_sent,
    "base_clocks_on_requests": test_short_form.test_a_forged_request_takes_part_in_no_later_clock,
    "ask_about_nobody": (
        lambda wire: test_short_form.test_a_member_that_only_others_can_reach_never_leaves_the_view(wire, 3)
    ),
    "answer_no_question": (
        lambda wire: test_short_form.test_a_member_that_only_others_can_reach_never_leaves_the_view(wire, 6)
    ),
    "report_nothing_to_peers_that_do_not_answer": (
        test_short_form.test_a_peer_whose_questions_do_not_arrive_gets_a_report_of_everybody
    ),
    "list_changes_since_what_was_sent": test_short_form.test_changes_are_listed_until_a_reply_has_brought_them,
    "take_parts_for_whole_clocks": (
        test_short_form.test_a_clock_is_not_whole_without_the_state_that_its_changes_are_based_on
    ),
    "use_positions_under_other_tables": test_short_form.test_positions_mean_nothing_under_another_membership_table,
    "ignore_where_the_data_are": (
        test_refusals.test_two_that_agree_do_not_become_ready_while_a_third_that_refuses_them_has_the_data
    ),
    "count_jumps_from_a_clock_that_is_off": with_rejections(
        test_refusals.test_the_slowest_clock_of_those_that_accept_limits_a_jump
    ),
    "count_refusals_of_the_dead": test_refusals.test_a_peer_that_is_down_refuses_nobody,
    "serve_after_the_first_acceptance": (
        test_refusals.test_after_a_refusal_every_peer_has_time_to_answer_before_the_replica_serves
    ),
    "forget_the_clock_at_the_next_exchange": with_rejections(
        test_refusals.test_exchanges_that_state_no_wall_clock_do_not_hide_that_clocks_disagree
    ),
    "ignore_the_clock_while_serving": with_rejections(
        test_refusals.test_exchanges_that_state_no_wall_clock_do_not_hide_that_clocks_disagree
    ),
    "keep_entries_with_wrong_times": with_rejections(
        test_refusals.test_wrong_times_of_others_in_the_table_are_taken_back_too
    ),
    "serve_before_enough_have_met": test_met.test_no_replica_serves_before_as_many_have_met_as_are_expected,
    "forget_how_many_have_met": test_met.test_a_member_restarts_in_a_cluster_that_has_become_smaller,
    "ask_nobody_anew_when_enough_have_met": test_met.test_when_enough_have_met_every_peer_has_time_to_answer,
    "miss_removed_seeds": test_unreached.test_an_address_that_was_removed_from_the_view_is_not_missed,
    "omit_delete_clock": a_client_that_read_an_absence_never_reads_the_deleted_version,
}


def test_every_directed_mutant_has_a_directed_test() -> None:
    assert DIRECTED.keys() <= DIRECTED_TESTS.keys()


@pytest.mark.parametrize("name", sorted(DIRECTED_TESTS))
def test_a_directed_test_passes_without_its_mutant_and_fails_with_it(name: str) -> None:
    DIRECTED_TESTS[name](new_wire())
    with {**MUTANTS, **DIRECTED}[name](), pytest.raises((AssertionError, pytest.fail.Exception)):
        DIRECTED_TESTS[name](new_wire())


def new_wire() -> Wire:
    """Return a wire on which each replica has an IP address as an alias, as test_discovery.py requires."""
    return Wire(aliases={ip: name for name, ip in test_discovery.IPS.items()})
