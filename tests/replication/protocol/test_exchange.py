"""What replicas send each other, and when."""

from __future__ import annotations

import pytest
from msgspec import Raw

from replication.errors import BadMessage
from replication.messages import Exchange, MembershipEntry, decode, encode
from replication.replica import Conversation
from replication.settings import ReplicationSettings
from store.clock import Clock, Instant, address_of, covers
from store.errors import DependenciesMissing
from store.versions import Change, Update, Write, encode_update
from tests.support.wire import Wire, address, run, start_three

# -- broadcast, relay, batches -----------------------------------------------------------------------------------


def test_the_first_write_after_a_pause_is_sent_at_once_and_later_ones_are_batched(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.004)
    r1, _ = wire.cluster("r1", "r2")
    wire.issue("r1", "x", b"1")
    assert r1.due_at(address("r2"), wire.now("r1")) == wire.now("r1").mono_s
    began_s = wire.now("r1").mono_s
    wire.round_trip("r1", "r2")
    wire.tick(0.001)
    wire.issue("r1", "x", b"2")
    wire.issue("r1", "x", b"3")
    assert r1.due_at(address("r2"), wire.now("r1")) == pytest.approx(began_s + 0.004)
    wire.tick(0.1)
    assert r1.due_at(address("r2"), wire.now("r1")) == wire.now("r1").mono_s


def pacing_delay_s(wire: Wire, takes_s: float) -> float:
    """Return how long a write waits right after an exchange began, if exchanges take ``takes_s`` seconds."""
    r1 = wire["r1"]
    for _ in range(40):
        outgoing = wire.begin("r1", "r2")
        wire_began_s, began_s = wire.now_s, wire.now("r1").mono_s
        reply = wire.answer("r2", outgoing.message)
        wire.now_s += takes_s
        wire.complete("r1", outgoing, reply)
    wire.now_s = wire_began_s + 1e-6  # The write comes right after the last exchange began.
    wire.issue("r1", "x", b"1")
    return r1.due_at(address("r2"), wire.now("r1")) - began_s


PACED = ReplicationSettings(pace_s=0.004, pace_round_trips=2.0, pace_times_late=50.0, max_pace_s=0.02)


@pytest.mark.parametrize(("takes_s", "pace_s"), [(0.001, 0.004), (0.003, 0.006), (0.5, 0.02)])
def test_the_pace_follows_the_round_trip_time_within_bounds(wire: Wire, takes_s: float, pace_s: float) -> None:
    wire.settings = PACED
    wire.cluster("r1", "r2")
    assert pacing_delay_s(wire, takes_s) == pytest.approx(pace_s, rel=0.01)


def test_the_pace_follows_the_wakeup_delay_of_threads(wire: Wire) -> None:
    wire.settings = PACED
    r1, _ = wire.cluster("r1", "r2")
    for _ in range(20):
        r1.pacing.record_wakeup(0.0003, wire.now("r1").mono_s)
    assert pacing_delay_s(wire, 0.001) == pytest.approx(0.015, rel=0.01)


def test_known_updates_of_a_message_cost_no_pause(wire: Wire) -> None:
    """A sender that gave up on a long message sends it again. The receiver has applied it, and answers at once.

    Otherwise a receiver that takes longer for a message than senders wait would never be heard (simulation, seed 1980).
    """
    wire.settings = ReplicationSettings(pace_s=0.0, chunk_updates=1)
    _, r2 = wire.cluster("r1", "r2")
    for number in range(5):
        wire.issue("r1", "x", b"%d" % number)
    message = decode(encode(wire.begin("r1", "r2").message), Exchange)
    pauses = [count_pauses(r2.receive(message, wire.now("r2")), wire.now("r2")) for _ in range(2)]
    assert pauses == [4, 0]


def count_pauses(conversation: Conversation[object], now: Instant) -> int:
    """Run a conversation to its end; return how often it paused."""
    pauses = 0
    try:
        next(conversation)
        while True:
            pauses += 1
            conversation.send(now)
    except StopIteration:
        return pauses


