"""Snapshots for who is behind the log: offered, pulled in pieces, shown whole or not at all."""

from __future__ import annotations

import pytest

from replication.errors import BadMessage
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from replication.progress import SnapshotOffer
from replication.recovery import CATCHING_UP
from replication.settings import ReplicationSettings
from store.errors import NotServing
from tests.support.wire import SMALL_LOG, SMALL_PIECES, Wire, address, start_three


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
    request, _ = wire.exchange("r1", "r2")
    assert request.truncated
    wire.flow()
    assert wire["r2"].store.clock == wire["r1"].store.clock
    assert wire["r2"].store.table.copy() == wire["r1"].store.table.copy()
    assert any(event.kind == "snapshot" for event in wire["r2"].event_log.events)


def test_nothing_of_a_snapshot_shows_before_its_last_piece(wire: Wire) -> None:
    behind(wire)
    wire.exchange("r1", "r2")
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
    wire.exchange("r1", "r2")
    kinds = [type(wire.round_trip("r2", "r1").request).__name__ for _ in range(4)]
    assert sorted(kinds[:2]) == sorted(kinds[2:]) == ["Exchange", "SnapshotRequest"]


def test_a_receiver_lets_the_giver_rest_for_as_long_as_a_piece_took(wire: Wire) -> None:
    """Its clients would wait else. Exchanges that are due go on; and a piece may be late for other reasons."""
    behind(wire, keys=40)
    wire.exchange("r1", "r2")
    wire.pull("r2", "r1")
    wire.round_trip("r2", "r1")  # Takes turns with the pieces; nothing else is due now.
    for took_s, rest_s in ((0.02, 0.02), (0.7, wire.settings.max_piece_rest_s)):
        r2, peer = wire["r2"], wire["r2"].peers.find(address("r1"))
        assert peer is not None
        peer.schedule.next_sync_s = wire.now("r2").mono_s + 10.0
        outgoing = r2.begin(address("r1"), wire.now("r2"))
        assert outgoing is not None
        assert isinstance(outgoing.message, SnapshotRequest)
        reply = wire.answer("r1", outgoing.message)
        wire.tick(took_s)
        wire.complete("r2", outgoing, reply)
        assert r2.due_at(address("r1"), wire.now("r2")) == pytest.approx(wire.now("r2").mono_s + rest_s)
        assert r2.begin(address("r1"), wire.now("r2")) is None
        peer.urgent = True
        assert isinstance(wire.round_trip("r2", "r1").request, Exchange)
        wire.tick(rest_s)


def test_a_snapshot_is_of_one_moment_although_both_sides_write_meanwhile(wire: Wire) -> None:
    behind(wire)
    wire.exchange("r1", "r2")
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
    with pytest.raises(NotServing) as refused:
        wire.get("r3", "k3")
    assert refused.value.reason == CATCHING_UP
    states = []
    for _ in range(20):
        for other in ("r1", "r2"):
            if wire["r3"].due_at(address(other), wire.now("r3")) <= wire.now("r3").mono_s:
                wire.round_trip("r3", other)
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
    wire.exchange("r3", "r1")
    assert wire.state("r3") == "joining"
    wire["r3"].remove_replica_from_view(address("r3"), wire.now("r3"))
    wire.flow(2.0)
    assert wire.state("r3") == "removed"
    wire.cut("r1", "r2")
    wire.issue("r2", "y", b"1")
    wire["r3"].add_replica_from_view(address("r3"), wire.now("r3"))
    wire.exchange("r3", "r1")
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
    wire.round_trip("r1", "r3")
    assert wire["r3"].store.clock == wire["r2"].store.clock
    wire.flow(1.0)

    wire.isolate("r3")
    last = wire.issue("r1", "later", b"1")
    wire["r1"].store.log.drop_origin(last.origin)
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
    start_three(wire)
    wire.isolate("r3")
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"1")
    wire.flow()
    wire.heal()
    wire.exchange("r1", "r3")
    wire.pull("r3", "r1")
    wire.pull("r3", "r1")
    wire.crash("r1")
    wire.issue("r3", "mine", b"kept")
    wire.round_trip("r3", "r1")
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
    wire.exchange("r1", "r2")
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
    wire.exchange("r1", "r2")
    wire.exchange("r1", "r3")
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
    start_three(wire)
    wire.issue("r1", "x", b"1")
    wire.issue("r2", "y", b"0")
    wire.flow(1.5)
    wire.crash("r3")
    r3 = wire.start("r3", "r1", "r2")
    wire.flow()
    wire.issue("r2", "y", b"1")
    wire.flow(3.0)
    assert [event.kind for event in r3.event_log.events].count("snapshot") == 1


def test_a_piece_that_comes_late_from_a_pull_that_was_given_up_is_not_used(wire: Wire) -> None:
    behind(wire)
    wire.exchange("r1", "r2")
    wire.pull("r2", "r1")
    late = wire.begin("r2", "r1")
    while isinstance(late.message, Exchange):
        wire.send("r2", late)
        late = wire.begin("r2", "r1")
    reply = wire.answer("r1", late.message)
    wire.complete("r2", late, None)
    wire.complete("r2", late, reply)
    wire.flow(1.5)
    assert wire["r2"].store.table.copy() == wire["r1"].store.table.copy()


def test_a_log_starts_anew_after_a_join_so_that_it_never_has_a_gap(wire: Wire) -> None:
    """r2 has r1:1 in its log, then joins at r1:13. What it would send r3 from its log must not skip 2 to 13."""
    wire.settings, wire.store_settings = SMALL_PIECES, SMALL_LOG
    start_three(wire)
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
    request, _ = wire.exchange("r2", "r3")
    assert first not in request.updates
    assert request.truncated
    wire.flow(1.5)
    assert wire.has("r3", last.dot)
    assert wire["r3"].store.table.copy() == wire["r2"].store.table.copy()


def test_a_snapshot_that_names_updates_of_its_receiver_that_it_never_issued_is_refused_whole(wire: Wire) -> None:
    behind(wire)
    r2 = wire["r2"]
    wire["r1"].store.clock[r2.id] = 7
    wire["r2"].peers.at(address("r1")).acked.snapshot = SnapshotOffer.OFFER
    wire["r2"].peers.at(address("r1")).acked.clock[wire["r1"].id] = 12
    before = dict(r2.store.clock)
    with pytest.raises(BadMessage):  # noqa: PT012 - the piece that completes it is refused
        for _ in range(10):
            wire.pull("r2", "r1")
    assert r2.store.clock == before
