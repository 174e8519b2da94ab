"""When a missing dependency counts as lost. The rules have the numbers of replication/loss.py."""

from __future__ import annotations

import pytest

from replication.messages import Exchange, decode, encode
from replication.settings import ReplicationSettings
from store.errors import DependenciesMissing
from store.versions import Update
from tests.support.wire import Wire, address, start_three


def lose_an_update(wire: Wire) -> Update:
    """Let r3 die with an update that no other replica has, and restart empty. Return the update."""
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(1.5)
    return update


def test_an_update_is_lost_once_all_members_have_reported(wire: Wire) -> None:
    update = lose_an_update(wire)
    token = wire["r1"].loss.fetch(update.past)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.flow()
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_lost_updates_are_a_range_of_the_missing_counters(wire: Wire) -> None:
    start_three(wire)
    wire.issue("r3", "x", b"1")
    wire.flow()
    wire.isolate("r3")
    wire.issue("r3", "x", b"2")
    update = wire.issue("r3", "x", b"3")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(1.5)
    token = wire["r1"].loss.fetch(update.past)
    wire.flow()
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (2, 3)}


def test_an_entry_that_is_no_replica_id_is_never_lost(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    token = r1.loss.fetch({"nonsense": 3})
    wire.flow()
    assert r1.loss.unrecoverable({"nonsense": 3}, token) == {}


def test_rule_1_an_unknown_address_may_be_a_live_replica(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    unknown = {"r9:80@0000000000000001": 1}
    token = r1.loss.fetch(unknown)
    wire.flow(5.0)
    assert r1.loss.unrecoverable(unknown, token) == {}


def test_rule_1_a_higher_incarnation_of_a_removed_address_may_be_alive(wire: Wire) -> None:
    r1, _, r3 = start_three(wire)
    past = {r3.id: 1}
    later = {address("r3") + "@" + "7" * 16: 1}
    wire.crash("r3")
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(5.0)
    token = r1.loss.fetch({**past, **later})
    wire.flow(2.0)
    assert r1.loss.unrecoverable(past, token) == {r3.id: (1, 1)}
    assert r1.loss.unrecoverable(later, token) == {}


def test_rule_1_the_present_incarnation_of_a_member_may_return_with_the_update(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].loss.fetch(update.past)
    wire.flow(10.0)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}


def test_rule_1_a_removed_replica_has_ended(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    token = wire["r1"].loss.fetch(update.past)
    wire.flow(1.5)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}, "its last heartbeat is recent"
    wire.flow(3.0)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_a_removed_replica_may_still_hand_over_its_own_updates(wire: Wire) -> None:
    """r2 reports that it lacks the update, and receives it from the removed r3 afterwards (simulation, seed 201152)."""
    start_three(wire)
    wire.cut("r1", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.round_trip("r1", "r2")
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].loss.fetch(update.past)
    wire.round_trip("r1", "r2")
    wire.round_trip("r3", "r2")
    wire.tick(0.1)
    assert wire.has("r2", update.dot)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.flow(1.5)
    assert wire.has("r1", update.dot)


def test_rule_2_a_removed_replica_may_still_hand_over_updates_of_others(wire: Wire) -> None:
    """All members have restarted empty. Only the removed r3 has r2's update (simulation, seed 402413)."""
    start_three(wire)
    update = wire.issue("r2", "x", b"1")
    wire.flow()
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    assert wire.state("r3") == "removed"
    wire.crash("r1")
    wire.crash("r2")
    wire.start("r1", "r2", "r3")
    wire.start("r2", "r1")
    wire.cut("r2", "r3")
    wire.round_trip("r1", "r3")
    for _ in range(3):
        wire.exchange("r1", "r2")
    token = wire["r1"].loss.fetch(update.past)
    wire.exchange("r1", "r2")
    wire.tick(0.1)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.flow(5.0)
    assert wire.has("r1", update.dot)
    assert wire.has("r2", update.dot)


def test_rule_2_a_member_that_joins_has_not_reported(wire: Wire) -> None:
    """Nobody but r0 has its update. r1 removed r0 without ever meeting it, and r2 starts with r0 as a seed."""
    wire.start("r0")
    wire.start("r1")
    wire.flow(0.5)
    update = wire.issue("r0", "x", b"1")
    wire.cut("r0", "r1")
    wire["r1"].remove_replica_from_view(address("r0"), wire.now("r1"))
    wire.tick(5.0)
    wire.start("r2", "r1", "r0")
    wire.round_trip("r2", "r1")
    token = wire["r1"].loss.fetch(update.past)
    wire.round_trip("r1", "r2")
    assert wire.state("r2") == "joining"
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.flow(1.0)
    assert wire.has("r1", update.dot)


def test_rule_2_a_removed_replica_without_further_updates_is_not_waited_for(wire: Wire) -> None:
    """Its process may live for weeks, and members may crash in that time."""
    start_three(wire)
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.0)
    wire.isolate("r2")
    update = wire.issue("r2", "x", b"1")
    wire.crash("r2")
    wire.cuts.clear()
    wire.start("r2", "r1")
    wire.flow(1.5)
    token = wire["r1"].loss.fetch(update.past)
    wire.flow(2.0)
    assert wire.state("r3") == "removed"
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_members_report_heartbeats_of_a_removed_replica(wire: Wire) -> None:
    """r1 cannot reach the removed r3. r2 receives r3's messages, and reports its heartbeats while r3 lives."""
    start_three(wire)
    wire.cut("r1", "r3")
    wire.cuts.add(("r2", "r3"))
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    unknown = {wire["r3"].id: 99}
    token = wire["r1"].loss.fetch(unknown)
    for _ in range(20):
        wire.flow(0.5)
        assert wire["r1"].loss.unrecoverable(unknown, token) == {}
    wire.crash("r3")
    wire.flow(5.0)
    assert wire["r1"].loss.unrecoverable(unknown, token) == {
        wire["r1"].membership.table.present_id(address("r3")): (1, 99)
    }


