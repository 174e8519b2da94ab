"""Incarnations, duplicate addresses, and when a joining replica may serve."""

from __future__ import annotations

from random import Random

import pytest

from replication.messages import Exchange
from replication.recovery import CATCHING_UP, IMPORTING, UNANSWERED_TIMES
from replication.replica import Replica
from replication.settings import ReplicationSettings
from store.clock import Instant, incarnation_of
from store.errors import NotServing
from tests.support.wire import NOW, SMALL_LOG, SMALL_PIECES, Wire, address, start_three


def test_a_restart_with_a_slow_clock_takes_a_higher_incarnation_and_reuses_no_dot(wire: Wire) -> None:
    start_three(wire)
    old = wire.issue("r3", "x", b"old")
    wire.flow()
    wire.crash("r3")
    r3 = wire.start("r3", "r1", skew_s=-3600.0)
    assert incarnation_of(r3.id) < incarnation_of(old.origin)
    wire.flow(0.5)
    assert incarnation_of(r3.id) > incarnation_of(old.origin)
    assert wire.state("r3") == "serving"
    new = wire.issue("r3", "x", b"new")
    wire.flow()
    assert new.origin != old.origin
    assert wire.values("r1", "x") == [b"new"]


def test_processes_that_start_in_the_same_millisecond_have_different_incarnations() -> None:
    ids = {Replica("r1:80", [], now=NOW, rng=Random(seed)).id for seed in range(100)}
    assert len(ids) == 100


def test_a_replica_that_takes_a_higher_incarnation_keeps_data_clock_and_log(wire: Wire) -> None:
    """It has served alone with a slow clock, cut off. Its updates of that time must reach the other members too."""
    start_three(wire)
    wire.isolate("r3")
    wire.crash("r3")
    r3 = wire.start("r3", "r1", skew_s=-3600.0)
    wire.flow(3.5)
    early = wire.issue("r3", "x", b"1")
    wire.heal()
    wire.flow(1.5)
    late = wire.issue("r3", "x", b"2", early.past)
    assert incarnation_of(late.origin) > incarnation_of(early.origin)
    wire.flow(2.5)
    for name in ("r1", "r2", "r3"):
        assert wire.has(name, early.dot)
        assert wire.values(name, "x") == [b"2"]
    assert r3.store.clock == wire["r1"].store.clock


