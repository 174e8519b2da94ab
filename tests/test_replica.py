"""The protocol between replicas, one rule a test, on a wire that the test drives by hand."""

from __future__ import annotations

from random import Random

import pytest
from msgspec import Raw

from replication.errors import AddressTaken, BadMessage
from replication.messages import Entry, Exchange, SnapshotPiece, SnapshotRequest
from replication.replica import CATCHING_UP, NOT_IN_VIEW, Replica
from replication.settings import ReplicationSettings
from store.clock import Clock, address_of, covers, incarnation_of
from store.errors import NotReached, Refused
from store.settings import StoreSettings
from store.versions import Change, Update, Write, encode_update
from tests.wire import NOW, Wire, address

SMALL_LOG = StoreSettings(max_log_bytes=800)
"""Holds a few updates."""

SMALL_PIECES = ReplicationSettings(pace_s=0.0, snapshot_piece_bytes=1_500)
"""About three keys a piece."""


@pytest.fixture
def wire() -> Wire:
    return Wire()


def three(wire: Wire) -> tuple[Replica, Replica, Replica]:
    r1, r2, r3 = wire.cluster("r1", "r2", "r3")
    return r1, r2, r3


# -- broadcast, relay, batches -----------------------------------------------------------------------------------


def test_a_write_after_a_pause_leaves_at_once_and_those_after_it_wait_for_company(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.004)
    r1, _ = wire.cluster("r1", "r2")
    wire.issue("r1", "x", b"1")
    assert r1.due_at(address("r2"), wire.now("r1")) == wire.now("r1").mono_s
    began_s = wire.now("r1").mono_s
    wire.exchange("r1", "r2")
    wire.tick(0.001)
    wire.issue("r1", "x", b"2")
    wire.issue("r1", "x", b"3")
    assert r1.due_at(address("r2"), wire.now("r1")) == pytest.approx(began_s + 0.004)
    wire.tick(0.1)
    assert r1.due_at(address("r2"), wire.now("r1")) == wire.now("r1").mono_s


@pytest.mark.parametrize(("takes_s", "pace_s"), [(0.001, 0.004), (0.003, 0.009), (0.5, 0.02)])
def test_exchanges_are_the_further_apart_the_longer_they_take_within_bounds(
    wire: Wire, takes_s: float, pace_s: float
) -> None:
    wire.settings = ReplicationSettings(pace_s=0.004, pace_round_trips=3.0, max_pace_s=0.02)
    r1, _ = wire.cluster("r1", "r2")
    for _ in range(40):
        outgoing = wire.begin("r1", "r2")
        begun_at_s, began_s = wire.now_s, wire.now("r1").mono_s
        reply = wire.answer("r2", outgoing.message)
        wire.now_s += takes_s
        wire.land("r1", outgoing, reply)
    wire.now_s = begun_at_s + 1e-6  # As if a write had come right after the last one began.
    wire.issue("r1", "x", b"1")
    assert r1.due_at(address("r2"), wire.now("r1")) - began_s == pytest.approx(pace_s, rel=0.01)


def test_a_write_goes_to_every_live_peer_at_once(wire: Wire) -> None:
    three(wire)
    before = wire.trips
    wire.issue("r1", "x", b"1")
    wire.flow()
    assert wire.values("r2", "x") == wire.values("r3", "x") == [b"1"]
    assert wire.trips - before == 2


def test_idle_replicas_exchange_once_a_sync_interval_and_pair(wire: Wire) -> None:
    three(wire)
    wire.flow(2.0)
    before = wire.trips
    wire.flow(10.0)
    assert 60 <= wire.trips - before <= 66


def test_an_update_of_a_third_replica_is_relayed_only_after_a_sync_interval(wire: Wire) -> None:
    three(wire)
    wire.cut("r1", "r3")
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    request, _reply = wire.talk("r2", "r3")
    assert request.updates == []
    assert wire.talk("r3", "r2")[1].updates == []
    wire.tick(1.01)
    assert wire.talk("r2", "r3")[0].updates == [update]
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
    assert all(len(wire[name].view.live(wire.now(name).mono_s)) == 5 for name in names)


def test_a_replica_that_wants_everything_gets_updates_of_third_replicas_at_once(wire: Wire) -> None:
    three(wire)
    wire.cut("r1", "r3")
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    wire["r3"].ask(update.past)
    wire["r3"]._peer(address("r2")).urgent = True
    request, reply = wire.talk("r3", "r2")
    assert request.want
    assert reply.updates == [update]


def test_a_deferral_asks_the_present_origin_and_who_is_known_to_have_it(wire: Wire) -> None:
    wire.cluster("r1", "r2", "r3", "r4")
    wire.isolate("r3")
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    wire.heal()
    wire["r3"]._peer(address("r2")).acknowledge(update.past)
    wire["r3"].ask(update.past)
    urgent = {name for name in ("r1", "r2", "r4") if wire["r3"]._peer(address(name)).urgent}
    assert urgent == {"r1", "r2"}
    wire.flow()
    assert wire.has("r3", update.dot)


def test_a_deferral_for_an_incarnation_that_is_over_asks_everybody(wire: Wire) -> None:
    three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(0.5)
    wire["r1"].ask(update.past)
    assert all(wire["r1"]._peer(address(name)).urgent for name in ("r2", "r3"))


def test_a_lost_reply_costs_only_a_second_sending(wire: Wire) -> None:
    r1, r2, _ = three(wire)
    update = wire.issue("r1", "x", b"1")
    wire.exchange("r1", "r2", lose="reply")
    assert wire.has("r2", update.dot)
    assert r1.acks(update.dot) == 1
    assert wire.talk("r1", "r2")[0].updates == [update]
    assert r1.acks(update.dot) == 2
    assert r2.store.applied == 1


def test_a_lost_request_is_sent_again_by_the_timer(wire: Wire) -> None:
    three(wire)
    update = wire.issue("r1", "x", b"1")
    wire.exchange("r1", "r2", lose="request")
    wire.flow(1.1)
    assert wire.has("r2", update.dot)


def test_a_failed_peer_is_asked_again_only_by_the_timer(wire: Wire) -> None:
    three(wire)
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
    request, _ = wire.talk("r1", "r2")
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
        wire.talk("r1", "r3")
    assert covers(wire["r3"].store.clock, past)


def test_what_one_exchange_is_carrying_is_not_sent_again_in_the_reply_to_another(wire: Wire) -> None:
    _r1, _ = wire.cluster("r1", "r2")
    update = wire.issue("r1", "x", b"1")
    outgoing = wire.begin("r1", "r2")
    assert isinstance(outgoing.message, Exchange)
    assert outgoing.message.updates == [update]
    assert wire.talk("r2", "r1")[1].updates == []
    wire.land("r1", outgoing, None)  # The first one never came through after all.
    assert wire.talk("r2", "r1")[1].updates == [update]