def test_rule_2_reports_older_than_the_silence_of_removed_replicas_do_not_count(wire: Wire) -> None:
    """r2 reports, then receives the update from r3. Then r3 dies, and r1 cannot reach r2."""
    start_three(wire)
    wire.cut("r1", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].loss.fetch(update.past)
    wire.round_trip("r1", "r2")
    wire.round_trip("r1", "r2")
    wire.round_trip("r3", "r2")
    wire.crash("r3")
    wire.cut("r1", "r2")
    wire.flow(5.0)
    assert wire.has("r2", update.dot)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.heal()
    wire.flow(2.0)
    assert wire.has("r1", update.dot)


def test_rule_2_a_down_member_may_have_the_update_until_it_is_removed(wire: Wire) -> None:
    update = lose_an_update(wire)
    wire.crash("r2")
    wire.flow(5.0)
    token = wire["r1"].loss.fetch(update.past)
    wire.flow(5.0)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(1.5)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_older_than_the_query_do_not_count(wire: Wire) -> None:
    update = lose_an_update(wire)
    wire.flow(2.0)
    token = wire["r1"].loss.fetch(update.past)
    wire.exchange("r1", "r2")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.exchange("r1", "r3")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_an_exchange_in_flight_at_the_time_of_the_query_does_not_count(wire: Wire) -> None:
    """The member may have composed its reply before it received the update."""
    update = lose_an_update(wire)
    in_flight = wire.begin("r1", "r2")
    reply = wire.answer("r2", in_flight.message)
    token = wire["r1"].loss.fetch(update.past)
    wire.exchange("r1", "r3")
    wire.complete("r1", in_flight, reply)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.exchange("r1", "r2")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_under_another_membership_table_do_not_count(wire: Wire) -> None:
    """r2 may not know yet that r3 has ended, and may still accept the update from it."""
    update = lose_an_update(wire)
    token = wire["r1"].loss.fetch(update.past)
    wire.exchange("r1", "r2")
    wire["r1"].add_replica_from_view(address("r9"), wire.now("r1"))
    wire["r1"].remove_replica_from_view(address("r9"), wire.now("r1"))
    wire.exchange("r1", "r3")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.exchange("r1", "r2")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_of_an_earlier_incarnation_do_not_count(wire: Wire) -> None:
    update = lose_an_update(wire)
    token = wire["r1"].loss.fetch(update.past)
    wire.flow()
    wire.crash("r2")
    wire.start("r2", "r3")
    wire.cut("r1", "r2")
    wire.flow(1.5)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}