def test_a_message_of_a_superseded_incarnation_is_rejected_with_the_membership_table(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    outgoing = wire.begin("r3", "r1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(0.5)
    reply = wire.answer("r1", outgoing.message)
    assert isinstance(reply, Exchange)
    assert not reply.accepted
    assert reply.membership == r1.membership.table.entries
    assert not wire.has("r1", update.dot)


def test_a_rejection_acknowledges_nothing(wire: Wire) -> None:
    r1, r2 = wire.cluster("r1", "r2")
    outgoing = wire.begin("r1", "r2")
    reply = wire.answer("r2", outgoing.message)
    assert isinstance(reply, Exchange)
    update = wire.issue("r1", "x", b"1")
    forged = Exchange(
        r2.id, 99, reply.time, reply.membership_digest, update.past, 0, "serving", retired={}, accepted=False
    )
    wire.complete("r1", outgoing, forged)
    assert r1.acks.count(update.dot) == 1


def test_a_duplicate_address_stops_the_lower_incarnation_if_the_address_leads_to_the_higher_one(wire: Wire) -> None:
    """The second process has taken the address over, as on a moved IP address. The first one hears from it directly."""
    r1, _, _ = start_three(wire)
    wire.tick(5.0)
    higher = wire.start("r1b", "r2", at=address("r1"))
    outgoing = higher.begin(address("r2"), wire.now("r1b"))
    assert outgoing is not None
    wire.answer("r1", outgoing.message)
    wire.aliases[address("r1")] = "r1b"
    assert address("r1") in r1.targets(wire.now("r1"))
    wire.round_trip("r1", "r1")
    assert wire.stopped == {"r1": f"another process ({higher.id}) uses the address r1:80"}
    wire.flow(10.0)
    assert wire.stopped.keys() == {"r1"}
    assert wire.state("r1b") == "serving"


def test_a_process_that_lost_its_address_to_a_higher_incarnation_stops_within_seconds(wire: Wire) -> None:
    """The two processes never exchange messages; they learn of each other from r2 and r3."""
    start_three(wire)
    wire.flow(5.0)
    wire.aliases[address("r1")] = "r1b"
    wire.start("r1b", "r2", at=address("r1"))
    wire.flow(6.0)
    assert wire.stopped.keys() == {"r1"}
    assert wire["r2"].membership.table.present_id(address("r1")) == wire["r1b"].id
    assert wire["r2"].membership.live(wire.now("r2").mono_s) == [address(name) for name in ("r1", "r2", "r3")]


def test_a_process_whose_address_leads_to_another_one_stops_within_seconds(wire: Wire) -> None:
    """The second process was given the address of r1 by mistake, and nobody can reach it there."""
    start_three(wire)
    wire.flow(5.0)
    wire.start("r1b", "r2", at=address("r1"))
    wire.flow(10.0)
    assert wire.stopped.keys() == {"r1b"}
    assert wire["r2"].membership.table.present_id(address("r1")) == wire["r1"].id
    assert wire["r2"].membership.live(wire.now("r2").mono_s) == [address(name) for name in ("r1", "r2", "r3")]


def test_an_address_that_leads_to_two_processes_in_turn_stops_one_of_them(wire: Wire) -> None:
    start_three(wire)
    wire.flow(5.0)
    wire.start("r1b", "r2", at=address("r1"))
    for n in range(100):
        wire.aliases[address("r1")] = ("r1", "r1b")[n // 7 % 2]
        wire.flow(0.1)
        if wire.stopped:
            break
    assert len(wire.stopped) == 1


def test_reported_heartbeats_of_a_predecessor_do_not_stop_a_new_process(wire: Wire) -> None:
    start_three(wire)
    wire.flow(2.0)
    wire.crash("r3")
    wire.start("r3", "r1", skew_s=-3600.0)
    wire.flow(8.0)
    assert not wire.stopped
    assert wire.state("r3") == "serving"


def test_a_late_report_of_a_predecessor_does_not_stop_a_new_process(wire: Wire) -> None:
    """When the message arrives, the reported heartbeat seems to be younger than the new process."""
    start_three(wire)
    wire.flow(2.0)
    wire.exchange("r3", "r1")
    wire.tick(0.6)
    wire["r1"].peers.at(address("r3")).acked.protocol = 1  # A peer of version 1 gets reports of everybody.
    late = wire.begin("r1", "r3").message
    assert isinstance(late, Exchange)
    assert wire["r3"].id in late.heard
    wire.crash("r3")
    wire.start("r3", "r1", skew_s=-3600.0)
    wire.tick(1.0)
    assert wire.answer("r3", late) is not None
    assert not wire.stopped


def test_a_late_message_of_a_former_incarnation_does_not_count_for_the_new_one(wire: Wire) -> None:
    """The acknowledgement of the former incarnation must not count for the new one."""
    r1, _, _ = start_three(wire)
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    old = wire.begin("r3", "r1")
    wire.crash("r3")
    wire.start("r3", "r2")
    wire.cut("r1", "r3")
    wire.flow(1.2)
    wire.answer("r1", old.message)
    assert r1.acks.count(update.dot) == 2


# -- joining -------------------------------------------------------------------------------------------------------


def test_a_joining_replica_serves_no_client_and_issues_no_dot(wire: Wire) -> None:
    r1 = wire.start("r1", "r2")
    with pytest.raises(NotServing) as error:
        wire.put("r1", "x", b"1")
    assert error.value.reason == CATCHING_UP
    with pytest.raises(NotServing):
        wire.get("r1", "x")
    assert r1.store.clock == {}


def test_a_replica_that_awaits_an_import_joins_first_and_serves_afterwards() -> None:
    replica = Replica("r1:80", ["r2:80"], now=NOW, rng=Random(1), awaits_seed=True)
    recovery = replica.recovery
    assert (recovery.is_caught_up, replica.store.not_serving_reason) == (False, CATCHING_UP)
    later = Instant(NOW.mono_s + 60, NOW.wall_us + 60_000_000)
    replica.tick(later)
    assert (recovery.is_caught_up, replica.store.not_serving_reason) == (True, IMPORTING)
    assert (replica.state, recovery.not_ready_reason) == ("joining", IMPORTING)
    recovery.awaits_seed = False
    replica.tick(later)
    assert (replica.state, replica.store.not_serving_reason, recovery.not_ready_reason) == ("serving", None, "")


def test_a_joiner_waits_for_the_updates_that_each_peer_had_when_it_answered(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    wire.issue("r1", "x", b"1")
    wire.issue("r2", "y", b"1")
    wire.start("r3", "r1", "r2")
    wire.exchange("r3", "r1")
    assert wire.values("r3", "x") == [b"1"]
    assert wire.state("r3") == "joining"
    wire.exchange("r3", "r2")
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "y") == [b"1"]


def test_a_joiner_waits_for_all_batches(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, batch_updates=2)
    wire.cluster("r1", "r2")
    wire.isolate("r2")
    for number in range(5):
        wire.issue("r1", f"k{number}", b"1")
    r3 = wire.start("r3", "r1")
    wire.exchange("r3", "r1")
    assert wire.state("r3") == "joining"
    wire.exchange("r3", "r1")
    assert wire.state("r3") == "joining"
    wire.exchange("r3", "r1")
    assert len(r3.store.table) == 5


def test_a_joiner_asks_the_members_that_its_seed_names(wire: Wire) -> None:
    """r1 cannot reach r2, and only r2 has y. The joiner has only r1 as a seed, and learns of r2 from r1."""
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    wire.issue("r2", "y", b"1")
    wire.start("r3", "r1")
    wire.exchange("r3", "r1")
    assert wire.state("r3") == "joining"
    wire.flow(0.5)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "y") == [b"1"]


def test_a_joiner_waits_for_a_member_that_a_late_reply_names(wire: Wire) -> None:
    """Its seed answers shortly before ``down_after``. It names r2, from which no replica has received a heartbeat."""
    wire.start("r1")
    wire.start("r2")
    wire.cut("r1", "r2")
    wire["r1"].add_replica_from_view(address("r2"), wire.now("r1"))
    wire.issue("r2", "y", b"1")
    wire.flow(10.0)
    wire.start("r3", "r1")
    wire.isolate("r3")
    wire.flow(2.6)
    wire.cuts -= {("r1", "r3"), ("r3", "r1")}
    wire.exchange("r3", "r1")
    wire.tick(0.2)
    assert wire.state("r3") == "joining"
    wire.cuts -= {("r2", "r3"), ("r3", "r2")}
    wire.flow(1.1)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "y") == [b"1"]


def test_a_joiner_waits_down_after_for_a_peer_that_never_answers(wire: Wire) -> None:
    wire.start("r1")
    wire.flow(10.0)
    wire.start("r3", "r1", "r2")
    wire.flow(2.5)
    assert wire.state("r3") == "joining"
    wire.flow(0.5)
    assert wire.state("r3") == "serving"


def test_a_joiner_does_not_wait_for_a_member_that_its_peers_report_as_down(wire: Wire) -> None:
    start_three(wire)
    wire.crash("r2")
    wire.flow(10.0)
    wire.start("r4", "r1", "r2")
    wire.flow(1.1)
    assert wire.state("r4") == "serving"


def crash_the_sender_during_a_join(wire: Wire) -> None:
    """Let r2 join through r1, and crash r1 when it has sent its clock and one piece of its snapshot."""
    wire.settings, wire.store_settings = SMALL_PIECES, SMALL_LOG
    wire.start("r1")
    wire.flow(3.0)
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"1")
    wire.start("r2", "r1")
    wire.exchange("r2", "r1")
    wire.pull("r2", "r1")
    wire.crash("r1")


