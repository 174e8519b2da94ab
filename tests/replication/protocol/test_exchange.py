"""What replicas send each other and when, one rule a test, on a wire that the test drives by hand."""

from __future__ import annotations

import pytest
from msgspec import Raw

from replication.errors import BadMessage
from replication.messages import Exchange, MembershipEntry
from replication.settings import ReplicationSettings
from store.clock import Clock, address_of, covers
from store.errors import DependenciesMissing
from store.versions import Change, Update, Write, encode_update
from tests.support.wire import Wire, address, run, start_three

# -- broadcast, relay, batches -----------------------------------------------------------------------------------


def test_a_write_after_a_pause_leaves_at_once_and_those_after_it_wait_for_company(wire: Wire) -> None:
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


def paced_for_s(wire: Wire, takes_s: float) -> float:
    """Return how long a write waits that comes right after one of many exchanges, each of which takes ``takes_s``."""
    r1 = wire["r1"]
    for _ in range(40):
        outgoing = wire.begin("r1", "r2")
        begun_at_s, began_s = wire.now_s, wire.now("r1").mono_s
        reply = wire.answer("r2", outgoing.message)
        wire.now_s += takes_s
        wire.complete("r1", outgoing, reply)
    wire.now_s = begun_at_s + 1e-6  # As if the write had come right after the last one began.
    wire.issue("r1", "x", b"1")
    return r1.due_at(address("r2"), wire.now("r1")) - began_s


PACED = ReplicationSettings(pace_s=0.004, pace_round_trips=2.0, pace_times_late=50.0, max_pace_s=0.02)


@pytest.mark.parametrize(("takes_s", "pace_s"), [(0.001, 0.004), (0.003, 0.006), (0.5, 0.02)])
def test_exchanges_are_the_further_apart_the_longer_they_take_within_bounds(
    wire: Wire, takes_s: float, pace_s: float
) -> None:
    wire.settings = PACED
    wire.cluster("r1", "r2")
    assert paced_for_s(wire, takes_s) == pytest.approx(pace_s, rel=0.01)


def test_exchanges_are_the_further_apart_the_later_threads_wake(wire: Wire) -> None:
    wire.settings = PACED
    r1, _ = wire.cluster("r1", "r2")
    for _ in range(20):
        r1.pacing.record_wakeup(0.0003, wire.now("r1").mono_s)
    assert paced_for_s(wire, 0.001) == pytest.approx(0.015, rel=0.01)


def test_a_write_goes_to_every_live_peer_at_once(wire: Wire) -> None:
    start_three(wire)
    before = wire.round_trips
    wire.issue("r1", "x", b"1")
    wire.flow()
    assert wire.values("r2", "x") == wire.values("r3", "x") == [b"1"]
    assert wire.round_trips - before == 2


def test_idle_replicas_exchange_once_a_sync_interval_and_pair(wire: Wire) -> None:
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


def test_in_a_ring_in_which_nobody_sees_everybody_all_is_replicated(wire: Wire) -> None:
    names = ["r1", "r2", "r3", "r4", "r5"]
    wire.cluster(*names)
    neighbours = {(names[i], names[(i + 1) % 5]) for i in range(5)}
    wire.cuts = {(a, b) for a in names for b in names if (a, b) not in neighbours and (b, a) not in neighbours}
    for name in names:
        wire.issue(name, name, b"1")
    wire.flow(2 * (wire.settings.sync_interval_s + 1.0))
    assert all(wire.values(at, key) == [b"1"] for at in names for key in names)
    assert all(len(wire[name].membership.live(wire.now(name).mono_s)) == 5 for name in names)


def test_a_replica_that_wants_everything_gets_updates_of_third_replicas_at_once(wire: Wire) -> None:
    start_three(wire)
    wire.cut("r1", "r3")
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    wire["r3"].loss.ask(update.past)
    wire["r3"].peers.at(address("r2")).urgent = True
    request, reply = wire.exchange("r3", "r2")
    assert request.want_all
    assert reply.updates == [update]


def test_a_deferral_asks_the_present_origin_and_who_is_known_to_have_it(wire: Wire) -> None:
    wire.cluster("r1", "r2", "r3", "r4")
    wire.isolate("r3")
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    wire.heal()
    wire["r3"].peers.at(address("r2")).acked.acknowledge(update.past)
    wire["r3"].loss.ask(update.past)
    urgent = {name for name in ("r1", "r2", "r4") if wire["r3"].peers.at(address(name)).urgent}
    assert urgent == {"r1", "r2"}
    wire.flow()
    assert wire.has("r3", update.dot)


