"""Incarnations, and when a replica that starts may serve."""

from __future__ import annotations

from random import Random

import pytest

from replication.errors import DuplicateAddress
from replication.messages import Exchange
from replication.recovery import CATCHING_UP
from replication.replica import Replica
from replication.settings import ReplicationSettings
from store.clock import incarnation_of
from store.errors import NotServing
from tests.support.wire import NOW, SMALL_LOG, SMALL_PIECES, Wire, address, run, start_three


def test_a_restart_under_a_clock_that_went_back_takes_a_higher_incarnation_and_no_dot_twice(wire: Wire) -> None:
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


def test_two_processes_started_at_the_same_millisecond_have_different_incarnations() -> None:
    ids = {Replica("r1:80", [], now=NOW, rng=Random(seed)).id for seed in range(100)}
    assert len(ids) == 100


def test_a_replica_that_has_to_take_a_higher_incarnation_keeps_data_clock_and_log(wire: Wire) -> None:
    """It served alone, cut off, under a clock that had gone back; its first updates must reach the others too."""
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


def test_a_message_of_an_incarnation_that_is_over_is_answered_with_the_register_and_not_taken(wire: Wire) -> None:
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


def test_a_reply_that_was_not_taken_is_no_acknowledgement_and_no_report(wire: Wire) -> None:
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


def test_of_two_processes_with_one_address_the_lower_one_stops_when_the_higher_one_talks(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.tick(5.0)
    higher = wire.start("r1b", "r2", at=address("r1"))
    outgoing = higher.begin(address("r2"), wire.now("r1b"))
    assert outgoing is not None
    assert isinstance(outgoing.message, Exchange)
    with pytest.raises(DuplicateAddress):
        run(r1.receive(outgoing.message, wire.now("r1")), wire.now("r1"))
    lower = wire.begin("r1", "r2").message
    assert isinstance(lower, Exchange)
    reply = run(higher.receive(lower, wire.now("r1b")), wire.now("r1b"))
    assert isinstance(reply, Exchange)
    assert not reply.accepted


def test_of_two_processes_with_one_address_the_lower_one_stops_when_they_meet_only_through_others(wire: Wire) -> None:
    start_three(wire)
    wire.start("r1b", "r2", at=address("r1"))
    wire.flow(15.0)
    assert len(wire.stopped) == 1
    survivor = next(name for name in ("r1", "r1b") if name in wire.processes)
    assert wire["r2"].membership.table.present_id(address("r1")) == wire[survivor].id


def test_signs_of_life_of_a_predecessor_do_not_stop_a_process_that_has_just_started(wire: Wire) -> None:
    start_three(wire)
    wire.flow(2.0)
    wire.crash("r3")
    wire.start("r3", "r1", skew_s=-3600.0)
    wire.flow(8.0)
    assert not wire.stopped
    assert wire.state("r3") == "serving"


def test_a_peer_is_known_by_its_present_incarnation_only(wire: Wire) -> None:
    """A message of the former process that was slow on its way must not count for the new one."""
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


def test_a_joiner_serves_nobody_and_takes_no_dot(wire: Wire) -> None:
    r1 = wire.start("r1", "r2")
    with pytest.raises(NotServing) as refused:
        wire.put("r1", "x", b"1")
    assert refused.value.reason == CATCHING_UP
    with pytest.raises(NotServing):
        wire.get("r1", "x")
    assert r1.store.clock == {}


def test_a_joiner_waits_for_everything_that_each_one_who_answered_had_when_asked(wire: Wire) -> None:
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


def test_a_joiner_waits_for_what_comes_in_several_batches(wire: Wire) -> None:
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
    """r1 has just lost r2; only r2 has y. The joiner knows r1 alone, but learns of r2."""
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    wire.issue("r2", "y", b"1")
    wire.start("r3", "r1")
    wire.exchange("r3", "r1")
    assert wire.state("r3") == "joining"
    wire.flow(0.5)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "y") == [b"1"]


def test_a_joiner_waits_for_one_that_it_hears_of_late(wire: Wire) -> None:
    """Its seed answers when ``down_after`` is nearly over, and names r2, of which nobody has heard yet."""
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