def test_a_replica_that_was_removed_and_restarts_brings_lost_updates_back(wire: Wire) -> None:
    """r3 is cut off, and an operator removes r1 and r2 at it. r2 restarts unheard, and receives what r1 has."""
    _, _, r3 = start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r1", "x", b"1")
    for name in ("r1", "r2"):
        r3.remove_replica_from_view(address(name), wire.now("r3"))
    wire.crash("r2")
    wire.start("r2", "r1")
    wire.flow(4.0)
    token = r3.loss.fetch(update.past)
    wire.flow(1.0)
    assert r3.loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}, "as the operator said"
    wire.heal()
    r3.add_replica_from_view(address("r2"), wire.now("r3"))
    wire.flow(4.0)
    assert wire.has("r3", update.dot)
    assert wire.values("r3", "x") == [b"1"]


def test_rule_2_a_seed_that_never_answered_may_have_the_update_until_it_is_removed(wire: Wire) -> None:
    wire.start("r2")
    wire.crash("r2")
    r1 = wire.start("r1", "r2", "r9")
    wire.start("r2", "r1")
    wire.flow(5.0)
    assert wire.state("r1") == "serving"
    past = {address("r2") + "@0000000000000001": 1}
    token = r1.loss.fetch(past)
    wire.flow(2.0)
    assert r1.loss.unrecoverable(past, token) == {}
    r1.remove_replica_from_view(address("r9"), wire.now("r1"))
    wire.flow(5.0)
    assert r1.loss.unrecoverable(past, token) == {address("r2") + "@0000000000000001": (1, 1)}


def test_rule_3_an_update_that_a_member_has_is_not_lost(wire: Wire) -> None:
    start_three(wire)
    wire.cut("r1", "r3")
    update = wire.issue("r3", "x", b"1")
    wire.flow()  # r2 has it.
    wire.cut("r1", "r2")
    wire.crash("r3")
    wire.start("r3", "r1")
    wire.cuts = {("r2", "r3"), ("r3", "r2")}
    wire.flow(0.2)
    r1 = wire["r1"]
    r1.store.log.drop_origin(update.origin)
    if wire.has("r1", update.dot):
        pytest.fail("wrong setup: r1 has the update already")
    token = r1.loss.fetch(update.past)
    for name in ("r2", "r3"):
        wire.round_trip("r1", name)
    assert r1.loss.unrecoverable(update.past, token) == {}


def test_rule_4_a_pending_update_of_a_member_is_not_lost(wire: Wire) -> None:
    """r3's update is pending at r2: it waits for an update of r4, which is down but a member."""
    wire.cluster("r1", "r2", "r3", "r4")
    wire.isolate("r1")
    wire.isolate("r4")
    cause = wire.issue("r4", "c", b"1")
    wire["r3"].store.receive([cause], wire.now("r3"))
    effect = wire.issue("r3", "x", b"1", cause.past)
    wire["r2"].store.receive([effect], wire.now("r2"))
    assert len(wire["r2"].store.pending) == 1
    wire.crash("r3")
    wire.heal()
    wire.cuts = {pair for name in ("r1", "r2", "r3") for pair in ((name, "r4"), ("r4", name))}
    wire.start("r3", "r1")
    wire.flow(5.0)
    r1 = wire["r1"]
    r1.remove_replica_from_view(address("r4"), wire.now("r1"))
    r1.add_replica_from_view(address("r4"), wire.now("r1"))
    token = r1.loss.fetch(effect.past)
    wire.flow(3.0)
    assert r1.loss.unrecoverable({effect.origin: 1}, token) == {}
    wire.heal()
    wire.flow(3.0)
    assert wire.values("r1", "x") == [b"1"]