def test_a_deferral_for_an_incarnation_that_is_over_asks_everybody(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(0.5)
    wire["r1"].loss.ask(update.past)
    assert all(wire["r1"].peers.at(address(name)).urgent for name in ("r2", "r3"))


def test_a_lost_reply_costs_only_a_second_sending(wire: Wire) -> None:
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


def test_a_failed_peer_is_asked_again_only_by_the_timer(wire: Wire) -> None:
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


def test_what_a_limit_cuts_off_follows_at_once(wire: Wire) -> None:
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


def test_a_cut_batch_that_brings_nothing_forward_does_not_make_two_replicas_talk_without_end(wire: Wire) -> None:
    """What r1 sends waits at r2 for something that r1 does not have: sending it again at once would not help."""
    wire.settings = ReplicationSettings(pace_s=0.0, batch_updates=2)
    r1, _ = wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    ghost = {address("r9") + "@" + "0" * 15 + "1": 1}
    for number in range(7):
        r1.store.receive([Update("old@0000000000000001", number + 1, 1, ghost, ())], wire.now("r1"))
    assert len(r1.store.pending) == 7
    wire.heal()
    wire.flow(3.0)


def test_updates_arrive_with_their_causes_whatever_the_limit(wire: Wire) -> None:
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


def test_what_one_exchange_is_carrying_is_not_sent_again_in_the_reply_to_another(wire: Wire) -> None:
    _r1, _ = wire.cluster("r1", "r2")
    update = wire.issue("r1", "x", b"1")
    outgoing = wire.begin("r1", "r2")
    assert isinstance(outgoing.message, Exchange)
    assert outgoing.message.updates == [update]
    assert wire.exchange("r2", "r1")[1].updates == []
    wire.complete("r1", outgoing, None)  # The first one never came through after all.
    assert wire.exchange("r2", "r1")[1].updates == [update]


def test_only_one_exchange_is_under_way_with_a_peer(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    outgoing = wire.begin("r1", "r2")
    assert r1.due_at(address("r2"), wire.now("r1")) == float("inf")
    assert r1.begin(address("r2"), wire.now("r1")) is None
    wire.send("r1", outgoing)
    assert r1.due_at(address("r2"), wire.now("r1")) < float("inf")


def test_the_log_forgets_what_every_member_has_and_keeps_what_a_down_one_lacks(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wire.issue("r1", "x", b"1")
    wire.flow(1.5)
    assert r1.store.log.count == 0
    wire.crash("r3")
    wire.flow(10.0)
    wire.issue("r1", "x", b"2")
    wire.flow(2.0)
    assert r1.store.log.count == 1


def test_hybrid_time_travels_so_a_slow_replica_writes_after_what_it_has_heard_of(wire: Wire) -> None:
    wire.start("r1", "r2", skew_s=3600.0)
    wire.start("r2", "r1")
    wire.flow(0.5)
    first = wire.issue("r1", "x", b"fast")
    wire.cut("r1", "r2")
    wire.heal()
    wire.exchange("r1", "r2")
    second = wire.issue("r2", "y", b"slow")
    assert second.timestamp > first.timestamp


# -- acknowledgements ----------------------------------------------------------------------------------------------


def test_acks_count_members_that_are_known_to_have_it_and_die_with_their_incarnation(wire: Wire) -> None:
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


def test_majority_and_all_count_members_that_are_down_and_none_that_was_put_out(wire: Wire) -> None:
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
    """Return what r2 would say to r1 now, changed."""
    outgoing = wire.begin("r2", "r1").message
    assert isinstance(outgoing, Exchange)
    fields = {name: getattr(outgoing, name) for name in outgoing.__struct_fields__}
    return Exchange(**{**fields, **changes})


def test_a_clock_that_names_updates_never_issued_is_refused(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    with pytest.raises(BadMessage):
        run(r1.receive(message(wire, clock={r1.id: 1}), wire.now("r1")), wire.now("r1"))


def test_an_own_update_that_was_never_issued_is_refused_and_leaves_no_trace(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    forged = Update(r1.id, 1, 1, {}, (Write("x", b"1"),))
    with pytest.raises(BadMessage):
        run(r1.receive(message(wire, batch=[Raw(encode_update(forged))]), wire.now("r1")), wire.now("r1"))
    assert r1.store.clock == {}
    assert wire.values("r1", "x") == []


def test_a_register_beyond_the_limit_is_refused_whole(wire: Wire) -> None:
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


def test_two_writes_of_one_key_in_an_update_are_refused(wire: Wire) -> None:
    r1, r2 = wire.cluster("r1", "r2")
    twice = Update(r2.id, 1, 1, {}, (Write("x", b"1"), Write("x", b"2")))
    with pytest.raises(BadMessage):
        run(r1.receive(message(wire, batch=[Raw(encode_update(twice))]), wire.now("r1")), wire.now("r1"))
    assert r1.store.clock == {}


# -- clients -------------------------------------------------------------------------------------------------------


def test_a_client_that_hops_meets_what_it_wrote_or_waits(wire: Wire) -> None:
    start_three(wire)
    wire.isolate("r2")
    wrote = wire.put("r1", "x", b"1")
    with pytest.raises(DependenciesMissing):
        wire.get("r2", "x", wrote.metadata)
    wire.heal()
    wire["r2"].loss.ask(wrote.metadata)
    wire.flow()
    assert [version.value for version in wire.get("r2", "x", wrote.metadata).versions] == [b"1"]


def test_a_client_is_never_made_to_depend_on_everything_that_a_replica_has_seen(wire: Wire) -> None:
    start_three(wire)
    old = wire.put("r1", "old", b"1")
    for number in range(50):
        wire.put("r2", f"busy{number}", b"1")
        wire.put("r1", f"busy{number}", b"1")
    wire.flow()
    assert wire.get("r3", "old").metadata == old.metadata


def test_a_write_concern_is_met_by_the_reply_that_brings_the_clock(wire: Wire) -> None:
    r1, _, _ = start_three(wire)
    wrote = r1.store.put(Change("x", b"1"), {}, wire.now("r1"))
    assert wrote.update is not None
    wire.flow()
    assert r1.acks.count(wrote.update.dot) == r1.acks.required("all")


def test_ids_are_addresses_with_an_incarnation(wire: Wire) -> None:
    r1 = wire.start("r1")
    assert address_of(r1.id) == address("r1")
    assert len(r1.id.rpartition("@")[2]) == 16
