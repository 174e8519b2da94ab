"""When a causal past is lost for good, rule by rule (replication/loss.py)."""

from __future__ import annotations

import pytest

from replication.messages import Exchange, decode, encode
from replication.settings import ReplicationSettings
from store.errors import DependenciesMissing
from store.versions import Update
from tests.support.wire import Wire, address, start_three


def gone(wire: Wire) -> Update:
    """Let r3 die with an update that nobody else has, and come back."""
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(1.5)
    return update


def test_what_died_with_its_replica_is_lost_once_all_members_have_compared_notes(wire: Wire) -> None:
    update = gone(wire)
    token = wire["r1"].loss.ask(update.past)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.flow()
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_lost_names_the_counters_that_are_missing_here(wire: Wire) -> None:
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
    token = wire["r1"].loss.ask(update.past)
    wire.flow()
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (2, 3)}


def test_what_is_no_id_of_a_replica_is_never_lost_but_missing(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    token = r1.loss.ask({"nonsense": 3})
    wire.flow()
    assert r1.loss.unrecoverable({"nonsense": 3}, token) == {}


def test_rule_1_the_present_incarnation_may_come_back_with_it(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].loss.ask(update.past)
    wire.flow(10.0)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}


def test_rule_1_one_that_was_put_out_is_no_present_incarnation(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    token = wire["r1"].loss.ask(update.past)
    wire.flow(1.5)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}, "it was heard of just now"
    wire.flow(3.0)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_one_that_was_put_out_hands_over_what_it_has_as_long_as_it_lives(wire: Wire) -> None:
    """Simulation, seed 201152: r2 reports that it has not got it, gets it from r3, and r1 has told a client "lost"."""
    start_three(wire)
    wire.cut("r1", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.round_trip("r1", "r2")
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].loss.ask(update.past)
    wire.round_trip("r1", "r2")
    wire.round_trip("r3", "r2")
    wire.tick(0.1)
    assert wire.has("r2", update.dot)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.flow(1.5)
    assert wire.has("r1", update.dot)


def test_rule_2_one_that_was_put_out_may_have_what_is_of_others(wire: Wire) -> None:
    """Simulation, seed 402413: all members have come back empty, and only r3, which is out, has what r2 had written."""
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
    token = wire["r1"].loss.ask(update.past)
    wire.exchange("r1", "r2")
    wire.tick(0.1)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.flow(5.0)
    assert wire.has("r1", update.dot)
    assert wire.has("r2", update.dot)


def test_rule_2_who_was_put_out_and_has_nothing_more_keeps_nobody_waiting(wire: Wire) -> None:
    """Its process may live on for weeks, and members crash meanwhile."""
    start_three(wire)
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.0)
    wire.isolate("r2")
    update = wire.issue("r2", "x", b"1")
    wire.crash("r2")
    wire.cuts.clear()
    wire.start("r2", "r1")
    wire.flow(1.5)
    token = wire["r1"].loss.ask(update.past)
    wire.flow(2.0)
    assert wire.state("r3") == "removed"
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_a_sign_of_life_of_one_that_was_put_out_may_come_from_a_member(wire: Wire) -> None:
    """r1 is cut off from r3, which is out. r2 hears it, does not get what it has, and says so until it is dead."""
    start_three(wire)
    wire.cut("r1", "r3")
    wire.cuts.add(("r2", "r3"))
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    nobodys = {wire["r3"].id: 99}
    token = wire["r1"].loss.ask(nobodys)
    for _ in range(20):
        wire.flow(0.5)
        assert wire["r1"].loss.unrecoverable(nobodys, token) == {}
    wire.crash("r3")
    wire.flow(5.0)
    assert wire["r1"].loss.unrecoverable(nobodys, token) == {
        wire["r1"].membership.table.present_id(address("r3")): (1, 99)
    }


def test_rule_2_reports_from_before_one_that_was_put_out_fell_silent_do_not_count(wire: Wire) -> None:
    """r2 has reported, then got it from r3; r3 is dead, and r1 has not heard of r2 since."""
    start_three(wire)
    wire.cut("r1", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].loss.ask(update.past)
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