def test_a_pending_update_that_waits_for_a_lost_one_is_dropped(wire: Wire) -> None:
    """r2's update is pending at r1. It waits for an update that died with r3, and its own origin has ended too."""
    start_three(wire)
    wire.isolate("r3")
    cause = wire.issue("r3", "x", b"1")
    wire["r2"].store.receive([cause], wire.now("r2"))
    effect = wire.issue("r2", "y", b"1", cause.past)
    wire["r1"].store.receive([effect], wire.now("r1"))
    assert [item.update.dot for item in wire["r1"].store.pending] == [effect.dot]
    for name in ("r2", "r3"):
        wire.crash(name)
    wire.heal()
    for name in ("r2", "r3"):
        wire.start(name, "r1")
    wire.flow(6.0)
    assert len(wire["r1"].store.pending) == 0
    assert wire.values("r1", "y") == []


def test_a_request_is_deferred_while_its_dependency_is_not_known_to_be_lost(wire: Wire) -> None:
    update = lose_an_update(wire)
    with pytest.raises(DependenciesMissing) as error:
        wire.get("r1", "x", update.past)
    assert error.value.missing == {update.origin: (0, 1)}


def test_the_repetition_of_a_request_that_does_not_wait_learns_of_the_loss(wire: Wire) -> None:
    """Contract 2.8 with KV_DEFER_TIMEOUT=0: reports since its first query count for its second one."""
    update = lose_an_update(wire)
    wire.flow(1.5)
    r1 = wire["r1"]
    assert r1.loss.unrecoverable(update.past, r1.loss.fetch_for_retry(update.past)) == {}
    wire.flow(2.0)
    assert r1.loss.unrecoverable(update.past, r1.loss.fetch(update.past)) == {}
    assert r1.loss.unrecoverable(update.past, r1.loss.fetch_for_retry(update.past)) == {update.origin: (1, 1)}
    wire.flow(20.0)
    assert r1.loss.unrecoverable(update.past, r1.loss.fetch_for_retry(update.past)) == {}


def test_rule_4_updates_of_a_message_that_is_applied_in_chunks_count_as_pending(wire: Wire) -> None:
    """r3 sends r2 a long message and dies. r2 reports to r1 between two chunks of it (simulation, seed 1037)."""
    wire.settings = ReplicationSettings(pace_s=0.0, chunk_updates=1)
    r1, r2, _ = start_three(wire)
    wire.isolate("r3")
    update = [wire.issue("r3", "x", b"%d" % number) for number in range(3)][-1]
    message = decode(encode(wire.begin("r3", "r2").message), Exchange)
    conversation = r2.receive(message, wire.now("r2"))
    next(conversation)
    assert wire.values("r2", "x") == [b"0"], "the first chunk of three is applied"
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1", "r2")
    wire.flow(1.0)
    tokens = r1.loss.fetch(update.past), r2.loss.fetch(update.past)
    wire.flow(1.0)
    assert r1.loss.unrecoverable(update.past, tokens[0]) == {}
    assert r2.loss.unrecoverable(update.past, tokens[1]) == {}
    conversation.send(wire.now("r2"))
    with pytest.raises(StopIteration):
        conversation.send(wire.now("r2"))
    wire.flow(2.5)
    assert wire.values("r1", "x") == [b"2"]
