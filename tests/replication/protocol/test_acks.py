"""Writes that wait for acknowledgements: whom they are expected from, and when they leave (replication/acks.py)."""

from __future__ import annotations

import pytest

from replication.messages import MembershipEntry
from replication.settings import ReplicationSettings
from store.clock import incarnation_of
from store.versions import Update
from tests.support.wire import Wire, address

PACED = ReplicationSettings(pace_s=0.004)
INFINITY = float("inf")


def await_acks(wire: Wire, name: str, required: int = 2) -> Update:
    """Write one key as a client that waits for ``required`` acks does."""
    update = wire.issue(name, "x", b"1")
    wire[name].acks.expect(update.dot, required, wire.now(name).mono_s)
    return update


def due_in_s(wire: Wire, sender: str, receiver: str) -> float:
    """Return how long ``sender`` waits before its next request to ``receiver``."""
    now = wire.now(sender)
    return round(wire[sender].due_at(address(receiver), now) - now.mono_s, 6)


def start_paced(wire: Wire, *names: str) -> None:
    """Start processes whose writes are paced, and let them exchange at a known moment.

    Of the others, the first one answers fastest, and the last one is slowest.
    """
    wire.settings = PACED
    wire.cluster(*names)
    for number, other in enumerate(names[1:]):
        wire.round_trip(names[0], other)
        wire[names[0]].peers.at(address(other)).schedule.round_trip_s = 0.001 * (1 + number)
    wire.now_s += 0.001


def test_writes_that_wait_for_acks_leave_together_as_soon_as_the_exchange_before_ends(wire: Wire) -> None:
    start_paced(wire, "r1", "r2")
    r1 = wire["r1"]
    first = await_acks(wire, "r1")
    assert due_in_s(wire, "r1", "r2") == 0
    before = wire.begin("r1", "r2")
    reply = wire.answer("r2", before.message)
    later = [wire.issue("r1", "y", b"1"), await_acks(wire, "r1"), await_acks(wire, "r1")]
    assert due_in_s(wire, "r1", "r2") == INFINITY, "one exchange at a time"
    wire.complete("r1", before, reply)
    assert r1.acks.count(first.dot) == 2
    assert due_in_s(wire, "r1", "r2") == 0
    request, _ = wire.exchange("r1", "r2")
    assert request.updates == later
    assert r1.acks.count(later[-1].dot) == 2


def test_after_a_write_that_waited_for_acks_other_writes_are_paced_again(wire: Wire) -> None:
    start_paced(wire, "r1", "r2")
    await_acks(wire, "r1")
    wire.round_trip("r1", "r2")
    wire.now_s += 0.001
    wire.issue("r1", "x", b"2")
    assert due_in_s(wire, "r1", "r2") == 0.003


@pytest.mark.parametrize(("required", "asked"), [(1, []), (2, ["r2"]), (3, ["r2", "r3"]), (4, ["r2", "r3", "r4"])])
def test_the_members_that_answer_fastest_are_asked_and_the_others_get_it_by_the_pace(
    wire: Wire, required: int, asked: list[str]
) -> None:
    start_paced(wire, "r1", "r2", "r3", "r4")
    await_acks(wire, "r1", required)
    due_s = {name: due_in_s(wire, "r1", name) for name in ("r2", "r3", "r4")}
    assert due_s == {name: 0 if name in asked else 0.003 for name in due_s}


def test_as_many_members_are_asked_as_have_to_acknowledge(wire: Wire) -> None:
    start_paced(wire, "r1", "r2", "r3", "r4")
    update = await_acks(wire, "r1", 3)
    for name in ("r2", "r3", "r4"):
        if due_in_s(wire, "r1", name) == 0:
            wire.round_trip("r1", name)
    assert wire["r1"].acks.count(update.dot) == 3


def test_more_acks_than_members_are_expected_from_all_of_them(wire: Wire) -> None:
    start_paced(wire, "r1", "r2", "r3")
    await_acks(wire, "r1", 9)
    assert [due_in_s(wire, "r1", name) for name in ("r2", "r3")] == [0, 0]