def test_a_joiner_waits_down_after_for_a_peer_that_never_answers_and_no_longer(wire: Wire) -> None:
    wire.start("r1")
    wire.flow(10.0)
    wire.start("r3", "r1", "r2")
    wire.flow(2.5)
    assert wire.state("r3") == "joining"
    wire.flow(0.5)
    assert wire.state("r3") == "serving"


def test_a_joiner_does_not_wait_for_a_member_that_the_others_know_to_be_down(wire: Wire) -> None:
    start_three(wire)
    wire.crash("r2")
    wire.flow(10.0)
    wire.start("r4", "r1", "r2")
    wire.flow(1.1)
    assert wire.state("r4") == "serving"


def left_half_way(wire: Wire) -> None:
    """Let r2 start, and r1 die that has told it what it has and given it a piece of that."""
    wire.settings, wire.store_settings = SMALL_PIECES, SMALL_LOG
    wire.start("r1")
    wire.flow(3.0)
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"1")
    wire.start("r2", "r1")
    wire.exchange("r2", "r1")
    wire.pull("r2", "r1")
    wire.crash("r1")


def test_a_joiner_does_not_wait_for_one_that_answered_and_then_died(wire: Wire) -> None:
    left_half_way(wire)
    wire.flow(2.0)
    assert wire.state("r2") == "joining"
    wire.flow(1.5)
    assert wire.state("r2") == "serving"


def test_a_joiner_does_not_wait_for_an_incarnation_that_is_over(wire: Wire) -> None:
    left_half_way(wire)
    wire.start("r1", "r2")
    wire.flow(1.2)
    assert (wire.state("r2"), wire.state("r1")) == ("serving", "serving")


def test_when_all_restart_at_once_nobody_waits_for_ever(wire: Wire) -> None:
    start_three(wire)
    wire.issue("r1", "x", b"1")
    wire.flow()
    names = ("r1", "r2", "r3")
    for name in names:
        wire.crash(name)
    replicas = [wire.start(name, *names) for name in names]
    wire.flow(1.0)
    assert [replica.state for replica in replicas] == ["serving"] * 3


def test_one_that_was_called_before_it_listened_is_called_again_as_soon_as_it_talks(wire: Wire) -> None:
    """Not when the timer says: nobody waits that long where all start one after another."""
    wire.settings = ReplicationSettings(sync_interval_s=30.0, down_after_s=90.0)
    names = ("r1", "r2", "r3")
    for name in names:
        wire.start(name, *names)
        wire.flow(0.4)
    assert [wire.state(name) for name in names] == ["serving"] * 3


def test_one_that_cannot_be_called_and_talks_is_called_again_once_and_then_by_the_timer(wire: Wire) -> None:
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


def test_a_call_that_is_answered_at_last_is_not_followed_by_another_at_once(wire: Wire) -> None:
    r1 = wire.start("r1", "r2")
    wire.flow(0.5)
    wire.start("r2", "r1")
    wire.exchange("r1", "r2")
    assert r1.due_at(address("r2"), wire.now("r1")) > wire.now("r1").mono_s


def test_where_nobody_answers_a_replica_serves_alone_within_down_after_and_not_at_once(wire: Wire) -> None:
    wire.start("r1", "r2", "r3")
    wire.flow(1.5)
    assert wire.state("r1") == "joining"
    wire.flow(1.5)
    assert wire.state("r1") == "serving"


def test_a_replica_without_seeds_serves_at_once(wire: Wire) -> None:
    assert wire.start("r1").state == "serving"
    assert wire.start("r2", "r2").state == "serving"


def test_a_joiner_has_what_a_cut_off_member_alone_has_when_that_member_answers(wire: Wire) -> None:
    """Only r2 has it, r2 sees the joiner and nobody else does."""
    start_three(wire)
    wire.isolate("r2")
    wire.issue("r2", "x", b"1")
    wire.crash("r3")
    wire.start("r3", "r1", "r2")
    wire.cuts -= {("r2", "r3"), ("r3", "r2")}
    wire.flow(1.0)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "x") == [b"1"]