def test_only_one_exchange_is_under_way_with_a_peer(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    outgoing = wire.begin("r1", "r2")
    assert r1.due_at(address("r2"), wire.now("r1")) == float("inf")
    assert r1.begin(address("r2"), wire.now("r1")) is None
    wire.carry("r1", outgoing)
    assert r1.due_at(address("r2"), wire.now("r1")) < float("inf")


def test_the_log_forgets_what_every_member_has_and_keeps_what_a_down_one_lacks(wire: Wire) -> None:
    r1, _, _ = three(wire)
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
    wire.talk("r1", "r2")
    second = wire.issue("r2", "y", b"slow")
    assert second.timestamp > first.timestamp


# -- acknowledgements ----------------------------------------------------------------------------------------------


def test_acks_count_members_that_are_known_to_have_it_and_die_with_their_incarnation(wire: Wire) -> None:
    r1, _, _ = three(wire)
    update = wire.issue("r1", "x", b"1")
    assert r1.acks(update.dot) == 1
    wire.talk("r1", "r2")
    assert r1.acks(update.dot) == 2
    wire.flow()
    assert r1.acks(update.dot) == 3
    wire.crash("r2")
    wire.start("r2", "r3")
    wire.cut("r2", "r1")
    wire.flow(1.5)
    assert r1.acks(update.dot) == 2


def test_majority_and_all_count_members_that_are_down_and_none_that_was_put_out(wire: Wire) -> None:
    r1, _, _ = three(wire)
    assert (r1.acks_wanted("majority"), r1.acks_wanted("all")) == (2, 3)
    wire.crash("r2")
    wire.crash("r3")
    wire.flow(5.0)
    assert (r1.acks_wanted("majority"), r1.acks_wanted("all")) == (2, 3)
    r1.remove_replica_from_view(address("r2"), wire.now("r1"))
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    assert (r1.acks_wanted("majority"), r1.acks_wanted("all")) == (1, 1)


# -- snapshots -----------------------------------------------------------------------------------------------------


def behind(wire: Wire, keys: int = 12) -> None:
    """Let r1 write so much while r2 is cut off that its log no longer reaches back to r2."""
    wire.settings = SMALL_PIECES
    wire.store_settings = SMALL_LOG
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    for number in range(keys):
        wire.issue("r1", f"k{number:02}", b"%d" % number)
    wire.heal()


def test_a_peer_behind_the_log_is_offered_a_snapshot_and_pulls_it(wire: Wire) -> None:
    behind(wire)
    request, _ = wire.talk("r1", "r2")
    assert request.truncated
    wire.flow()
    assert wire["r2"].store.clock == wire["r1"].store.clock
    assert wire["r2"].store.table.copy() == wire["r1"].store.table.copy()
    assert any(event.kind == "snapshot" for event in wire["r2"].journal.events)


def test_nothing_of_a_snapshot_shows_before_its_last_piece(wire: Wire) -> None:
    behind(wire)
    wire.talk("r1", "r2")
    before = dict(wire["r2"].store.clock)
    pieces = 0
    while True:
        _, piece = wire.pull("r2", "r1")
        assert piece is not None
        pieces += 1
        if piece.last:
            break
        assert wire["r2"].store.clock.keys() <= {*before, *wire["r2"].store.log.origins()}
        assert "k00" not in wire["r2"].store.table.copy()
    assert pieces > 2
    assert len(wire["r2"].store.table) == 12


def test_pieces_take_turns_with_exchanges_that_are_due(wire: Wire) -> None:
    behind(wire)
    wire.talk("r1", "r2")
    kinds = [type(wire.exchange("r2", "r1").request).__name__ for _ in range(4)]
    assert sorted(kinds[:2]) == sorted(kinds[2:]) == ["Exchange", "SnapshotRequest"]


def test_a_receiver_lets_the_giver_rest_for_as_long_as_a_piece_took(wire: Wire) -> None:
    """Its clients would wait else. Exchanges that are due go on; and a piece may be late for other reasons."""
    behind(wire, keys=40)
    wire.talk("r1", "r2")
    wire.pull("r2", "r1")
    wire.exchange("r2", "r1")  # Takes turns with the pieces; nothing else is due now.
    for took_s, rest_s in ((0.02, 0.02), (0.7, wire.settings.max_piece_rest_s)):
        r2, peer = wire["r2"], wire["r2"].peer(address("r1"))
        assert peer is not None
        peer.next_sync_s = wire.now("r2").mono_s + 10.0
        outgoing = r2.begin(address("r1"), wire.now("r2"))
        assert outgoing is not None
        assert isinstance(outgoing.message, SnapshotRequest)
        reply = wire.answer("r1", outgoing.message)
        wire.tick(took_s)
        wire.land("r2", outgoing, reply)
        assert r2.due_at(address("r1"), wire.now("r2")) == pytest.approx(wire.now("r2").mono_s + rest_s)
        assert r2.begin(address("r1"), wire.now("r2")) is None
        peer.urgent = True
        assert isinstance(wire.exchange("r2", "r1").request, Exchange)
        wire.tick(rest_s)


def test_a_snapshot_is_of_one_moment_although_both_sides_write_meanwhile(wire: Wire) -> None:
    behind(wire)
    wire.talk("r1", "r2")
    wire.pull("r2", "r1")
    wire.issue("r1", "k00", b"later")
    wire.issue("r1", "k11", None)
    wire.issue("r2", "mine", b"kept")
    wire.flow(1.5)
    for name in ("r1", "r2"):
        assert wire.values(name, "k00") == [b"later"]
        assert wire.values(name, "k11") == []
        assert wire.values(name, "mine") == [b"kept"]
    assert wire["r2"].store.clock == wire["r1"].store.clock


def test_a_replica_that_is_out_pulls_no_snapshots_and_catches_up_when_it_is_back(wire: Wire) -> None:
    """Members trim their logs without regard to it: it would pull one snapshot after another, for nobody."""
    wire.cluster("r1", "r2", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.0)
    assert wire.state("r3") == "removed"
    pulled = spy(wire)
    for number in range(20):
        wire.issue("r1", f"k{number % 4}", b"%d" % number)
        wire.flow(0.3)
    assert not pulled
    wire["r1"].add_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(3.0)
    assert wire.state("r3") == "serving"
    assert wire["r3"].store.clock == wire["r1"].store.clock
    assert wire.values("r3", "k3") == [b"19"]


def test_a_replica_that_is_put_back_serves_nobody_before_it_has_caught_up(wire: Wire) -> None:
    """Else clients without a history are told that keys are absent that have been there for long."""
    wire.cluster("r1", "r2", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.0)
    for number in range(20):
        wire.issue("r1", f"k{number % 4}", b"%d" % number)
        wire.flow(0.3)
    assert wire.values("r3", "k3") == []
    wire["r3"].add_replica_from_view(address("r3"), wire.now("r3"))
    assert wire.state("r3") == "joining"
    with pytest.raises(Refused) as refused:
        wire.get("r3", "k3")
    assert refused.value.reason == CATCHING_UP
    states = []
    for _ in range(20):
        for other in ("r1", "r2"):
            if wire["r3"].due_at(address(other), wire.now("r3")) <= wire.now("r3").mono_s:
                wire.exchange("r3", other)
            states.append((wire.state("r3"), tuple(wire.values("r3", "k3"))))
    assert ("serving", ()) not in states
    assert states[-1] == ("serving", (b"19",))


def test_a_replica_that_is_put_back_where_nobody_can_be_reached_serves_within_down_after(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(2.0)
    wire.isolate("r2")
    wire["r2"].add_replica_from_view(address("r2"), wire.now("r2"))
    assert wire.state("r2") == "joining"
    wire.flow(wire.settings.down_after_s)
    assert wire.state("r2") == "serving"


def test_one_that_is_put_out_while_it_joins_asks_everybody_anew_when_it_is_back(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.start("r3", "r1")
    wire.talk("r3", "r1")
    assert wire.state("r3") == "joining"
    wire["r3"].remove_replica_from_view(address("r3"), wire.now("r3"))
    wire.flow(2.0)
    assert wire.state("r3") == "removed"
    wire.cut("r1", "r2")
    wire.issue("r2", "y", b"1")
    wire["r3"].add_replica_from_view(address("r3"), wire.now("r3"))
    wire.talk("r3", "r1")
    assert wire.state("r3") == "joining"
    wire.flow()
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "y") == [b"1"]


def test_a_pull_from_one_that_is_out_is_given_up_when_the_rest_comes_in_other_ways(wire: Wire) -> None:
    """Nobody talks to it any more, so the pull would never end, and no other could begin (simulation, seed 129)."""
    wire.settings = SMALL_PIECES
    wire.cluster("r1", "r3")
    wire.store_settings = SMALL_LOG
    wire.start("r2", "r1")
    wire.flow(2.0)
    wire.isolate("r3")
    for number in range(20):
        wire.issue("r1", f"k{number:02}", b"%d" % number)
    wire.flow(0.5)
    wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(0.5)
    wire.heal()
    wire.cut("r1", "r3")
    _, piece = wire.pull("r3", "r2")
    assert piece is not None
    assert not piece.last
    wire.heal()
    wire.exchange("r1", "r3")
    assert wire["r3"].store.clock == wire["r2"].store.clock
    wire.flow(1.0)

    wire.isolate("r3")
    last = wire.issue("r1", "later", b"1")
    wire["r1"].store.log.restart(last.origin)
    wire.heal()
    wire.flow(3.0)
    assert wire.has("r3", last.dot)


def spy(wire: Wire) -> list[SnapshotRequest]:
    """Return a list to which every request for a piece of a snapshot will be added."""
    asked: list[SnapshotRequest] = []
    answer = wire.answer

    def noting(name: str, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece | None:
        if isinstance(message, SnapshotRequest):
            asked.append(message)
        return answer(name, message)

    wire.answer = noting  # type: ignore[method-assign]  # of this one wire
    return asked


def test_a_giver_that_dies_half_way_costs_only_a_retry_with_another(wire: Wire) -> None:
    wire.settings, wire.store_settings = SMALL_PIECES, SMALL_LOG
    three(wire)
    wire.isolate("r3")
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"1")
    wire.flow()
    wire.heal()
    wire.talk("r1", "r3")
    wire.pull("r3", "r1")
    wire.pull("r3", "r1")
    wire.crash("r1")
    wire.issue("r3", "mine", b"kept")
    wire.exchange("r3", "r1")
    assert len(wire["r3"].store.table) == 1
    wire.flow(2.5)
    assert len(wire["r3"].store.table) == len(wire["r2"].store.table) == 13


def test_a_giver_that_comes_back_empty_half_way_is_not_believed_to_continue(wire: Wire) -> None:
    behind(wire)
    wire.start("r3", "r1")
    wire.flow(1.0)
    wire.isolate("r2")
    wire.flow(0.5)
    for number in range(12):
        wire.issue("r1", f"l{number:02}", b"1")
    wire.flow()
    wire.heal()
    wire.talk("r1", "r2")
    wire.pull("r2", "r1")
    wire.crash("r1")
    wire.start("r1", "r3")
    wire.flow(2.5)
    assert len(wire["r1"].store.table) == len(wire["r2"].store.table) == 24


def test_a_snapshot_whose_giver_has_too_many_receivers_is_asked_for_again(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, snapshot_piece_bytes=1_500, max_snapshots=1)
    wire.store_settings = SMALL_LOG
    wire.cluster("r1", "r2", "r3")
    wire.isolate("r1")
    wire.cut("r2", "r3")
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"1")
    wire.cuts = {("r2", "r3"), ("r3", "r2")}
    wire.talk("r1", "r2")
    wire.talk("r1", "r3")
    wire.pull("r2", "r1")
    _, refused = wire.pull("r3", "r1")
    assert refused is not None
    assert refused.snapshot == ""
    wire.flow(35.0)
    assert len(wire["r2"].store.table) == len(wire["r3"].store.table) == 12


def test_a_snapshot_that_was_handed_out_whole_leaves_room_for_the_next_receiver(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, max_snapshots=1)
    wire.start("r1")
    wire.issue("r1", "x", b"1")
    wire.flow(1.5)
    for number in range(4):
        wire.start("r2", "r1")
        wire.flow(1.5)
        assert wire.state("r2") == "serving"
        wire.issue("r2", "x", b"%d" % number)
        wire.flow(1.5)
        wire.crash("r2")


def test_a_joiner_pulls_one_snapshot_although_several_peers_offer_one(wire: Wire) -> None:
    three(wire)
    wire.issue("r1", "x", b"1")
    wire.issue("r2", "y", b"0")
    wire.flow(1.5)
    wire.crash("r3")
    r3 = wire.start("r3", "r1", "r2")
    wire.flow()
    wire.issue("r2", "y", b"1")
    wire.flow(3.0)
    assert [event.kind for event in r3.journal.events].count("snapshot") == 1


def test_a_piece_that_comes_late_from_a_pull_that_was_given_up_is_not_used(wire: Wire) -> None:
    behind(wire)
    wire.talk("r1", "r2")
    wire.pull("r2", "r1")
    late = wire.begin("r2", "r1")
    while isinstance(late.message, Exchange):
        wire.carry("r2", late)
        late = wire.begin("r2", "r1")
    reply = wire.answer("r1", late.message)
    wire.land("r2", late, None)
    wire.land("r2", late, reply)
    wire.flow(1.5)
    assert wire["r2"].store.table.copy() == wire["r1"].store.table.copy()


def test_a_log_starts_anew_after_a_join_so_that_it_never_has_a_gap(wire: Wire) -> None:
    """r2 has r1:1 in its log, then joins at r1:13. What it would send r3 from its log must not skip 2 to 13."""
    wire.settings, wire.store_settings = SMALL_PIECES, SMALL_LOG
    three(wire)
    wire.isolate("r3")
    first = wire.issue("r1", "x", b"1")
    wire.flow()
    wire.isolate("r2")
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"1")
    wire.cuts = {pair for pair in wire.cuts if "r3" in pair}
    wire.flow()
    last = wire.issue("r1", "x", b"2")
    wire.flow()
    wire.crash("r1")
    wire.tick(1.5)
    wire.heal()
    request, _ = wire.talk("r2", "r3")
    assert first not in request.updates
    assert request.truncated
    wire.flow(1.5)
    assert wire.has("r3", last.dot)
    assert wire["r3"].store.table.copy() == wire["r2"].store.table.copy()