def test_a_write_is_sent_to_every_live_peer_at_once(wire: Wire) -> None:
    start_three(wire)
    before = wire.round_trips
    wire.issue("r1", "x", b"1")
    wire.flow()
    assert wire.values("r2", "x") == wire.values("r3", "x") == [b"1"]
    assert wire.round_trips - before == 2


def test_an_idle_pair_exchanges_once_per_sync_interval(wire: Wire) -> None:
    start_three(wire)
    wire.flow(2.0)
    before = wire.round_trips
    wire.flow(10.0)
    assert 60 <= wire.round_trips - before <= 66


def test_an_update_of_a_third_replica_is_relayed_only_after_a_sync_interval(wire: Wire) -> None:
    start_three(wire)
    wire.cut("r1", "r3")
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    request, _reply = wire.exchange("r2", "r3")
    assert request.updates == []
    assert wire.exchange("r3", "r2")[1].updates == []
    wire.tick(1.01)
    assert wire.exchange("r2", "r3")[0].updates == [update]
    assert wire.values("r3", "x") == [b"1"]


def test_updates_reach_every_replica_in_a_ring_of_connections(wire: Wire) -> None:
    names = ["r1", "r2", "r3", "r4", "r5"]
    wire.cluster(*names)
    neighbours = {(names[i], names[(i + 1) % 5]) for i in range(5)}
    wire.cuts = {(a, b) for a in names for b in names if (a, b) not in neighbours and (b, a) not in neighbours}
    for name in names:
        wire.issue(name, name, b"1")
    wire.flow(2 * (wire.settings.sync_interval_s + 1.0))
    assert all(wire.values(at, key) == [b"1"] for at in names for key in names)
    assert all(len(wire[name].membership.live(wire.now(name).mono_s)) == 5 for name in names)


def test_want_all_gets_updates_of_third_replicas_at_once(wire: Wire) -> None:
    start_three(wire)
    wire.cut("r1", "r3")
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    wire["r3"].loss.fetch(update.past)
    wire["r3"].peers.at(address("r2")).urgent = True
    request, reply = wire.exchange("r3", "r2")
    assert request.want_all
    assert reply.updates == [update]


def test_a_missing_update_is_requested_from_its_origin_and_from_known_holders(wire: Wire) -> None:
    wire.cluster("r1", "r2", "r3", "r4")
    wire.isolate("r3")
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    wire.heal()
    wire["r3"].peers.at(address("r2")).acked.acknowledge(update.past)
    wire["r3"].loss.fetch(update.past)
    urgent = {name for name in ("r1", "r2", "r4") if wire["r3"].peers.at(address(name)).urgent}
    assert urgent == {"r1", "r2"}
    wire.flow()
    assert wire.has("r3", update.dot)


