"""A process that ends by itself removes only itself, whatever clocks say, and hands over what it has."""

from __future__ import annotations

import pytest

from replication.messages import LEAVE_MARK, MembershipEntry
from store.clock import incarnation_of
from tests.support.removals import FORGETFUL, churn, lost, past_range, remove
from tests.support.wire import Wire, address, start_three

LEFT = pytest.mark.parametrize("left", [("r3",), ("r3", "r4")])
"""Two that start together tell each other that they belong."""


def start_alone(wire: Wire, *names: str, skew_s: float = 0.0) -> None:
    """Start processes that reach each other and nobody else, and let them serve."""
    for name in names:
        wire.start(name, "r1", "r2", "r3", "r4", skew_s=skew_s)
    wire.cuts |= {(a, b) for a in wire.processes for b in wire.processes if (a in names) != (b in names)}
    wire.flow(20.0)
    assert {wire.state(name) for name in names} == {"serving"}


def restart_alone(wire: Wire, *names: str, skew_s: float = 0.0) -> None:
    """End processes as SIGTERM does, and start the next ones alone."""
    for name in names:
        wire[name].leave(wire.now(name))
    wire.flow(2.0)
    for name in names:
        assert wire[name].acks.unreplicated() == 0
        wire.crash(name)
    start_alone(wire, *names, skew_s=skew_s)


def lead(wire: Wire, name: str, by_s: float) -> None:
    """Let the wall clock of a replica jump ahead, and the hybrid time of all others with it."""
    wire.processes[name].skew_s += by_s
    wire.issue(name, "lead", b"1")
    wire.flow(2.0)


def check_that_they_belong_again(wire: Wire) -> None:
    """Write at r3, which is cut off, heal the network, and check that r1 to r4 are members and have the write."""
    update = wire.issue("r3", "x", b"1")
    assert lost(wire, "r1", update.past) == {}, "the removal does not cover it"
    wire.heal()
    wire.flow(5.0)
    names = ("r1", "r2", "r3", "r4")
    assert {wire.state(name) for name in names} == {"serving"}
    assert {wire[name].membership.table.members for name in names} == {tuple(map(address, names))}
    assert {wire[name].membership.table.digest for name in names} == {wire["r1"].membership.table.digest}
    assert wire.has("r1", update.dot)


@LEFT
@pytest.mark.parametrize("ahead_s", [0.0, 120.0])
def test_processes_that_left_and_started_cut_off_belong_again_however_far_hybrid_time_is_ahead(
    wire: Wire, left: tuple[str, ...], ahead_s: float
) -> None:
    wire.cluster("r1", "r2", "r3", "r4")
    lead(wire, "r2", ahead_s)
    restart_alone(wire, *left)
    check_that_they_belong_again(wire)


@LEFT
def test_processes_that_were_added_by_command_and_left_and_started_cut_off_belong_again(
    wire: Wire, left: tuple[str, ...]
) -> None:
    """Their entries have a stamp of hybrid time, which is ahead of the clocks with which the next ones start."""
    wire.cluster("r1", "r2", "r3", "r4")
    lead(wire, "r2", 120.0)
    for name in left:
        assert remove(wire, name, "r1")
        wire.flow(1.0)
        assert wire["r1"].add_replica_from_view(address(name), wire.now("r1"))
        wire.flow(1.0)
    restart_alone(wire, *left)
    check_that_they_belong_again(wire)


@LEFT
def test_processes_that_left_and_started_cut_off_with_their_clocks_set_back_belong_again(
    wire: Wire, left: tuple[str, ...]
) -> None:
    wire.cluster("r1", "r2", "r3", "r4")
    restart_alone(wire, *left, skew_s=-3600.0)
    wire.heal()
    wire.flow(5.0)
    assert {wire.state(name) for name in left} == {"serving"}


