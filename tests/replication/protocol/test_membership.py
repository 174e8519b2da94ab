"""Who belongs, who is reachable, and by which name."""

from __future__ import annotations

import pytest

from replication.messages import Exchange
from replication.recovery import NOT_IN_VIEW
from store.errors import NotServing
from tests.support.wire import Wire, address, start_three


def test_a_removed_replica_closes_its_gate_and_still_hands_over_what_only_it_has(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    assert r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.heal()
    wire.flow(2.5)
    assert wire.state("r3") == "removed"
    with pytest.raises(NotServing) as refused:
        wire.get("r3", "x")
    assert refused.value.reason == NOT_IN_VIEW
    assert wire.has("r1", update.dot)
    assert wire.has("r2", update.dot)


def test_a_removed_replica_learns_of_it_at_once_where_it_can_be_reached(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.flow(1.0)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow()
    assert wire.state("r3") == "removed"


def test_put_opens_the_gate_again_with_the_same_data_and_counters(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    first = wire.issue("r3", "x", b"1")
    wire.flow()
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    assert r1.add_replica_from_view(address("r3"), wire.now("r1"))
    assert not r1.add_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    assert wire.state("r3") == "serving"
    second = wire.issue("r3", "x", b"2")
    assert second.dot == (first.origin, 2)


def test_a_removed_replica_that_starts_again_is_in_again_even_under_a_clock_far_behind(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r3")
    wire.start("r3", "r1", skew_s=-7200.0)
    wire.flow(1.5)
    assert wire.state("r3") == "serving"
    assert wire["r2"].membership.table.members == (address("r1"), address("r2"), address("r3"))


@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_a_late_message_of_a_dead_incarnation_that_nobody_knows_does_not_silence_the_one_that_lives(
    wire: Wire, after_s: float
) -> None:
    """All have died, and the clock that the incarnations come from went back. (Simulation, seed 803.)"""
    wire.cluster("r1", "r2")
    late = wire.begin("r1", "r2").message
    assert isinstance(late, Exchange)
    assert late.membership is None, "the r2 that it was meant for has the same"
    for name in ("r1", "r2"):
        wire.crash(name)
    wire.start("r1", "r2", skew_s=-7200.0)
    wire.start("r2", "r1")
    wire.flow(after_s)
    reply = wire.answer("r2", late)
    assert isinstance(reply, Exchange)
    assert not reply.accepted
    wire.flow(2.5)
    assert wire["r1"].id < late.sender
    wire.issue("r1", "x", b"1")
    wire.issue("r2", "y", b"2")
    wire.flow()
    assert wire.values("r2", "x") == [b"1"]
    assert wire.values("r1", "y") == [b"2"]


def test_an_incarnation_that_left_its_register_out_is_taken_once_it_has_told_it(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    stale = wire.begin("r1", "r2")
    assert isinstance(stale.message, Exchange)
    assert stale.message.membership is None
    wire.crash("r2")
    r2 = wire.start("r2", "r1")
    assert r2.add_replica_from_view(address("r1"), wire.now("r2")), "by command, which tells of no incarnation"
    reply = wire.answer("r2", stale.message)
    assert isinstance(reply, Exchange)
    assert not reply.accepted
    wire.complete("r1", stale, reply)
    assert wire["r1"].due_at(address("r2"), wire.now("r1")) <= wire.now("r1").mono_s, "at once"
    _, reply = wire.exchange("r1", "r2")
    assert reply.accepted
    assert r2.membership.table.present_id(address("r1")) == r1.id


def test_starting_brings_in_oneself_and_no_other_that_was_put_out(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r2")
    wire.start("r2", "r1", "r3")
    wire.flow(5.0)
    assert r1.membership.table.members == wire["r2"].membership.table.members == (address("r1"), address("r2"))


def test_a_removal_under_a_slow_clock_still_follows_what_it_removes(wire: Wire) -> None:
    wire.start("r1", "r2", skew_s=-3600.0)
    wire.start("r2", "r1")
    wire.flow(0.5)
    assert wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(1.5)
    assert wire.state("r2") == "removed"


def test_the_last_holder_of_the_data_gives_it_although_it_was_removed(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    for number in range(5):
        wire.issue("r1", f"k{number}", b"1")
    wire.flow(1.5)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    for name in ("r1", "r2"):
        wire.crash(name)
    for name in ("r1", "r2"):
        wire.start(name, "r1", "r2", "r3")
    wire.flow(2.0)
    assert [wire[name].state for name in ("r1", "r2", "r3")] == ["serving", "serving", "removed"]
    assert len(wire["r1"].store.table) == len(wire["r2"].store.table) == 5


def test_a_removed_replica_brings_its_data_to_members_that_came_back_empty_and_do_not_ask_it(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    update = wire.issue("r1", "x", b"1")
    wire.flow(1.5)
    r1.remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r1")
    wire.start("r1")
    wire.flow(2.5)
    assert wire.has("r1", update.dot)


def test_unshared_counts_what_would_die_with_the_replica(wire: Wire) -> None:
    _, _, r3 = start_three(wire)
    assert r3.acks.unreplicated() == 0
    wire.isolate("r3")
    wire.issue("r3", "x", b"1")
    wire.issue("r3", "y", b"1")
    assert r3.acks.unreplicated() == 2
    wire.heal()
    wire.exchange("r3", "r2")
    assert r3.acks.unreplicated() == 0


def test_unshared_of_one_that_leaves_is_not_zero_before_a_member_knows_that_it_left(wire: Wire) -> None:
    _, r2, r3 = start_three(wire)
    wire.isolate("r3")
    r3.leave(wire.now("r3"))
    assert wire.state("r3") == "leaving"
    assert r3.store.not_serving_reason == NOT_IN_VIEW
    assert r3.acks.unreplicated() == 1
    wire.heal()
    wire.flow()
    assert r3.acks.unreplicated() == 0
    assert r2.membership.table.members == (address("r1"), address("r2"))


def test_unshared_without_any_member_is_nothing_to_wait_for(wire: Wire) -> None:
    r1 = wire.start("r1")
    wire.issue("r1", "x", b"1")
    assert r1.acks.unreplicated() == 0


def test_unshared_where_no_member_can_be_reached_is_everything(wire: Wire) -> None:
    """Other members belong, but none of the present incarnations has talked."""
    r1 = wire.start("r1")
    r1.add_replica_from_view(address("r2"), wire.now("r1"))
    wire.issue("r1", "x", b"1")
    assert r1.acks.unreplicated() == 1


def test_a_member_that_was_put_in_before_it_started_joins_when_it_starts(wire: Wire) -> None:
    r1 = wire.start("r1")
    wire.issue("r1", "x", b"1")
    r1.add_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(5.0)
    assert r1.membership.live(wire.now("r1").mono_s) == [address("r1")]
    wire.start("r2")
    wire.flow(2.0)
    assert r1.membership.live(wire.now("r1").mono_s) == [address("r1"), address("r2")]
    assert wire.values("r2", "x") == [b"1"]


# -- reachability --------------------------------------------------------------------------------------------------


def live(wire: Wire, at: str) -> list[str]:
    return [entry.removesuffix(":80") for entry in wire[at].membership.live(wire.now(at).mono_s)]


def test_a_replica_that_stops_answering_leaves_every_view_within_down_after_and_belongs_still(wire: Wire) -> None:
    start_three(wire)
    wire.flow(2.0)
    wire.crash("r3")
    wire.flow(wire.settings.down_after_s)
    assert live(wire, "r1") == live(wire, "r2") == ["r1", "r2"]
    assert wire["r1"].membership.table.belongs(address("r3"))


def test_a_healed_partition_mends_itself_within_down_after_with_all_data_both_ways(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r3")
    wire.flow(10.0)
    assert live(wire, "r1") == ["r1", "r2"]
    assert live(wire, "r3") == ["r3"]
    wire.issue("r1", "x", b"1")
    wire.issue("r3", "y", b"1")
    wire.heal()
    wire.flow(wire.settings.down_after_s)
    for name in ("r1", "r2", "r3"):
        assert live(wire, name) == ["r1", "r2", "r3"]
        assert wire.values(name, "x") == wire.values(name, "y") == [b"1"]


def test_a_replica_that_is_heard_of_through_others_is_alive(wire: Wire) -> None:
    start_three(wire)
    wire.cut("r1", "r3")
    wire.flow(10.0)
    assert live(wire, "r1") == live(wire, "r3") == ["r1", "r2", "r3"]


def test_hearsay_does_not_keep_a_dead_replica_alive(wire: Wire) -> None:
    wire.cluster("r1", "r2", "r3", "r4")
    wire.cut("r1", "r4")
    wire.flow(3.0)
    wire.crash("r4")
    wire.flow(wire.settings.down_after_s)
    assert live(wire, "r1") == live(wire, "r2") == live(wire, "r3") == ["r1", "r2", "r3"]


# -- aliases -------------------------------------------------------------------------------------------------------


def test_a_seed_that_is_an_alias_is_asked_under_its_own_name_from_then_on(wire: Wire) -> None:
    wire.aliases["alias:80"] = "r1"
    wire.start("r1")
    wire.issue("r1", "x", b"1")
    r2 = wire.start("r2", "alias")
    wire.flow(1.0)
    assert wire.state("r2") == "serving"
    assert r2.membership.table.members == (address("r1"), address("r2"))
    assert "alias:80" not in r2.targets(wire.now("r2"))


def test_a_seed_that_is_an_alias_of_oneself_is_no_peer(wire: Wire) -> None:
    wire.aliases["alias:80"] = "r1"
    r1 = wire.start("r1", "alias")
    wire.flow(0.5)
    assert wire.state("r1") == "serving"
    assert list(r1.targets(wire.now("r1"))) == []


def test_an_alias_that_was_put_stands_for_the_name_that_the_replica_has(wire: Wire) -> None:
    wire.aliases["alias:80"] = "r2"
    r1 = wire.start("r1")
    wire.start("r2")
    r1.add_replica_from_view("alias:80", wire.now("r1"))
    wire.flow(2.0)
    for name in ("r1", "r2"):
        assert wire[name].membership.table.members == (address("r1"), address("r2"))
    assert not r1.add_replica_from_view("alias:80", wire.now("r1"))
    assert r1.remove_replica_from_view("alias:80", wire.now("r1"))
    wire.flow(1.5)
    assert wire.state("r2") == "removed"


def test_an_alias_that_somebody_else_put_is_set_right_for_all(wire: Wire) -> None:
    wire.aliases["alias:80"] = "r2"
    start_three(wire)
    wire["r3"].add_replica_from_view("alias:80", wire.now("r3"))
    wire.flow(3.0)
    for name in ("r1", "r2", "r3"):
        assert wire[name].membership.table.members == tuple(address(other) for other in ("r1", "r2", "r3"))
