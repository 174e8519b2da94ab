"""Counters among replicas: entries of ended processes, and deletes beside increments (store/merging.py)."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest

from replication.messages import Exchange, decode, encode
from replication.replica import Replica
from replication.settings import ReplicationSettings
from store.merging import MAX_OWN_ENTRIES, Increment, Operation, SetChange, State
from store.siblings import joined
from store.values import state_of
from store.versions import Change, Patch
from tests.support.wire import Wire, address, start_three


def patch(wire: Wire, name: str, operation: Operation) -> None:
    change = Change("n", None, patch=Patch(operation, keeps_ttl=True, max_bytes=100_000))
    wire[name].store.put(change, {}, wire.now(name))


def increment(wire: Wire, name: str, amount: int = 1) -> None:
    patch(wire, name, Increment(amount))


def state(replica: Replica) -> State:
    return joined(replica.store.table.get("n"))


def sums(wire: Wire) -> list[int]:
    return [state(process.replica).total() for process in wire.processes.values()]


def restart(wire: Wire, name: str) -> None:
    others = [other for other in wire.processes if other != name]
    wire.crash(name)
    wire.start(name, *others)
    wire.flow(1.5)
    assert wire.state(name) == "serving"


def start_with_a_mark(wire: Wire) -> None:
    """Let r3 increment and restart, and r1 mark the entry of r3's first process. All replicas have it."""
    start_three(wire)
    increment(wire, "r3", 100)
    wire.flow()
    restart(wire, "r3")
    increment(wire, "r1")
    wire.flow(1.5)
    assert [entry.fold for entry in state(wire["r1"]).entries.values()].count(None) == 1


def test_the_entry_of_an_ended_process_becomes_a_base(wire: Wire) -> None:
    start_with_a_mark(wire)
    increment(wire, "r1")
    wire.flow()
    assert [name.is_base for name in state(wire["r2"]).entries] == [False, True]
    assert sums(wire) == [102] * 3


def test_a_base_and_concurrent_increments_of_marked_entries_merge(wire: Wire) -> None:
    """r2 increments what r1 has marked, while r1 makes the base. r2 does not know yet that all have the mark."""
    start_three(wire)
    increment(wire, "r3", 100)
    wire.flow()
    restart(wire, "r3")
    increment(wire, "r1")
    wire.round_trip("r1", "r2")
    wire.round_trip("r1", "r3")
    increment(wire, "r1")
    increment(wire, "r2")
    assert any(name.is_base for name in state(wire["r1"]).entries)
    assert any(entry.fold for entry in state(wire["r2"]).entries.values())
    wire.flow(2.0)
    assert any(name.is_base for name in state(wire["r3"]).entries)
    assert sums(wire) == [103] * 3


def test_no_base_is_made_while_a_member_may_lack_the_mark(wire: Wire) -> None:
    """r2 has not received the mark, and increments the entry without it."""
    start_three(wire)
    increment(wire, "r3", 100)
    wire.flow()
    restart(wire, "r3")
    wire.isolate("r2")
    increment(wire, "r1")
    wire.flow(0.5)
    increment(wire, "r1")
    increment(wire, "r2")
    assert not any(name.is_base for name in state(wire["r1"]).entries)
    wire.heal()
    wire.flow(2.0)
    assert sums(wire) == [103] * 3


def test_nothing_is_settled_while_an_update_of_an_ended_process_is_pending(wire: Wire) -> None:
    """r2 reports that it has one: an increment that is applied later, with the sum that would be in the base."""
    start_with_a_mark(wire)
    [version] = wire["r1"].store.table.get("n")
    loss, peer = wire["r1"].loss, wire["r1"].peers.find(address("r2"))
    assert peer is not None
    assert peer.acked.report is not None
    assert loss.is_settled(version.dot)
    peer.acked.report = replace(peer.acked.report, pending={"r3:80@0000000000000001": 5})
    assert not loss.is_settled(version.dot)


