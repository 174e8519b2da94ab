"""Removal and addition, reachability, and aliases."""

from __future__ import annotations

import pytest

from replication.messages import Exchange
from replication.recovery import NOT_IN_VIEW
from store.errors import NotServing
from tests.support.wire import Wire, address, start_three


def test_a_removed_replica_closes_its_gate_and_still_hands_over_its_updates(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    assert r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.heal()
    wire.flow(2.5)
    assert wire.state("r3") == "removed"
    with pytest.raises(NotServing) as error:
        wire.get("r3", "x")
    assert error.value.reason == NOT_IN_VIEW
    assert wire.has("r1", update.dot)
    assert wire.has("r2", update.dot)


def test_a_reachable_replica_is_notified_of_its_removal_at_once(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.flow(1.0)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow()
    assert wire.state("r3") == "removed"


def test_a_replica_that_is_added_back_keeps_its_data_and_counters(wire: Wire) -> None:
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


def test_a_removed_replica_that_restarts_is_a_member_again_even_with_a_slow_clock(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r3")
    wire.start("r3", "r1", skew_s=-7200.0)
    wire.flow(1.5)
    assert wire.state("r3") == "serving"
    assert wire["r2"].membership.table.members == (address("r1"), address("r2"), address("r3"))


@pytest.mark.parametrize("after_s", [0.0, 0.3])
def test_a_late_message_of_an_unknown_dead_incarnation_does_not_exclude_the_live_one(
    wire: Wire, after_s: float
) -> None:
    """All processes restart, and r1's clock was set back: its new incarnation is lower (simulation, seed 803)."""
    wire.cluster("r1", "r2")
    late = wire.begin("r1", "r2").message
    assert isinstance(late, Exchange)
    assert late.membership is None, "the r2 of that time has the same table"
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


def test_an_unknown_incarnation_is_accepted_once_it_has_sent_its_membership_table(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    early = wire.begin("r1", "r2")
    assert isinstance(early.message, Exchange)
    assert early.message.membership is None
    wire.crash("r2")
    r2 = wire.start("r2", "r1")
    assert r2.add_replica_from_view(address("r1"), wire.now("r2")), "PUT /view names no incarnation"
    reply = wire.answer("r2", early.message)
    assert isinstance(reply, Exchange)
    assert not reply.accepted
    wire.complete("r1", early, reply)
    assert wire["r1"].due_at(address("r2"), wire.now("r1")) <= wire.now("r1").mono_s, "at once"
    _, reply = wire.exchange("r1", "r2")
    assert reply.accepted
    assert r2.membership.table.present_id(address("r1")) == r1.id


def test_a_starting_replica_does_not_add_a_removed_seed(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r2")
    wire.start("r2", "r1", "r3")
    wire.flow(5.0)
    assert r1.membership.table.members == wire["r2"].membership.table.members == (address("r1"), address("r2"))


def test_a_removal_by_a_replica_with_a_slow_clock_takes_effect(wire: Wire) -> None:
    wire.start("r1", "r2", skew_s=-3600.0)
    wire.start("r2", "r1")
    wire.flow(0.5)
    assert wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(1.5)
    assert wire.state("r2") == "removed"


def test_a_removed_replica_with_the_only_copy_hands_it_over_when_asked(wire: Wire) -> None:
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


def test_a_removed_replica_hands_over_its_updates_to_restarted_members_unasked(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    update = wire.issue("r1", "x", b"1")
    wire.flow(1.5)
    r1.remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r1")
    wire.start("r1")
    wire.flow(2.5)
    assert wire.has("r1", update.dot)


def test_replicas_that_are_all_removed_still_exchange_messages(wire: Wire) -> None:
    """Otherwise none of them would learn that another one is added back."""
    r1, r2 = wire.cluster("r1", "r2")
    r1.remove_replica_from_view(address("r2"), wire.now("r1"))
    r1.remove_replica_from_view(address("r1"), wire.now("r1"))
    wire.flow(10.0)
    assert (wire.state("r1"), wire.state("r2")) == ("removed", "removed")
    r2.add_replica_from_view(address("r2"), wire.now("r2"))
    wire.flow(2.0)
    assert r1.membership.table.members == (address("r2"),)


def test_unreplicated_counts_the_updates_that_only_this_replica_has(wire: Wire) -> None:
    _, _, r3 = start_three(wire)
    assert r3.acks.unreplicated() == 0
    wire.isolate("r3")
    wire.issue("r3", "x", b"1")
    wire.issue("r3", "y", b"1")
    assert r3.acks.unreplicated() == 2
    wire.heal()
    wire.exchange("r3", "r2")
    assert r3.acks.unreplicated() == 0


def test_unreplicated_of_a_leaving_replica_is_not_zero_until_a_member_knows_of_it(wire: Wire) -> None:
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


def test_unreplicated_is_zero_without_other_members(wire: Wire) -> None:
    r1 = wire.start("r1")
    wire.issue("r1", "x", b"1")
    assert r1.acks.unreplicated() == 0


def test_unreplicated_counts_all_updates_if_no_member_has_answered(wire: Wire) -> None:
    """Another address belongs, but its present incarnation has not sent a message."""
    r1 = wire.start("r1")
    r1.add_replica_from_view(address("r2"), wire.now("r1"))
    wire.issue("r1", "x", b"1")
    assert r1.acks.unreplicated() == 1


def test_an_address_that_is_added_before_its_process_starts_joins_later(wire: Wire) -> None:
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
    """Return the names of the members that the replica at ``at`` counts as reachable."""
    return [entry.removesuffix(":80") for entry in wire[at].membership.live(wire.now(at).mono_s)]


def test_a_silent_replica_leaves_every_view_within_down_after_and_still_belongs(wire: Wire) -> None:
    start_three(wire)
    wire.flow(2.0)
    wire.crash("r3")
    wire.flow(wire.settings.down_after_s)
    assert live(wire, "r1") == live(wire, "r2") == ["r1", "r2"]
    assert wire["r1"].membership.table.belongs(address("r3"))


def test_a_healed_partition_exchanges_all_data_within_down_after(wire: Wire) -> None:
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


def test_a_replica_whose_heartbeats_peers_report_is_alive(wire: Wire) -> None:
    start_three(wire)
    wire.cut("r1", "r3")
    wire.flow(10.0)
    assert live(wire, "r1") == live(wire, "r3") == ["r1", "r2", "r3"]


def test_reported_heartbeats_do_not_keep_a_dead_replica_alive(wire: Wire) -> None:
    wire.cluster("r1", "r2", "r3", "r4")
    wire.cut("r1", "r4")
    wire.flow(3.0)
    wire.crash("r4")
    wire.flow(wire.settings.down_after_s)
    assert live(wire, "r1") == live(wire, "r2") == live(wire, "r3") == ["r1", "r2", "r3"]


# -- aliases -------------------------------------------------------------------------------------------------------


def test_a_seed_that_is_an_alias_is_replaced_by_the_real_address(wire: Wire) -> None:
    wire.aliases["alias:80"] = "r1"
    wire.start("r1")
    wire.issue("r1", "x", b"1")
    r2 = wire.start("r2", "alias")
    wire.flow(1.0)
    assert wire.state("r2") == "serving"
    assert r2.membership.table.members == (address("r1"), address("r2"))
    assert "alias:80" not in r2.targets(wire.now("r2"))


def test_a_seed_that_is_an_alias_of_the_replica_itself_is_no_peer(wire: Wire) -> None:
    wire.aliases["alias:80"] = "r1"
    r1 = wire.start("r1", "alias")
    wire.flow(0.5)
    assert wire.state("r1") == "serving"
    assert list(r1.targets(wire.now("r1"))) == []


def test_adding_or_removing_an_alias_adds_or_removes_the_real_address(wire: Wire) -> None:
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


def test_an_added_alias_is_replaced_by_the_real_address_at_every_member(wire: Wire) -> None:
    wire.aliases["alias:80"] = "r2"
    start_three(wire)
    wire["r3"].add_replica_from_view("alias:80", wire.now("r3"))
    wire.flow(3.0)
    for name in ("r1", "r2", "r3"):
        assert wire[name].membership.table.members == tuple(address(other) for other in ("r1", "r2", "r3"))
