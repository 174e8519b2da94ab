"""Messages that are well-formed and false: no message breaks a replica until its restart (contract 6).

A forged request names another replica as its sender. Its claims may hold until the next exchange with that replica.
"""

from __future__ import annotations

from typing import Any

import pytest

from replication.messages import Exchange, LastHeard, MembershipEntry
from replication.replica import Replica
from replication.view_changes import new_incarnation
from store.clock import incarnation_of, replica_id
from tests.support.wire import Wire, address, start_three

HIGHEST = 2**63 - 1


def forge(wire: Wire, receiver: str, **fields: Any) -> None:
    """Let ``receiver`` take a request that no replica has sent."""
    message = {"heartbeat": 1, "time": 0, "membership_digest": 0, "clock": {}, "retired_digest": 0, "state": "serving"}
    wire.answer(receiver, Exchange(**{**message, **fields}))


def higher_incarnation(wire: Wire, of: Replica) -> int:
    """Return an incarnation above that of ``of``, as a process that started now has."""
    return new_incarnation(incarnation_of(of.id), wire.rng, wire.now("r2"))


def assert_works(wire: Wire) -> None:
    """Require that three replicas serve, see each other, and exchange what clients write."""
    names = ("r1", "r2", "r3")
    assert not wire.stopped
    for name in names:
        assert wire.state(name) == "serving"
        assert wire[name].membership.live(wire.now(name).mono_s) == [address(other) for other in names]
    updates = [wire.issue(name, f"of {name}", b"1") for name in names]
    wire.flow(0.3)
    for name in names:
        assert all(wire.has(name, update.dot) for update in updates)
        assert wire[name].acks.count(updates[0].dot) == 3 or name != "r1"


# -- two processes under one address ---------------------------------------------------------------------------------


def test_no_message_stops_a_replica(wire: Wire) -> None:
    """Forged messages name a higher incarnation of r1 as their sender, and as heard of, all the time."""
    r1, r2, _ = start_three(wire)
    forged = higher_incarnation(wire, r1)
    for n in range(100):
        assert not wire.stopped
        higher = replica_id(address("r1"), forged + n)
        forge(wire, "r1", sender=higher)
        forge(wire, "r1", sender=r2.id, heartbeat=10**6 + n, heard={higher: LastHeard(n, 0)})
        wire.flow(0.1)
    wire.flow(4.0)
    assert address("r1") not in r1.targets(wire.now("r1"))
    assert_works(wire)


def test_a_forged_incarnation_that_others_relay_keeps_a_replica_out_for_seconds_only(wire: Wire) -> None:
    """r2 and r3 believe that a higher incarnation of r1 is alive. r1 asks its own address, and raises its own."""
    r1, _, _ = start_three(wire)
    wire.flow(5.0)
    before, incarnation = r1.id, higher_incarnation(wire, r1)
    entry = MembershipEntry(incarnation, wire.now("r2").wall_us, belongs=True)
    for n in range(100):
        sender = replica_id(address("r1"), incarnation)
        forge(wire, "r2", sender=sender, heartbeat=n, membership={address("r1"): entry})
        wire.flow(0.1)
    assert r1.id > before
    assert wire["r2"].membership.table.present_id(address("r1")) == r1.id
    assert_works(wire)


def test_the_own_address_is_asked_at_most_once_per_sync_interval(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    higher = replica_id(address("r1"), higher_incarnation(wire, r1))
    wire.aliases[address("r1")] = "nobody"
    for _ in range(100):
        forge(wire, "r1", sender=higher)
        wire.flow(0.1)
    assert 1 <= wire.traffic["r1", "r1"] <= 11
    wire.aliases.clear()
    wire.flow(7.0)
    assert address("r1") not in r1.targets(wire.now("r1"))
    assert_works(wire)


def test_another_replica_at_the_own_address_is_no_duplicate_and_no_alias(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.aliases[address("r1")] = "r2"
    forge(wire, "r1", sender=replica_id(address("r1"), higher_incarnation(wire, r1)))
    wire.round_trip("r1", "r1")
    assert r1.membership.table.belongs(address("r1"))
    assert address("r1") not in r1.membership.aliases
    wire.aliases.clear()
    wire.flow(7.0)
    assert_works(wire)


# -- acknowledgements and signs of life ------------------------------------------------------------------------------


def test_a_forged_acknowledgement_holds_updates_back_until_the_next_exchange_only(wire: Wire) -> None:
    r1, r2 = wire.cluster("r1", "r2")
    wire.isolate("r1")
    update = wire.issue("r1", "x", b"1")
    wire.flow(0.1)
    forge(wire, "r1", sender=r2.id, heartbeat=10**6, clock=update.past, retired_digest=1)
    assert r1.acks.count(update.dot) == 2, "this test is pointless if the forged message does not count"
    wire.heal()
    wire.flow(2.5)
    assert wire.has("r2", update.dot)
    assert r1.acks.count(update.dot) == 2


def test_an_acknowledgement_that_comes_while_a_request_is_in_flight_is_kept(wire: Wire) -> None:
    """The reply is composed before the peer receives the update, and arrives after the peer has acknowledged it."""
    r1, _ = wire.cluster("r1", "r2")
    outgoing = wire.begin("r1", "r2")
    reply = wire.answer("r2", outgoing.message)
    update = wire.issue("r1", "x", b"1")
    wire.exchange("r2", "r1")
    wire.exchange("r2", "r1")
    assert r1.acks.count(update.dot) == 2
    wire.complete("r1", outgoing, reply)
    assert r1.acks.count(update.dot) == 2


@pytest.mark.parametrize("how", ["sender", "heard"])
def test_a_forged_heartbeat_makes_no_replica_look_down(wire: Wire, how: str) -> None:
    _, r2, r3 = start_three(wire)
    for name in ("r1", "r3"):
        if how == "sender":
            forge(wire, name, sender=r2.id, heartbeat=HIGHEST)
        else:
            forge(wire, name, sender=r3.id if name == "r1" else wire["r1"].id, heard={r2.id: LastHeard(HIGHEST, 0)})
    wire.flow(8.0)
    assert_works(wire)


# -- the membership table --------------------------------------------------------------------------------------------


def test_entries_as_far_ahead_as_is_allowed_leave_all_replicas_working(wire: Wire) -> None:
    """The clocks of the replicas differ by seconds, so what one of them just accepts, another one just rejects."""
    wire.rejected = []
    wire.start("r1", "r2", "r3", skew_s=1.0)
    wire.start("r2", "r1", "r3")
    wire.start("r3", "r1", "r2", skew_s=-1.0)
    wire.flow(1.0)
    latest_us = wire.now("r1").wall_us + 86_400 * 10**6
    for victim in ("r1", "r2", "r3"):
        entry = MembershipEntry(latest_us // 1000 << 21, latest_us, belongs=True)
        sender = replica_id("x:1", 1)
        forge(wire, "r1", sender=sender, time=latest_us, membership={address(victim): entry})
    wire.flow(8.0)
    assert_works(wire)
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(5.0)
    assert wire.state("r3") == "removed"


def test_a_hybrid_time_as_far_ahead_as_is_allowed_leaves_all_replicas_working(wire: Wire) -> None:
    wire.rejected = []
    wire.start("r1", "r2", "r3", skew_s=1.0)
    r2 = wire.start("r2", "r1", "r3")
    wire.start("r3", "r1", "r2", skew_s=-1.0)
    wire.flow(1.0)
    forge(wire, "r1", sender=r2.id, heartbeat=10**6, time=wire.now("r1").wall_us + 86_400 * 10**6)
    wire.flow(8.0)
    assert_works(wire)