def test_a_snapshot_that_names_updates_of_its_receiver_that_it_never_issued_is_refused_whole(wire: Wire) -> None:
    behind(wire)
    r2 = wire["r2"]
    wire["r1"].store.clock[r2.id] = 7
    wire["r2"]._peer(address("r1")).offers_snapshot = True
    wire["r2"]._peer(address("r1")).known[wire["r1"].id] = 12
    before = dict(r2.store.clock)
    with pytest.raises(BadMessage):  # noqa: PT012 - the piece that completes it is refused
        for _ in range(10):
            wire.pull("r2", "r1")
    assert r2.store.clock == before


# -- incarnations --------------------------------------------------------------------------------------------------


def test_a_restart_under_a_clock_that_went_back_takes_a_higher_incarnation_and_no_dot_twice(wire: Wire) -> None:
    three(wire)
    old = wire.issue("r3", "x", b"old")
    wire.flow()
    wire.crash("r3")
    r3 = wire.start("r3", "r1", skew_s=-3600.0)
    assert incarnation_of(r3.id) < incarnation_of(old.origin)
    wire.flow(0.5)
    assert incarnation_of(r3.id) > incarnation_of(old.origin)
    assert wire.state("r3") == "serving"
    new = wire.issue("r3", "x", b"new")
    wire.flow()
    assert new.origin != old.origin
    assert wire.values("r1", "x") == [b"new"]