def test_a_member_that_hangs_is_not_chosen(wire: Wire) -> None:
    start_paced(wire, "r1", "r2", "r3")
    await_acks(wire, "r1")
    wire.begin("r1", "r2")
    wire["r1"].peers.at(address("r3")).schedule.paced_until_s = wire.now("r1").mono_s + 0.05
    wire.now_s += 0.0039
    await_acks(wire, "r1")
    assert due_in_s(wire, "r1", "r3") > 0, "it takes no longer than usual yet"
    wire.now_s += 0.0002
    await_acks(wire, "r1")
    assert due_in_s(wire, "r1", "r3") == 0


def test_after_a_failure_the_other_members_are_asked_at_once(wire: Wire) -> None:
    start_paced(wire, "r1", "r2", "r3")
    update = await_acks(wire, "r1")
    outgoing = wire.begin("r1", "r2")
    wire["r1"].peers.at(address("r3")).schedule.paced_until_s = wire.now("r1").mono_s + 0.05
    wire["r1"].failed(address("r2"), outgoing.serial, wire.now("r1"))
    assert due_in_s(wire, "r1", "r2") > 0, "only the timer retries"
    assert due_in_s(wire, "r1", "r3") == 0
    wire.round_trip("r1", "r3")
    assert wire["r1"].acks.count(update.dot) == 2
    await_acks(wire, "r1")
    assert due_in_s(wire, "r1", "r3") == 0, "a member that has failed is not chosen"


def test_a_failure_after_the_acks_came_asks_nobody(wire: Wire) -> None:
    start_paced(wire, "r1", "r2", "r3")
    await_acks(wire, "r1")
    wire.round_trip("r1", "r2")
    outgoing = wire.begin("r1", "r2")
    wire["r1"].failed(address("r2"), outgoing.serial, wire.now("r1"))
    assert due_in_s(wire, "r1", "r3") > 0


def test_the_choice_is_kept_and_made_again_after_a_while(wire: Wire) -> None:
    start_paced(wire, "r1", "r2", "r3")
    peers = wire["r1"].peers
    await_acks(wire, "r1")
    wire.round_trip("r1", "r2")
    wire.now_s += 0.001
    peers.at(address("r2")).schedule.round_trip_s = 0.003
    await_acks(wire, "r1")
    assert due_in_s(wire, "r1", "r2") == 0
    wire.flow(1.5)
    peers.at(address("r2")).schedule.round_trip_s, peers.at(address("r3")).schedule.round_trip_s = 0.003, 0.001
    wire.round_trip("r1", "r2")
    wire.round_trip("r1", "r3")
    peers.at(address("r2")).schedule.round_trip_s, peers.at(address("r3")).schedule.round_trip_s = 0.003, 0.001
    wire.now_s += 0.001
    await_acks(wire, "r1")
    assert [due_in_s(wire, "r1", name) == 0 for name in ("r2", "r3")] == [False, True]


def test_a_change_of_membership_makes_the_choice_again(wire: Wire) -> None:
    start_paced(wire, "r1", "r2", "r3")
    await_acks(wire, "r1")
    wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    chosen = wire["r1"].acks.expect(wire.issue("r1", "x", b"2").dot, 2, wire.now("r1").mono_s)
    assert [peer.address for peer in chosen] == [address("r3")]


def test_what_the_incarnation_before_waited_for_does_not_end_pacing(wire: Wire) -> None:
    start_paced(wire, "r1", "r2")
    r1 = wire["r1"]
    old = [await_acks(wire, "r1") for _ in range(5)]
    r1._view.merge({r1.address: MembershipEntry(incarnation_of(r1.id) + 1, 0, True)}, 0, wire.now("r1"))
    wire.round_trip("r1", "r2")
    wire.round_trip("r1", "r2")
    wire.now_s += 0.001
    assert wire.issue("r1", "x", b"2").counter == 1
    assert due_in_s(wire, "r1", "r2") == 0.003
    assert r1.acks.expect(old[-1].dot, 2, wire.now("r1").mono_s) == []