def test_a_process_that_left_while_its_clock_was_hours_ahead_is_followed_by_one_that_belongs(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.start("r3", "r1", "r2", skew_s=20 * 3600)
    wire.flow(2.0)
    restart_alone(wire, "r3")
    wire.heal()
    wire.flow(3.0)
    assert wire.state("r3") == "serving"


def test_after_a_process_left_a_command_removes_the_next_one_that_it_has_not_heard_of(wire: Wire) -> None:
    start_three(wire)
    restart_alone(wire, "r3")
    remove(wire, "r3", "r1")
    wire.flow(1.0)
    lead(wire, "r1", 600.0)
    wire.heal()
    wire.flow(3.0)
    assert wire.state("r3") == "removed"


def test_a_command_that_knows_less_than_a_process_that_left_still_covers_the_next_one(wire: Wire) -> None:
    """r1 is cut off from the others, whose hybrid time is ahead. It does not know that r3 left and started again."""
    start_three(wire)
    wire.isolate("r1")
    lead(wire, "r2", 600.0)
    wire["r3"].leave(wire.now("r3"))
    wire.flow(1.0)
    wire.crash("r3")
    start_alone(wire, "r3")
    update = wire.issue("r3", "x", b"1")
    remove(wire, "r3", "r1")
    wire.heal()
    wire.flow(3.0)
    assert wire.state("r3") == "removed"
    assert wire.has("r1", update.dot)
    assert wire["r1"].membership.table.members == (address("r1"), address("r2"))


def test_clients_of_a_process_that_a_command_removed_are_served_also_after_it_has_left() -> None:
    """An unknown process at r3 had its clock ahead. The next one there is removed by command, and then leaves."""
    wire = Wire()
    start_three(wire)
    wire.crash("r3")
    start_alone(wire, "r3", skew_s=60.0)
    past = wire.issue("r3", "x", b"1").past
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1", "r2")
    wire.flow(120.0, step_s=1.0)
    remove(wire, "r3", "r1")
    wire.flow(1.0)
    assert lost(wire, "r1", past) == past_range(past)
    wire["r3"].leave(wire.now("r3"))
    wire.flow(1.0)
    wire.crash("r3")
    assert lost(wire, "r1", past) == past_range(past)


def test_a_process_that_was_removed_stays_out_when_a_later_one_at_its_address_leaves(wire: Wire) -> None:
    start_three(wire)
    wire.flow(3.0)
    remove(wire, "r3", "r1")
    wire.flow(1.0)
    assert wire.state("r3") == "removed"
    wire.isolate("r3")
    wire.aliases[address("r3")] = "next"
    wire.start("next", "r1", "r2", at=address("r3"))
    wire.cut("r3", "next")
    wire.flow(5.0)
    assert wire.state("next") == "serving"
    wire["next"].leave(wire.now("next"))
    wire.flow(1.0)
    wire.crash("next")
    del wire.aliases[address("r3")]
    wire.heal()
    wire.flow(5.0)
    assert wire.state("r3") == "removed"


def test_a_process_that_has_lost_its_address_does_not_return_while_it_drains(wire: Wire) -> None:
    start_three(wire)
    wire["r3"].membership.duplicate_check.is_lost = True
    wire["r3"].leave(wire.now("r3"))
    wire["r1"].membership.table.entries[address("r3")] = MembershipEntry(
        incarnation_of(wire["r3"].id), wire["r1"].store.hybrid_clock.read(wire.now("r1")) | LEAVE_MARK, belongs=False
    )
    wire["r1"].membership.table.merge({}, 1)  # It derives the rest anew.
    wire.flow(3.0)
    assert not wire["r1"].membership.table.belongs(address("r3"))
    assert not wire["r3"].membership.table.belongs(address("r3"))


def test_a_process_that_leaves_takes_no_other_one_at_its_address_with_it(wire: Wire) -> None:
    """The next process starts while the one before it still drains, and the two do not reach each other."""
    start_three(wire)
    wire.flow(5.0)
    wire["r3"].leave(wire.now("r3"))
    wire.flow(0.3)
    wire.aliases[address("r3")] = "next"
    wire.start("next", "r1", "r2", at=address("r3"))
    wire.cut("r3", "next")
    wire.flow(4.0)
    wire.crash("r3")
    wire.flow(20.0)
    assert wire.state("next") == "serving"
    assert wire["r1"].membership.table.present_id(address("r3")) == wire["next"].id


def test_a_replica_that_leaves_hands_over_its_updates_although_its_removal_is_forgotten() -> None:
    """r3 is removed and forgotten while it is cut off with an update. Then it leaves, and the network heals."""
    wire = Wire(settings=FORGETFUL)
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    remove(wire, "r3", "r1")
    churn(wire, "r1", 6)
    wire.flow(5.0)
    wire["r3"].leave(wire.now("r3"))
    # Others have forgotten this removal, too: it is below their horizon.
    wire["r1"].membership.table.horizon = wire["r1"].store.hybrid_clock.read(wire.now("r1")) + 1_000_000
    wire.heal()
    wire.flow(3.0)
    assert wire.state("r3") == "leaving"
    assert wire.has("r1", update.dot)
    assert wire["r3"].acks.unreplicated() == 0
    assert wire["r1"].membership.table.entries[address("r3")].has_left