def test_two_processes_started_at_the_same_millisecond_have_different_incarnations() -> None:
    ids = {Replica("r1:80", [], now=NOW, rng=Random(seed)).id for seed in range(100)}
    assert len(ids) == 100


def test_a_replica_that_has_to_take_a_higher_incarnation_keeps_data_clock_and_log(wire: Wire) -> None:
    """It served alone, cut off, under a clock that had gone back; its first updates must reach the others too."""
    three(wire)
    wire.isolate("r3")
    wire.crash("r3")
    r3 = wire.start("r3", "r1", skew_s=-3600.0)
    wire.flow(3.5)
    early = wire.issue("r3", "x", b"1")
    wire.heal()
    wire.flow(1.5)
    late = wire.issue("r3", "x", b"2", early.past)
    assert incarnation_of(late.origin) > incarnation_of(early.origin)
    wire.flow(2.5)
    for name in ("r1", "r2", "r3"):
        assert wire.has(name, early.dot)
        assert wire.values(name, "x") == [b"2"]
    assert r3.store.clock == wire["r1"].store.clock


def test_a_message_of_an_incarnation_that_is_over_is_answered_with_the_register_and_not_taken(wire: Wire) -> None:
    r1, _, _ = three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    outgoing = wire.begin("r3", "r1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(0.5)
    reply = wire.answer("r1", outgoing.message)
    assert isinstance(reply, Exchange)
    assert not reply.taken
    assert reply.register == r1.view.register
    assert not wire.has("r1", update.dot)


def test_a_reply_that_was_not_taken_is_no_acknowledgement_and_no_report(wire: Wire) -> None:
    r1, r2 = wire.cluster("r1", "r2")
    outgoing = wire.begin("r1", "r2")
    reply = wire.answer("r2", outgoing.message)
    assert isinstance(reply, Exchange)
    update = wire.issue("r1", "x", b"1")
    forged = Exchange(r2.id, 99, reply.time, reply.register_digest, update.past, 0, "serving", rest={}, taken=False)
    wire.land("r1", outgoing, forged)
    assert r1.acks(update.dot) == 1


def test_of_two_processes_with_one_address_the_lower_one_stops_when_the_higher_one_talks(wire: Wire) -> None:
    r1, _, _ = three(wire)
    wire.tick(5.0)
    higher = wire.start("r1b", "r2", at=address("r1"))
    outgoing = higher.begin(address("r2"), wire.now("r1b"))
    assert outgoing is not None
    assert isinstance(outgoing.message, Exchange)
    with pytest.raises(AddressTaken):
        r1.receive(outgoing.message, wire.now("r1"))
    lower = wire.begin("r1", "r2").message
    assert isinstance(lower, Exchange)
    assert not higher.receive(lower, wire.now("r1b")).taken


def test_of_two_processes_with_one_address_the_lower_one_stops_when_they_meet_only_through_others(wire: Wire) -> None:
    three(wire)
    wire.start("r1b", "r2", at=address("r1"))
    wire.flow(15.0)
    assert len(wire.stopped) == 1
    survivor = next(name for name in ("r1", "r1b") if name in wire.processes)
    assert wire["r2"].view.present_id(address("r1")) == wire[survivor].id


def test_signs_of_life_of_a_predecessor_do_not_stop_a_process_that_has_just_started(wire: Wire) -> None:
    three(wire)
    wire.flow(2.0)
    wire.crash("r3")
    wire.start("r3", "r1", skew_s=-3600.0)
    wire.flow(8.0)
    assert not wire.stopped
    assert wire.state("r3") == "serving"


def test_a_peer_is_known_by_its_present_incarnation_only(wire: Wire) -> None:
    """A message of the former process that was slow on its way must not count for the new one."""
    r1, _, _ = three(wire)
    update = wire.issue("r1", "x", b"1")
    wire.flow()
    old = wire.begin("r3", "r1")
    wire.crash("r3")
    wire.start("r3", "r2")
    wire.cut("r1", "r3")
    wire.flow(1.2)
    wire.answer("r1", old.message)
    assert r1.acks(update.dot) == 2


# -- joining -------------------------------------------------------------------------------------------------------


def test_a_joiner_serves_nobody_and_takes_no_dot(wire: Wire) -> None:
    r1 = wire.start("r1", "r2")
    with pytest.raises(Refused) as refused:
        wire.put("r1", "x", b"1")
    assert refused.value.reason == CATCHING_UP
    with pytest.raises(Refused):
        wire.get("r1", "x")
    assert r1.store.clock == {}


def test_a_joiner_waits_for_everything_that_each_one_who_answered_had_when_asked(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    wire.issue("r1", "x", b"1")
    wire.issue("r2", "y", b"1")
    wire.start("r3", "r1", "r2")
    wire.talk("r3", "r1")
    assert wire.values("r3", "x") == [b"1"]
    assert wire.state("r3") == "joining"
    wire.talk("r3", "r2")
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "y") == [b"1"]


def test_a_joiner_waits_for_what_comes_in_several_batches(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, batch_updates=2)
    wire.cluster("r1", "r2")
    wire.isolate("r2")
    for number in range(5):
        wire.issue("r1", f"k{number}", b"1")
    r3 = wire.start("r3", "r1")
    wire.talk("r3", "r1")
    assert wire.state("r3") == "joining"
    wire.talk("r3", "r1")
    assert wire.state("r3") == "joining"
    wire.talk("r3", "r1")
    assert len(r3.store.table) == 5


def test_a_joiner_asks_the_members_that_its_seed_names(wire: Wire) -> None:
    """r1 has just lost r2; only r2 has y. The joiner knows r1 alone, but learns of r2."""
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    wire.issue("r2", "y", b"1")
    wire.start("r3", "r1")
    wire.talk("r3", "r1")
    assert wire.state("r3") == "joining"
    wire.flow(0.5)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "y") == [b"1"]