def test_a_missing_update_of_an_ended_incarnation_is_requested_from_all_members(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(0.5)
    wire["r1"].loss.fetch(update.past)
    assert all(wire["r1"].peers.at(address(name)).urgent for name in ("r2", "r3"))


def test_after_a_lost_reply_an_update_is_sent_again_and_applied_once(wire: Wire) -> None:
    r1, r2, _ = start_three(wire)
    update = wire.issue("r1", "x", b"1")
    wire.round_trip("r1", "r2", lose="reply")
    assert wire.has("r2", update.dot)
    assert r1.acks.count(update.dot) == 1
    assert wire.exchange("r1", "r2")[0].updates == [update]
    assert r1.acks.count(update.dot) == 2
    assert r2.store.applied_count == 1


def test_a_lost_request_is_sent_again_by_the_timer(wire: Wire) -> None:
    start_three(wire)
    update = wire.issue("r1", "x", b"1")
    wire.round_trip("r1", "r2", lose="request")
    wire.flow(1.1)
    assert wire.has("r2", update.dot)


def test_after_a_failure_only_the_timer_sends_to_a_peer(wire: Wire) -> None:
    start_three(wire)
    wire.crash("r3")
    wire.flow(1.5)
    wire.issue("r1", "x", b"1")
    wire.flow()
    before = wire.traffic["r1", "r3"]
    for number in range(20):
        wire.issue("r1", "x", b"%d" % number)
        wire.flow(0.01, step_s=0.01)
    assert wire.traffic["r1", "r3"] - before <= 1


def test_the_rest_of_a_batch_that_a_limit_cut_is_sent_at_once(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, batch_updates=2)
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    for number in range(7):
        wire.issue("r1", f"k{number}", b"1")
    wire.heal()
    request, _ = wire.exchange("r1", "r2")
    assert len(request.updates) == 2
    assert request.more
    wire.flow()
    assert len(wire["r2"].store.table) == 7


def test_a_cut_batch_without_progress_is_not_sent_again_and_again(wire: Wire) -> None:
    """r1's updates wait at r2 for an update of r3, which r1 relays only after a sync interval."""
    wire.settings = ReplicationSettings(pace_s=0.0, batch_updates=2)
    wire.cluster("r1", "r2", "r3")
    wire.cut("r2", "r3")
    past = wire.issue("r3", "cause", b"1").past
    wire.flow()
    for number in range(7):
        past = wire.issue("r1", f"k{number}", b"1", past).past
    wire.flow()
    _, reply = wire.exchange("r2", "r1")
    assert reply.more
    assert len(wire["r2"].store.pending) == 2
    wire.flow()
    assert len(wire["r2"].store.pending) == 2
    wire.flow(3.0)
    assert covers(wire["r2"].store.clock, past)


def test_batches_are_sent_in_causal_order(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, batch_updates=1)
    wire.cluster("r1", "r2", "r3")
    wire.isolate("r3")
    past: Clock = {}
    for number in range(6):
        past = wire.issue(("r1", "r2")[number % 2], f"k{number}", b"1", past).past
        wire.flow()
    wire.tick(1.5)
    wire.heal()
    for _ in range(6):
        wire.exchange("r1", "r3")
    assert covers(wire["r3"].store.clock, past)


def test_a_reply_skips_updates_that_are_in_flight_to_the_peer(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    update = wire.issue("r1", "x", b"1")
    outgoing = wire.begin("r1", "r2")
    assert isinstance(outgoing.message, Exchange)
    assert outgoing.message.updates == [update]
    assert wire.exchange("r2", "r1")[1].updates == []
    wire.complete("r1", outgoing, None)  # The first exchange fails.
    assert wire.exchange("r2", "r1")[1].updates == [update]


def test_a_reply_carries_updates_that_are_in_flight_in_a_retried_request(wire: Wire) -> None:
    """The last request failed, so this one may fail too."""
    wire.cluster("r1", "r2")
    update = wire.issue("r1", "x", b"1")
    wire.round_trip("r1", "r2", lose="request")
    retry = wire.begin("r1", "r2")
    assert isinstance(retry.message, Exchange)
    assert retry.message.updates == [update]
    assert wire.exchange("r2", "r1")[1].updates == [update]


def test_at_most_one_exchange_is_in_flight_to_a_peer(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    outgoing = wire.begin("r1", "r2")
    assert r1.due_at(address("r2"), wire.now("r1")) == float("inf")
    assert r1.begin(address("r2"), wire.now("r1")) is None
    wire.send("r1", outgoing)
    assert r1.due_at(address("r2"), wire.now("r1")) < float("inf")


def test_the_log_keeps_an_update_until_every_member_has_it_even_a_down_one(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.issue("r1", "x", b"1")
    wire.flow(1.5)
    assert r1.store.log.count == 0
    wire.crash("r3")
    wire.flow(10.0)
    wire.issue("r1", "x", b"2")
    wire.flow(2.0)
    assert r1.store.log.count == 1


def test_messages_carry_hybrid_time_so_that_later_writes_get_later_timestamps(wire: Wire) -> None:
    wire.start("r1", "r2", skew_s=3600.0)
    wire.start("r2", "r1")
    wire.flow(0.5)
    first = wire.issue("r1", "x", b"fast")
    wire.exchange("r1", "r2")
    second = wire.issue("r2", "y", b"slow")
    assert second.timestamp > first.timestamp


# -- acknowledgements ----------------------------------------------------------------------------------------------


def test_acks_count_present_incarnations_that_have_the_update(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    update = wire.issue("r1", "x", b"1")
    assert r1.acks.count(update.dot) == 1
    wire.exchange("r1", "r2")
    assert r1.acks.count(update.dot) == 2
    wire.flow()
    assert r1.acks.count(update.dot) == 3
    wire.crash("r2")
    wire.start("r2", "r3")
    wire.cut("r2", "r1")
    wire.flow(1.5)
    assert r1.acks.count(update.dot) == 2


def test_majority_and_all_count_down_members_but_not_removed_ones(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    assert (r1.acks.required("majority"), r1.acks.required("all")) == (2, 3)
    wire.crash("r2")
    wire.crash("r3")
    wire.flow(5.0)
    assert (r1.acks.required("majority"), r1.acks.required("all")) == (2, 3)
    r1.remove_replica_from_view(address("r2"), wire.now("r1"))
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    assert (r1.acks.required("majority"), r1.acks.required("all")) == (1, 1)


# -- bad messages --------------------------------------------------------------------------------------------------


def message(wire: Wire, **changes: object) -> Exchange:
    """Return the message that r2 would send r1 now, with some fields changed."""
    outgoing = wire.begin("r2", "r1").message
    assert isinstance(outgoing, Exchange)
    fields = {name: getattr(outgoing, name) for name in outgoing.__struct_fields__}
    return Exchange(**{**fields, **changes})


def test_a_clock_with_updates_that_were_never_issued_is_rejected(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    with pytest.raises(BadMessage):
        run(r1.receive(message(wire, clock={r1.id: 1}, changes=None), wire.now("r1")), wire.now("r1"))


def test_a_forged_update_of_the_receiver_is_rejected_and_changes_nothing(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    forged = Update(r1.id, 1, 1, {}, (Write("x", b"1"),))
    with pytest.raises(BadMessage):
        run(r1.receive(message(wire, batch=[Raw(encode_update(forged))]), wire.now("r1")), wire.now("r1"))
    assert r1.store.clock == {}
    assert wire.values("r1", "x") == []


def test_a_membership_table_over_the_limit_is_rejected_as_a_whole(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, max_members=4)
    r1, _ = wire.cluster("r1", "r2")
    before = dict(r1.membership.table.entries)
    with pytest.raises(BadMessage):
        run(
            r1.receive(
                message(wire, membership={f"n{number}:80": MembershipEntry(1, 1, True) for number in range(3)}),
                wire.now("r1"),
            ),
            wire.now("r1"),
        )
    assert r1.membership.table.entries == before


def test_an_update_with_two_writes_of_one_key_is_rejected(wire: Wire) -> None:
    r1, r2 = wire.cluster("r1", "r2")
    twice = Update(r2.id, 1, 1, {}, (Write("x", b"1"), Write("x", b"2")))
    with pytest.raises(BadMessage):
        run(r1.receive(message(wire, batch=[Raw(encode_update(twice))]), wire.now("r1")), wire.now("r1"))
    assert r1.store.clock == {}


# -- clients -------------------------------------------------------------------------------------------------------


def test_a_client_that_moves_to_another_replica_reads_its_own_write_or_is_deferred(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r2")
    wrote = wire.put("r1", "x", b"1")
    with pytest.raises(DependenciesMissing):
        wire.get("r2", "x", wrote.metadata)
    wire.heal()
    wire["r2"].loss.fetch(wrote.metadata)
    wire.flow()
    assert [version.value for version in wire.get("r2", "x", wrote.metadata).versions] == [b"1"]


def test_a_read_does_not_make_a_client_depend_on_unrelated_updates(wire: Wire) -> None:
    start_three(wire)
    old = wire.put("r1", "old", b"1")
    for number in range(50):
        wire.put("r2", f"busy{number}", b"1")
        wire.put("r1", f"busy{number}", b"1")
    wire.flow()
    assert wire.get("r3", "old").metadata == old.metadata


def test_replies_to_the_exchanges_of_a_write_acknowledge_it(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wrote = r1.store.put(Change("x", b"1"), {}, wire.now("r1"))
    assert wrote.update is not None
    wire.flow()
    assert r1.acks.count(wrote.update.dot) == r1.acks.required("all")


def test_a_replica_id_is_an_address_with_an_incarnation(wire: Wire) -> None:
    r1 = wire.start("r1")
    assert address_of(r1.id) == address("r1")
    assert len(r1.id.rpartition("@")[2]) == 16