def test_no_base_is_made_of_a_removed_replica_that_may_return(wire: Wire) -> None:
    """r3 is removed, increments at a client that still uses it, and is added again."""
    start_three(wire)
    increment(wire, "r3", 100)
    wire.flow()
    wire.isolate("r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    for _ in range(3):
        increment(wire, "r1")
        wire.flow(5.0)
    increment(wire, "r3")
    wire["r1"].add_replica_from_view(address("r3"), wire.now("r1"))
    wire.heal()
    wire.flow(5.0)
    assert sums(wire) == [104] * 3


def test_after_many_restarts_a_counter_has_an_entry_for_each_member_and_one_more(wire: Wire) -> None:
    """Contract 2.10: the size does not grow with restarts or operations."""
    start_three(wire)
    for n in range(30):
        name = f"r{n % 3 + 1}"
        increment(wire, name)
        wire.flow(0.5)
        restart(wire, name)
    for name in ("r1", "r2", "r3", "r1", "r2", "r3"):
        increment(wire, name)
        wire.flow(1.5)
    assert sums(wire) == [36] * 3
    assert len(state_of(wire["r1"].store.table.get("n")[0].value).entries) <= 4


def test_increments_that_two_others_keep_alive_after_a_delete_count_once(wire: Wire) -> None:
    """r2 keeps r1's first increment alive, r3 both; r1 has deleted them, and goes on from what r2 kept."""
    start_three(wire)
    increment(wire, "r1", 5)
    wire.flow()
    wire.cut("r1", "r2")
    wire.cut("r2", "r3")
    increment(wire, "r2", 1)
    increment(wire, "r1", 10)
    wire.flow()
    wire.cut("r1", "r3")
    increment(wire, "r3", 1)
    wire["r1"].store.put(Change("n", None), {}, wire.now("r1"))
    wire.heal()
    wire.cut("r1", "r3")
    wire.cut("r2", "r3")
    wire.flow(1.5)
    increment(wire, "r1", 100)
    wire.heal()
    wire.flow(2.0)
    assert sums(wire) == [5 + 10 + 100 + 1 + 1] * 3


def cross(wire: Wire, one: Operation, other: Operation) -> None:
    """r1 and r2 patch and then delete. Each receives the other's PATCH after its own delete, and not yet the delete."""
    to_r2, to_r1 = wire.begin("r1", "r2"), wire.begin("r2", "r1")
    patch(wire, "r1", one)
    patch(wire, "r2", other)
    from_r1, from_r2 = wire.answer("r1", to_r1.message), wire.answer("r2", to_r2.message)
    for name in ("r1", "r2"):
        wire[name].store.put(Change("n", None), {}, wire.now(name))
    wire.complete("r2", to_r1, from_r1)
    wire.complete("r1", to_r2, from_r2)


@pytest.mark.parametrize("restarts", [False, True])
def test_deletes_that_cross_count_no_increment_twice(wire: Wire, restarts: bool) -> None:
    wire.cluster("r1", "r2")
    increment(wire, "r2", 100)
    wire.flow(1.0)
    if restarts:
        restart(wire, "r2")
    wire.flow(5.0)
    cross(wire, Increment(1), Increment(2))
    increment(wire, "r1", 10)
    increment(wire, "r2", 20)
    wire.flow(2.0)
    assert sums(wire) == [100 + 1 + 2 + 10 + 20] * 2


@pytest.mark.parametrize("restarts", [False, True])
def test_deletes_that_cross_bring_no_removed_element_back(wire: Wire, restarts: bool) -> None:
    wire.cluster("r1", "r2")
    patch(wire, "r2", SetChange(("red",)))
    wire.flow(1.0)
    if restarts:
        restart(wire, "r2")
    wire.flow(5.0)
    cross(wire, SetChange(("a",), ("red",)), SetChange(("blue",)))
    patch(wire, "r2", SetChange(("green",)))
    patch(wire, "r1", SetChange(("x",)))
    wire.flow(2.0)
    assert "red" not in state(wire["r1"]).items


def test_an_increment_of_a_message_that_is_being_applied_counts_once(wire: Wire) -> None:
    """r3 sends r2 two updates and dies. r1 marks and folds while r2 has applied the first of them."""
    wire.settings = ReplicationSettings(pace_s=0.0, chunk_updates=1)
    _, r2, _ = start_three(wire)
    increment(wire, "r3", 100)
    wire.flow(1.0)
    wire.isolate("r3")
    wire.issue("r3", "x", b"1")
    increment(wire, "r3", 5)
    message = decode(encode(wire.begin("r3", "r2").message), Exchange)
    conversation = r2.receive(message, wire.now("r2"))
    next(conversation)
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1", "r2")
    wire.flow(1.5)
    for _ in range(2):
        increment(wire, "r1")
        wire.flow(1.5)
    with suppress(StopIteration):
        while True:
            conversation.send(wire.now("r2"))
    wire.flow(3.0)
    assert sums(wire) == [107] * 3


def test_sums_that_leave_64_bits_for_a_part_only_freeze_nothing(wire: Wire) -> None:
    """The increments of ended processes would sum up to more, but the counter itself is 0."""
    start_three(wire)
    for name in ("r1", "r2"):
        increment(wire, "r3", 9 * 10**18)
        wire.flow(1.0)
        restart(wire, "r3")
        increment(wire, name, -9 * 10**18)
        wire.flow(2.0)
    for name in ("r1", "r2", "r3"):
        increment(wire, name)
        wire.flow(2.0)
    assert sums(wire) == [3] * 3


@pytest.mark.parametrize("operation", [Increment(1), SetChange(("a",))])
def test_deletes_beside_patches_leave_a_bounded_number_of_entries(wire: Wire, operation: Operation) -> None:
    wire.cluster("r1", "r2")
    for _ in range(3 * MAX_OWN_ENTRIES):
        patch(wire, "r1", operation)
        wire.flow(1.0)
        to_r2, to_r1 = wire.begin("r1", "r2"), wire.begin("r2", "r1")
        patch(wire, "r2", operation)
        wire["r1"].store.put(Change("n", None), {}, wire.now("r1"))
        patch(wire, "r1", operation)
        wire.complete("r1", to_r2, wire.answer("r2", to_r2.message))
        wire.complete("r2", to_r1, wire.answer("r1", to_r1.message))
        wire.flow(1.5)
    assert len(state(wire["r1"]).entries) <= 2 * (MAX_OWN_ENTRIES + 1)