def test_a_joiner_waits_for_one_that_it_hears_of_late(wire: Wire) -> None:
    """Its seed answers when ``down_after`` is nearly over, and names r2, of which nobody has heard yet."""
    wire.start("r1")
    wire.start("r2")
    wire.cut("r1", "r2")
    wire["r1"].add_replica_from_view(address("r2"), wire.now("r1"))
    wire.issue("r2", "y", b"1")
    wire.flow(10.0)
    wire.start("r3", "r1")
    wire.isolate("r3")
    wire.flow(2.6)
    wire.cuts -= {("r1", "r3"), ("r3", "r1")}
    wire.talk("r3", "r1")
    wire.tick(0.2)
    assert wire.state("r3") == "joining"
    wire.cuts -= {("r2", "r3"), ("r3", "r2")}
    wire.flow(1.1)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "y") == [b"1"]


def test_a_joiner_waits_down_after_for_a_peer_that_never_answers_and_no_longer(wire: Wire) -> None:
    wire.start("r1")
    wire.flow(10.0)
    wire.start("r3", "r1", "r2")
    wire.flow(2.5)
    assert wire.state("r3") == "joining"
    wire.flow(0.5)
    assert wire.state("r3") == "serving"


def test_a_joiner_does_not_wait_for_a_member_that_the_others_know_to_be_down(wire: Wire) -> None:
    three(wire)
    wire.crash("r2")
    wire.flow(10.0)
    wire.start("r4", "r1", "r2")
    wire.flow(1.1)
    assert wire.state("r4") == "serving"


def test_a_joiner_does_not_wait_for_one_that_answered_and_then_died(wire: Wire) -> None:
    wire.settings, wire.store_settings = SMALL_PIECES, SMALL_LOG
    wire.start("r1")
    wire.flow(3.0)
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"1")
    wire.start("r2", "r1")
    wire.talk("r2", "r1")
    wire.pull("r2", "r1")
    wire.crash("r1")
    wire.flow(2.0)
    assert wire.state("r2") == "joining"
    wire.flow(1.5)
    assert wire.state("r2") == "serving"


def test_a_joiner_does_not_wait_for_an_incarnation_that_is_over(wire: Wire) -> None:
    wire.settings, wire.store_settings = SMALL_PIECES, SMALL_LOG
    wire.start("r1")
    wire.flow(3.0)
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"1")
    wire.start("r2", "r1")
    wire.talk("r2", "r1")
    wire.pull("r2", "r1")
    wire.crash("r1")
    wire.start("r1", "r2")
    wire.flow(1.2)
    assert (wire.state("r2"), wire.state("r1")) == ("serving", "serving")


def test_when_all_restart_at_once_nobody_waits_for_ever(wire: Wire) -> None:
    three(wire)
    wire.issue("r1", "x", b"1")
    wire.flow()
    names = ("r1", "r2", "r3")
    for name in names:
        wire.crash(name)
    replicas = [wire.start(name, *names) for name in names]
    wire.flow(1.0)
    assert [replica.state for replica in replicas] == ["serving"] * 3


def test_where_nobody_answers_a_replica_serves_alone_within_down_after_and_not_at_once(wire: Wire) -> None:
    wire.start("r1", "r2", "r3")
    wire.flow(1.5)
    assert wire.state("r1") == "joining"
    wire.flow(1.5)
    assert wire.state("r1") == "serving"


def test_a_replica_without_seeds_serves_at_once(wire: Wire) -> None:
    assert wire.start("r1").state == "serving"
    assert wire.start("r2", "r2").state == "serving"


def test_a_joiner_has_what_a_cut_off_member_alone_has_when_that_member_answers(wire: Wire) -> None:
    """Only r2 has it, r2 sees the joiner and nobody else does."""
    three(wire)
    wire.isolate("r2")
    wire.issue("r2", "x", b"1")
    wire.crash("r3")
    wire.start("r3", "r1", "r2")
    wire.cuts -= {("r2", "r3"), ("r3", "r2")}
    wire.flow(1.0)
    assert wire.state("r3") == "serving"
    assert wire.values("r3", "x") == [b"1"]


# -- in and out ----------------------------------------------------------------------------------------------------


def test_a_removed_replica_closes_its_gate_and_still_hands_over_what_only_it_has(wire: Wire) -> None:
    r1, _, _ = three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    assert r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.heal()
    wire.flow(2.5)
    assert wire.state("r3") == "removed"
    with pytest.raises(Refused) as refused:
        wire.get("r3", "x")
    assert refused.value.reason == NOT_IN_VIEW
    assert wire.has("r1", update.dot)
    assert wire.has("r2", update.dot)


def test_a_removed_replica_learns_of_it_at_once_where_it_can_be_reached(wire: Wire) -> None:
    r1, _, _ = three(wire)
    wire.flow(1.0)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow()
    assert wire.state("r3") == "removed"


def test_put_opens_the_gate_again_with_the_same_data_and_counters(wire: Wire) -> None:
    r1, _, _ = three(wire)
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
    r1, _, _ = three(wire)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r3")
    wire.start("r3", "r1", skew_s=-7200.0)
    wire.flow(1.5)
    assert wire.state("r3") == "serving"
    assert wire["r2"].view.members() == (address("r1"), address("r2"), address("r3"))


def test_starting_brings_in_oneself_and_no_other_that_was_put_out(wire: Wire) -> None:
    r1, _, _ = three(wire)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r2")
    wire.start("r2", "r1", "r3")
    wire.flow(5.0)
    assert r1.view.members() == wire["r2"].view.members() == (address("r1"), address("r2"))