def test_a_joiner_does_not_wait_for_a_peer_that_answered_and_died(wire: Wire) -> None:
    crash_the_sender_during_a_join(wire)
    wire.flow(2.0)
    assert wire.state("r2") == "joining"
    wire.flow(1.5)
    assert wire.state("r2") == "serving"


def test_a_joiner_does_not_wait_for_a_superseded_incarnation(wire: Wire) -> None:
    crash_the_sender_during_a_join(wire)
    wire.start("r1", "r2")
    wire.flow(1.2)
    assert (wire.state("r2"), wire.state("r1")) == ("serving", "serving")


def test_a_joiner_does_not_wait_for_a_superseded_incarnation_whose_successor_it_cannot_reach(wire: Wire) -> None:
    crash_the_sender_during_a_join(wire)
    wire.cuts.add(("r2", "r1"))
    wire.start("r1", "r2")
    wire.round_trip("r1", "r2")
    wire.tick(0.1)
    assert wire.state("r2") == "serving"


def test_a_joiner_waits_longer_for_a_member_that_only_its_peers_can_reach(wire: Wire) -> None:
    """The member may only be slow, so it gets ``UNANSWERED_TIMES`` as long."""
    wire.cluster("r1", "r2")
    wire.start("r3", "r1")
    wire.cut("r2", "r3")
    wire.flow(UNANSWERED_TIMES * wire["r3"].membership.silent_after_s - 0.5)
    assert wire.state("r3") == "joining"
    wire.flow(1.0)
    assert wire.state("r3") == "serving"