def test_rule_2_a_member_that_is_down_may_have_it_until_it_is_removed(wire: Wire) -> None:
    update = gone(wire)
    wire.crash("r2")
    wire.flow(5.0)
    token = wire["r1"].loss.ask(update.past)
    wire.flow(5.0)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(1.5)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_from_before_the_question_do_not_count(wire: Wire) -> None:
    update = gone(wire)
    wire.flow(2.0)
    token = wire["r1"].loss.ask(update.past)
    wire.exchange("r1", "r2")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.exchange("r1", "r3")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_an_exchange_that_was_under_way_when_the_question_came_does_not_count(wire: Wire) -> None:
    """Its reply may be older than the moment at which the member got the update."""
    update = gone(wire)
    under_way = wire.begin("r1", "r2")
    reply = wire.answer("r2", under_way.message)
    token = wire["r1"].loss.ask(update.past)
    wire.exchange("r1", "r3")
    wire.complete("r1", under_way, reply)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.exchange("r1", "r2")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_under_another_register_do_not_count(wire: Wire) -> None:
    """r2 may not know yet that r3 is over, and still take the update from it."""
    update = gone(wire)
    token = wire["r1"].loss.ask(update.past)
    wire.exchange("r1", "r2")
    wire["r1"].add_replica_from_view(address("r9"), wire.now("r1"))
    wire["r1"].remove_replica_from_view(address("r9"), wire.now("r1"))
    wire.exchange("r1", "r3")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}
    wire.exchange("r1", "r2")
    assert wire["r1"].loss.unrecoverable(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_of_an_earlier_incarnation_do_not_count(wire: Wire) -> None:
    update = gone(wire)
    token = wire["r1"].loss.ask(update.past)
    wire.flow()
    wire.crash("r2")
    wire.start("r2", "r3")
    wire.cut("r1", "r2")
    wire.flow(1.5)
    assert wire["r1"].loss.unrecoverable(update.past, token) == {}


def test_rule_3_what_a_member_has_is_on_its_way(wire: Wire) -> None:
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
        pytest.fail("the scene is set wrongly: r1 has it already")
    token = r1.loss.ask(update.past)
    for name in ("r2", "r3"):
        wire.round_trip("r1", name)
    assert r1.loss.unrecoverable(update.past, token) == {}


def test_rule_4_what_waits_somewhere_may_still_be_applied(wire: Wire) -> None:
    """r2 holds r3's second update in its queue, waiting for the first of r4, which is down, but present."""
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
    token = r1.loss.ask(effect.past)
    wire.flow(3.0)
    assert r1.loss.unrecoverable({effect.origin: 1}, token) == {}
    wire.heal()
    wire.flow(3.0)
    assert wire.values("r1", "x") == [b"1"]


def test_a_pending_update_that_waits_for_a_lost_one_is_dropped(wire: Wire) -> None:
    """r2's second incarnation would wait for ever for what died with r3; its own origin is over too."""
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


def test_a_lost_dependency_is_deferred_until_then_and_served_after(wire: Wire) -> None:
    update = gone(wire)
    with pytest.raises(DependenciesMissing) as unreached:
        wire.get("r1", "x", update.past)
    assert unreached.value.missing == {update.origin: (0, 1)}


def test_a_request_that_may_not_wait_is_told_when_it_comes_again(wire: Wire) -> None:
    """SPEC 2.8 with KV_DEFER_TIMEOUT=0: the answers to its first question count for its second."""
    update = gone(wire)
    wire.flow(1.5)
    r1 = wire["r1"]
    assert r1.loss.unrecoverable(update.past, r1.loss.ask_again(update.past)) == {}
    wire.flow(2.0)
    assert r1.loss.unrecoverable(update.past, r1.loss.ask(update.past)) == {}
    assert r1.loss.unrecoverable(update.past, r1.loss.ask_again(update.past)) == {update.origin: (1, 1)}
    wire.flow(20.0)
    assert r1.loss.unrecoverable(update.past, r1.loss.ask_again(update.past)) == {}


def test_rule_4_updates_of_a_message_that_is_applied_in_chunks_count_as_pending(wire: Wire) -> None:
    """r3 dies after sending r2 a long message; r2 reports to r1 between two chunks of it (simulation, seed 1037)."""
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
    token = r1.loss.ask(update.past)
    wire.flow(1.0)
    assert r1.loss.unrecoverable(update.past, token) == {}
    assert r2.loss.unrecoverable(update.past, r2.loss.ask(update.past)) == {}
    conversation.send(wire.now("r2"))
    with pytest.raises(StopIteration):
        conversation.send(wire.now("r2"))
    wire.flow(2.5)
    assert wire.values("r1", "x") == [b"2"]