def test_a_removal_under_a_slow_clock_still_follows_what_it_removes(wire: Wire) -> None:
    wire.start("r1", "r2", skew_s=-3600.0)
    wire.start("r2", "r1")
    wire.flow(0.5)
    assert wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(1.5)
    assert wire.state("r2") == "removed"


def test_the_last_holder_of_the_data_gives_it_although_it_was_removed(wire: Wire) -> None:
    r1, _, _ = three(wire)
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
    _, _, r3 = three(wire)
    assert r3.unshared() == 0
    wire.isolate("r3")
    wire.issue("r3", "x", b"1")
    wire.issue("r3", "y", b"1")
    assert r3.unshared() == 2
    wire.heal()
    wire.talk("r3", "r2")
    assert r3.unshared() == 0


def test_unshared_of_one_that_leaves_is_not_zero_before_a_member_knows_that_it_left(wire: Wire) -> None:
    _, r2, r3 = three(wire)
    wire.isolate("r3")
    r3.leave(wire.now("r3"))
    assert wire.state("r3") == "leaving"
    assert r3.store.closed == NOT_IN_VIEW
    assert r3.unshared() == 1
    wire.heal()
    wire.flow()
    assert r3.unshared() == 0
    assert r2.view.members() == (address("r1"), address("r2"))


def test_unshared_without_any_member_is_nothing_to_wait_for(wire: Wire) -> None:
    r1 = wire.start("r1")
    wire.issue("r1", "x", b"1")
    assert r1.unshared() == 0


def test_unshared_where_no_member_can_be_reached_is_everything(wire: Wire) -> None:
    """Other members belong, but none of the present incarnations has talked."""
    r1 = wire.start("r1")
    r1.add_replica_from_view(address("r2"), wire.now("r1"))
    wire.issue("r1", "x", b"1")
    assert r1.unshared() == 1


def test_a_member_that_was_put_in_before_it_started_joins_when_it_starts(wire: Wire) -> None:
    r1 = wire.start("r1")
    wire.issue("r1", "x", b"1")
    r1.add_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(5.0)
    assert r1.view.live(wire.now("r1").mono_s) == [address("r1")]
    wire.start("r2")
    wire.flow(2.0)
    assert r1.view.live(wire.now("r1").mono_s) == [address("r1"), address("r2")]
    assert wire.values("r2", "x") == [b"1"]


# -- reachability --------------------------------------------------------------------------------------------------


def live(wire: Wire, at: str) -> list[str]:
    return [entry.removesuffix(":80") for entry in wire[at].view.live(wire.now(at).mono_s)]


def test_a_replica_that_stops_answering_leaves_every_view_within_down_after_and_belongs_still(wire: Wire) -> None:
    three(wire)
    wire.flow(2.0)
    wire.crash("r3")
    wire.flow(wire.settings.down_after_s)
    assert live(wire, "r1") == live(wire, "r2") == ["r1", "r2"]
    assert wire["r1"].view.belongs(address("r3"))


def test_a_healed_partition_mends_itself_within_down_after_with_all_data_both_ways(wire: Wire) -> None:
    three(wire)
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
    three(wire)
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
    assert r2.view.members() == (address("r1"), address("r2"))
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
        assert wire[name].view.members() == (address("r1"), address("r2"))
    assert not r1.add_replica_from_view("alias:80", wire.now("r1"))
    assert r1.remove_replica_from_view("alias:80", wire.now("r1"))
    wire.flow(1.5)
    assert wire.state("r2") == "removed"


def test_an_alias_that_somebody_else_put_is_set_right_for_all(wire: Wire) -> None:
    wire.aliases["alias:80"] = "r2"
    three(wire)
    wire["r3"].add_replica_from_view("alias:80", wire.now("r3"))
    wire.flow(3.0)
    for name in ("r1", "r2", "r3"):
        assert wire[name].view.members() == tuple(address(other) for other in ("r1", "r2", "r3"))


# -- lost past -----------------------------------------------------------------------------------------------------


def gone(wire: Wire) -> Update:
    """Let r3 die with an update that nobody else has, and come back."""
    three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(1.5)
    return update


def test_what_died_with_its_replica_is_lost_once_all_members_have_compared_notes(wire: Wire) -> None:
    update = gone(wire)
    token = wire["r1"].ask(update.past)
    assert wire["r1"].lost(update.past, token) == {}
    wire.flow()
    assert wire["r1"].lost(update.past, token) == {update.origin: (1, 1)}


def test_lost_names_the_counters_that_are_missing_here(wire: Wire) -> None:
    three(wire)
    wire.issue("r3", "x", b"1")
    wire.flow()
    wire.isolate("r3")
    wire.issue("r3", "x", b"2")
    update = wire.issue("r3", "x", b"3")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(1.5)
    token = wire["r1"].ask(update.past)
    wire.flow()
    assert wire["r1"].lost(update.past, token) == {update.origin: (2, 3)}


def test_what_is_no_id_of_a_replica_is_never_lost_but_missing(wire: Wire) -> None:
    r1, _, _ = three(wire)
    token = r1.ask({"nonsense": 3})
    wire.flow()
    assert r1.lost({"nonsense": 3}, token) == {}


def test_rule_1_the_present_incarnation_may_come_back_with_it(wire: Wire) -> None:
    three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].ask(update.past)
    wire.flow(10.0)
    assert wire["r1"].lost(update.past, token) == {}