def test_replicas_that_all_restart_at_once_serve(wire: Wire) -> None:
    start_three(wire)
    wire.issue("r1", "x", b"1")
    wire.flow()
    names = ("r1", "r2", "r3")
    for name in names:
        wire.crash(name)
    replicas = [wire.start(name, *names) for name in names]
    wire.flow(1.0)
    assert [replica.state for replica in replicas] == ["serving"] * 3


def test_a_failed_peer_is_sent_to_again_when_its_new_incarnation_sends(wire: Wire) -> None:
    """It does not wait for the timer. Otherwise replicas that start one after another would join slowly."""
    wire.settings = ReplicationSettings(sync_interval_s=30.0, down_after_s=90.0)
    names = ("r1", "r2", "r3")
    for name in names:
        wire.start(name, *names)
        wire.flow(0.4)
    assert [wire.state(name) for name in names] == ["serving"] * 3


def test_a_peer_that_sends_but_cannot_be_reached_is_retried_once_and_then_by_the_timer(wire: Wire) -> None:
    wire.start("r1", "r2")
    wire.flow(0.5)
    wire.start("r2", "r1")
    wire.cuts.add(("r1", "r2"))
    wire.traffic.clear()
    for _ in range(3):
        wire.round_trip("r2", "r1")
        wire.flow(0.1)
    assert wire.traffic["r1", "r2"] == 1
    wire.flow(1.0)
    assert wire.traffic["r1", "r2"] == 2


def test_the_first_reply_of_a_failed_peer_triggers_no_further_exchange(wire: Wire) -> None:
    r1 = wire.start("r1", "r2")
    wire.flow(0.5)
    wire.start("r2", "r1")
    wire.exchange("r1", "r2")
    assert r1.due_at(address("r2"), wire.now("r1")) > wire.now("r1").mono_s


def test_a_replica_whose_seeds_do_not_answer_serves_alone_after_down_after(wire: Wire) -> None:
    wire.start("r1", "r2", "r3")
    wire.flow(1.5)
    assert wire.state("r1") == "joining"
    wire.flow(1.5)
    assert wire.state("r1") == "serving"


def test_a_replica_without_seeds_serves_at_once(wire: Wire) -> None:
    assert wire.start("r1").state == "serving"
    assert wire.start("r2", "r2").state == "serving"


def test_a_joiner_has_the_updates_of_a_member_that_only_it_can_reach(wire: Wire) -> None:
    """Only r2 has the update, and r2 can reach only the joiner."""
    start_three(wire)
    wire.isolate("r2")
    wire.issue("r2", "x", b"1")
    wire.crash("r3")
    wire.start("r3", "r1", "r2")
    wire.cuts -= {("r2", "r3"), ("r3", "r2")}
    wire.flow(1.0)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "x") == [b"1"]