def test_rule_1_one_that_was_put_out_is_no_present_incarnation(wire: Wire) -> None:
    three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    token = wire["r1"].ask(update.past)
    wire.flow(1.5)
    assert wire["r1"].lost(update.past, token) == {}, "it was heard of just now"
    wire.flow(3.0)
    assert wire["r1"].lost(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_one_that_was_put_out_hands_over_what_it_has_as_long_as_it_lives(wire: Wire) -> None:
    """Simulation, seed 201152: r2 reports that it has not got it, gets it from r3, and r1 has told a client "lost"."""
    three(wire)
    wire.cut("r1", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.exchange("r1", "r2")
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].ask(update.past)
    wire.exchange("r1", "r2")
    wire.exchange("r3", "r2")
    wire.tick(0.1)
    assert wire.has("r2", update.dot)
    assert wire["r1"].lost(update.past, token) == {}
    wire.flow(1.5)
    assert wire.has("r1", update.dot)


def test_rule_2_one_that_was_put_out_may_have_what_is_of_others(wire: Wire) -> None:
    """Simulation, seed 402413: all members have come back empty, and only r3, which is out, has what r2 had written."""
    three(wire)
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
    wire.exchange("r1", "r3")
    for _ in range(3):
        wire.talk("r1", "r2")
    token = wire["r1"].ask(update.past)
    wire.talk("r1", "r2")
    wire.tick(0.1)
    assert wire["r1"].lost(update.past, token) == {}
    wire.flow(5.0)
    assert wire.has("r1", update.dot)
    assert wire.has("r2", update.dot)


def test_rule_2_who_was_put_out_and_has_nothing_more_keeps_nobody_waiting(wire: Wire) -> None:
    """Its process may live on for weeks, and members crash meanwhile."""
    three(wire)
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.0)
    wire.isolate("r2")
    update = wire.issue("r2", "x", b"1")
    wire.crash("r2")
    wire.cuts.clear()
    wire.start("r2", "r1")
    wire.flow(1.5)
    token = wire["r1"].ask(update.past)
    wire.flow(2.0)
    assert wire.state("r3") == "removed"
    assert wire["r1"].lost(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_a_sign_of_life_of_one_that_was_put_out_may_come_from_a_member(wire: Wire) -> None:
    """r1 is cut off from r3, which is out. r2 hears it, does not get what it has, and says so until it is dead."""
    three(wire)
    wire.cut("r1", "r3")
    wire.cuts.add(("r2", "r3"))
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    nobodys = {wire["r3"].id: 99}
    token = wire["r1"].ask(nobodys)
    for _ in range(20):
        wire.flow(0.5)
        assert wire["r1"].lost(nobodys, token) == {}
    wire.crash("r3")
    wire.flow(5.0)
    assert wire["r1"].lost(nobodys, token) == {wire["r1"].view.present_id(address("r3")): (1, 99)}


def test_rule_2_reports_from_before_one_that_was_put_out_fell_silent_do_not_count(wire: Wire) -> None:
    """r2 has reported, then got it from r3; r3 is dead, and r1 has not heard of r2 since."""
    three(wire)
    wire.cut("r1", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    update = wire.issue("r3", "x", b"1")
    token = wire["r1"].ask(update.past)
    wire.exchange("r1", "r2")
    wire.exchange("r1", "r2")
    wire.exchange("r3", "r2")
    wire.crash("r3")
    wire.cut("r1", "r2")
    wire.flow(5.0)
    assert wire.has("r2", update.dot)
    assert wire["r1"].lost(update.past, token) == {}
    wire.heal()
    wire.flow(2.0)
    assert wire.has("r1", update.dot)


def test_rule_2_a_member_that_is_down_may_have_it_until_it_is_removed(wire: Wire) -> None:
    update = gone(wire)
    wire.crash("r2")
    wire.flow(5.0)
    token = wire["r1"].ask(update.past)
    wire.flow(5.0)
    assert wire["r1"].lost(update.past, token) == {}
    wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(1.5)
    assert wire["r1"].lost(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_from_before_the_question_do_not_count(wire: Wire) -> None:
    update = gone(wire)
    wire.flow(2.0)
    token = wire["r1"].ask(update.past)
    wire.talk("r1", "r2")
    assert wire["r1"].lost(update.past, token) == {}
    wire.talk("r1", "r3")
    assert wire["r1"].lost(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_an_exchange_that_was_under_way_when_the_question_came_does_not_count(wire: Wire) -> None:
    """Its reply may be older than the moment at which the member got the update."""
    update = gone(wire)
    under_way = wire.begin("r1", "r2")
    reply = wire.answer("r2", under_way.message)
    token = wire["r1"].ask(update.past)
    wire.talk("r1", "r3")
    wire.land("r1", under_way, reply)
    assert wire["r1"].lost(update.past, token) == {}
    wire.talk("r1", "r2")
    assert wire["r1"].lost(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_under_another_register_do_not_count(wire: Wire) -> None:
    """r2 may not know yet that r3 is over, and still take the update from it."""
    update = gone(wire)
    token = wire["r1"].ask(update.past)
    wire.talk("r1", "r2")
    wire["r1"].add_replica_from_view(address("r9"), wire.now("r1"))
    wire["r1"].remove_replica_from_view(address("r9"), wire.now("r1"))
    wire.talk("r1", "r3")
    assert wire["r1"].lost(update.past, token) == {}
    wire.talk("r1", "r2")
    assert wire["r1"].lost(update.past, token) == {update.origin: (1, 1)}


def test_rule_2_reports_of_an_earlier_incarnation_do_not_count(wire: Wire) -> None:
    update = gone(wire)
    token = wire["r1"].ask(update.past)
    wire.flow()
    wire.crash("r2")
    wire.start("r2", "r3")
    wire.cut("r1", "r2")
    wire.flow(1.5)
    assert wire["r1"].lost(update.past, token) == {}


def test_rule_3_what_a_member_has_is_on_its_way(wire: Wire) -> None:
    three(wire)
    wire.cut("r1", "r3")
    update = wire.issue("r3", "x", b"1")
    wire.flow()  # r2 has it.
    wire.cut("r1", "r2")
    wire.crash("r3")
    wire.start("r3", "r1")
    wire.cuts = {("r2", "r3"), ("r3", "r2")}
    wire.flow(0.2)
    r1 = wire["r1"]
    r1.store.log.restart(update.origin)
    if wire.has("r1", update.dot):
        pytest.fail("the scene is set wrongly: r1 has it already")
    token = r1.ask(update.past)
    for name in ("r2", "r3"):
        wire.exchange("r1", name)
    assert r1.lost(update.past, token) == {}


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
    token = r1.ask(effect.past)
    wire.flow(3.0)
    assert r1.lost({effect.origin: 1}, token) == {}
    wire.heal()
    wire.flow(3.0)
    assert wire.values("r1", "x") == [b"1"]


def test_a_pending_update_that_waits_for_a_lost_one_is_dropped(wire: Wire) -> None:
    """r2's second incarnation would wait for ever for what died with r3; its own origin is over too."""
    three(wire)
    wire.isolate("r3")
    cause = wire.issue("r3", "x", b"1")
    wire["r2"].store.receive([cause], wire.now("r2"))
    effect = wire.issue("r2", "y", b"1", cause.past)
    wire["r1"].store.receive([effect], wire.now("r1"))
    assert effect.dot in wire["r1"].store.pending
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
    with pytest.raises(NotReached) as unreached:
        wire.get("r1", "x", update.past)
    assert unreached.value.missing == {update.origin: (0, 1)}


# -- markers -------------------------------------------------------------------------------------------------------


def test_metadata_of_idle_replicas_does_not_grow_over_a_hundred_restarts(wire: Wire) -> None:
    three(wire)
    wire.issue("r1", "key", b"0")
    wire.flow()
    for number in range(100):
        wire.issue("r3", "x", b"%d" % number)
        wire.issue("r3", f"k{number}", b"1")
        wire.issue("r3", f"k{number}", None)
        wire.flow()
        wire.crash("r3")
        wire.start("r3", "r1", "r2")
        wire.flow(0.5)
    wire.flow(3.0)
    for name in ("r1", "r2", "r3"):
        store = wire[name].store
        assert len(store.clock) > 100
        assert len(wire.get(name, "absent").metadata) <= 3
        assert len(wire.get(name, "x").metadata) <= 3
        assert len(store.markers.all()) <= 3
        assert len(store.log.origins()) <= 3
    update = wire.issue("r2", "x", b"new", dict(wire["r2"].store.clock))
    assert len(update.past) <= 3
    assert all(id_ in wire["r2"].view.present for id_ in update.past)


def test_a_marker_is_used_only_once_every_member_has_it(wire: Wire) -> None:
    three(wire)
    old = wire.issue("r3", "x", b"1")
    wire.flow()
    wire.crash("r3")
    wire.start("r3", "r1", "r2")
    wire.talk("r3", "r1")
    wire.isolate("r3")
    wire.flow(5.0)
    assert wire["r1"].store.markers.all()
    metadata = wire.get("r1", "x").metadata
    assert old.origin in metadata
    assert covers(wire["r3"].store.clock, metadata)


def test_metadata_that_a_marker_has_made_simple_is_covered_by_every_member(wire: Wire) -> None:
    three(wire)
    old = wire.issue("r3", "x", b"1")
    wire.flow()
    wire.crash("r3")
    wire.start("r3", "r1", "r2")
    wire.flow(5.0)
    metadata = wire.get("r1", "x", old.past).metadata
    assert old.origin not in metadata
    assert metadata
    for name in ("r1", "r2", "r3"):
        assert [version.value for version in wire.get(name, "x", metadata).versions] == [b"1"]


def test_what_a_marker_does_not_cover_stays_in_the_metadata(wire: Wire) -> None:
    """r3's last update comes to light only after the marker that stands for its others."""
    three(wire)
    wire.issue("r3", "x", b"1")
    wire.flow()
    wire.isolate("r3")
    late = wire.issue("r3", "y", b"1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1", "r2")
    wire.flow(5.0)
    wire["r1"].store.receive([late], wire.now("r1"))
    assert wire.get("r1", "y").metadata[late.origin] == late.counter
    assert late.origin not in wire.get("r1", "x").metadata
    wire.flow(5.0)
    assert late.origin not in wire.get("r1", "y").metadata


def test_the_rest_of_the_clock_travels_only_where_its_digest_differs(wire: Wire) -> None:
    three(wire)
    wire.issue("r3", "x", b"1")
    wire.flow()
    wire.crash("r3")
    wire.start("r3", "r1", "r2")
    wire.flow(5.0)
    request, reply = wire.talk("r1", "r2")
    assert request.rest is None
    assert reply.rest is None
    assert request.register is None
    assert reply.register is None
    assert request.clock.keys() <= wire["r1"].view.present
    assert request.rest_digest == reply.rest_digest != 0


def test_a_replica_that_is_removed_issues_no_markers(wire: Wire) -> None:
    r1, _, r3 = three(wire)
    wire.issue("r2", "x", b"1")
    wire.flow(1.5)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r2")
    wire.start("r2", "r1")
    wire.flow(5.0)
    assert r3.id not in r3.store.clock


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
        r1.receive(message(wire, clock={r1.id: 1}), wire.now("r1"))


def test_an_own_update_that_was_never_issued_is_refused_and_leaves_no_trace(wire: Wire) -> None:
    r1, _ = wire.cluster("r1", "r2")
    forged = Update(r1.id, 1, 1, {}, (Write("x", b"1"),))
    with pytest.raises(BadMessage):
        r1.receive(message(wire, batch=[Raw(encode_update(forged))]), wire.now("r1"))
    assert r1.store.clock == {}
    assert wire.values("r1", "x") == []


def test_a_register_beyond_the_limit_is_refused_whole(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, max_members=4)
    r1, _ = wire.cluster("r1", "r2")
    before = dict(r1.view.register)
    with pytest.raises(BadMessage):
        r1.receive(message(wire, register={f"n{number}:80": Entry(1, 1, True) for number in range(3)}), wire.now("r1"))
    assert r1.view.register == before


def test_two_writes_of_one_key_in_an_update_are_refused(wire: Wire) -> None:
    r1, r2 = wire.cluster("r1", "r2")
    twice = Update(r2.id, 1, 1, {}, (Write("x", b"1"), Write("x", b"2")))
    with pytest.raises(BadMessage):
        r1.receive(message(wire, batch=[Raw(encode_update(twice))]), wire.now("r1"))
    assert r1.store.clock == {}


# -- clients -------------------------------------------------------------------------------------------------------


def test_a_client_that_hops_meets_what_it_wrote_or_waits(wire: Wire) -> None:
    three(wire)
    wire.isolate("r2")
    wrote = wire.put("r1", "x", b"1")
    with pytest.raises(NotReached):
        wire.get("r2", "x", wrote.metadata)
    wire.heal()
    wire["r2"].ask(wrote.metadata)
    wire.flow()
    assert [version.value for version in wire.get("r2", "x", wrote.metadata).versions] == [b"1"]


def test_a_client_is_never_made_to_depend_on_everything_that_a_replica_has_seen(wire: Wire) -> None:
    three(wire)
    old = wire.put("r1", "old", b"1")
    for number in range(50):
        wire.put("r2", f"busy{number}", b"1")
        wire.put("r1", f"busy{number}", b"1")
    wire.flow()
    assert wire.get("r3", "old").metadata == old.metadata


def test_a_write_concern_is_met_by_the_reply_that_brings_the_clock(wire: Wire) -> None:
    r1, _, _ = three(wire)
    wrote = r1.store.put(Change("x", b"1"), {}, wire.now("r1"))
    assert wrote.update is not None
    wire.flow()
    assert r1.acks(wrote.update.dot) == r1.acks_wanted("all")


def test_ids_are_addresses_with_an_incarnation(wire: Wire) -> None:
    r1 = wire.start("r1")
    assert address_of(r1.id) == address("r1")
    assert len(r1.id.rpartition("@")[2]) == 16


def test_a_request_that_may_not_wait_is_told_when_it_comes_again(wire: Wire) -> None:
    """SPEC 2.8 with KV_DEFER_TIMEOUT=0: the answers to its first question count for its second."""
    three(wire)
    wire.isolate("r3")
    update = wire.issue("r3", "x", b"1")
    wire.crash("r3")
    wire.heal()
    wire.start("r3", "r1")
    wire.flow(3.0)
    r1 = wire["r1"]
    assert r1.lost(update.past, r1.ask_again(update.past)) == {}
    wire.flow(2.0)
    assert r1.lost(update.past, r1.ask(update.past)) == {}
    assert r1.lost(update.past, r1.ask_again(update.past)) == {update.origin: (1, 1)}
    wire.flow(20.0)
    assert r1.lost(update.past, r1.ask_again(update.past)) == {}
