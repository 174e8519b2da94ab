"""Snapshots: peers offer them, the receiver pulls them in pieces and joins them in one step."""

from __future__ import annotations

import pytest

from replication.errors import BadMessage
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from replication.progress import SnapshotOffer
from replication.recovery import CATCHING_UP
from replication.settings import ReplicationSettings
from replication.snapshots import SnapshotPull
from store.errors import NotServing
from store.values import store_bytes
from tests.support.wire import SMALL_LOG, SMALL_PIECES, Wire, address, start_three


def overrun_the_log(wire: Wire, keys: int = 12) -> None:
    """Let r1 write so much while r2 is cut off that r1's log does not reach back to r2's clock."""
    wire.settings = SMALL_PIECES
    wire.store_settings = SMALL_LOG
    wire.cluster("r1", "r2")
    wire.cut("r1", "r2")
    for number in range(keys):
        wire.issue("r1", f"k{number:02}", b"%d" % number)
    wire.heal()


def test_a_peer_below_the_log_is_offered_a_snapshot_and_pulls_it(wire: Wire) -> None:
    overrun_the_log(wire)
    request, _ = wire.exchange("r1", "r2")
    assert request.truncated
    wire.flow()
    assert wire["r2"].store.clock == wire["r1"].store.clock
    assert wire["r2"].store.table.copy() == wire["r1"].store.table.copy()
    assert any(event.kind == "snapshot" for event in wire["r2"].event_log.events)


def test_the_kind_of_a_value_reaches_every_replica(wire: Wire) -> None:
    """By an update, by a whole and a partial snapshot, and by a replica that relays what it received."""
    wire.settings = SMALL_PIECES
    wire.store_settings = SMALL_LOG
    wire.cluster("r1", "r2")
    wire.issue("r1", "bytes", store_bytes(b"\xff{}"))
    wire.issue("r1", "json", b"{}")
    wire.flow()
    wire.cut("r1", "r2")
    wire.issue("r1", "later", store_bytes(b""))
    for number in range(12):
        wire.issue("r1", f"k{number:02}", b"%d" % number)
    wire.heal()
    wire.flow()  # r2 pulls a partial snapshot
    wire.start("r3", "r2")
    wire.cut("r1", "r3")
    wire.flow()  # r3 pulls a whole one from r2
    for name in ("r1", "r2", "r3"):
        kinds = {key: versions[0].kind for key, versions in wire[name].store.table.copy().items() if key[0] != "k"}
        assert kinds == {"bytes": "bytes", "json": "json", "later": "bytes"}, name
    assert wire["r3"].store.table.copy() == wire["r1"].store.table.copy()


def test_no_part_of_a_snapshot_is_visible_before_its_last_piece(wire: Wire) -> None:
    overrun_the_log(wire)
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
    overrun_the_log(wire)
    wire.exchange("r1", "r2")
    kinds = [type(wire.round_trip("r2", "r1").request).__name__ for _ in range(4)]
    assert sorted(kinds[:2]) == sorted(kinds[2:]) == ["Exchange", "SnapshotRequest"]


def test_a_receiver_pauses_between_pieces_for_as_long_as_a_piece_took(wire: Wire) -> None:
    """The sender has clients to serve. The pause has an upper bound, and exchanges go on during it."""
    overrun_the_log(wire, keys=40)
    wire.exchange("r1", "r2")
    wire.pull("r2", "r1")
    wire.round_trip("r2", "r1")  # Exchanges and pieces take turns: the next request asks for a piece.
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


def test_a_snapshot_is_of_one_moment_while_both_sides_write(wire: Wire) -> None:
    overrun_the_log(wire)
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


def test_a_removed_replica_pulls_no_snapshots_and_catches_up_when_added_back(wire: Wire) -> None:
    """Members trim their logs without regard to it, so it would pull one snapshot after another."""
    wire.cluster("r1", "r2", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.0)
    assert wire.state("r3") == "removed"
    requests = record_snapshot_requests(wire)
    for number in range(20):
        wire.issue("r1", f"k{number % 4}", b"%d" % number)
        wire.flow(0.3)
    assert not requests
    wire["r1"].add_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(3.0)
    assert wire.state("r3") == "serving"
    assert wire["r3"].store.clock == wire["r1"].store.clock
    assert wire.values("r3", "k3") == [b"19"]


def test_a_replica_that_is_added_back_serves_no_client_before_it_has_caught_up(wire: Wire) -> None:
    """Otherwise clients without a history would read old keys as absent."""
    wire.cluster("r1", "r2", "r3")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(2.0)
    for number in range(20):
        wire.issue("r1", f"k{number % 4}", b"%d" % number)
        wire.flow(0.3)
    assert wire.values("r3", "k3") == []
    wire["r3"].add_replica_from_view(address("r3"), wire.now("r3"))
    assert wire.state("r3") == "joining"
    with pytest.raises(NotServing) as error:
        wire.get("r3", "k3")
    assert error.value.reason == CATCHING_UP
    states = []
    for _ in range(20):
        for other in ("r1", "r2"):
            if wire["r3"].due_at(address(other), wire.now("r3")) <= wire.now("r3").mono_s:
                wire.round_trip("r3", other)
            states.append((wire.state("r3"), tuple(wire.values("r3", "k3"))))
    assert ("serving", ()) not in states
    assert states[-1] == ("serving", (b"19",))


def test_a_replica_that_is_added_back_but_cut_off_serves_within_down_after(wire: Wire) -> None:
    wire.cluster("r1", "r2")
    wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
    wire.flow(2.0)
    wire.isolate("r2")
    wire["r2"].add_replica_from_view(address("r2"), wire.now("r2"))
    assert wire.state("r2") == "joining"
    wire.flow(wire.settings.down_after_s)
    assert wire.state("r2") == "serving"


def test_a_joiner_that_is_removed_and_added_back_asks_all_members_again(wire: Wire) -> None:
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


def test_a_joiner_that_is_removed_and_added_back_gives_members_their_full_time_to_answer(wire: Wire) -> None:
    """r3 cannot reach r2, of which r1 reports heartbeats. So r3 waits for r2, anew after it is added back."""
    wire.cluster("r1", "r2")
    wire.start("r3", "r1")
    wire.cut("r2", "r3")
    wire.exchange("r3", "r1")
    wire["r1"].remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(7.0)
    assert wire.state("r3") == "removed"
    wire["r1"].add_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(3.0)
    assert wire.state("r3") == "joining"
    wire.heal()
    wire.flow(1.5)
    assert wire.state("r3") == "serving"


def test_a_pull_from_a_removed_replica_ends_when_its_updates_arrive_otherwise(wire: Wire) -> None:
    """No replica exchanges with it, so the pull would never end and no other could begin (simulation, seed 129)."""
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


def record_snapshot_requests(wire: Wire) -> list[SnapshotRequest]:
    """Return a list to which each further request for a snapshot piece is added."""
    requests: list[SnapshotRequest] = []
    answer = wire.answer

    def recording_answer(name: str, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece | None:
        if isinstance(message, SnapshotRequest):
            requests.append(message)
        return answer(name, message)

    wire.answer = recording_answer  # type: ignore[method-assign]
    return requests


def test_a_snapshot_whose_sender_dies_is_pulled_from_another_replica(wire: Wire) -> None:
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


def test_a_sender_that_restarts_does_not_continue_its_snapshot(wire: Wire) -> None:
    overrun_the_log(wire)
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


def test_a_snapshot_is_requested_again_from_a_sender_with_too_many_receivers(wire: Wire) -> None:
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
    _, rejection = wire.pull("r3", "r1")
    assert rejection is not None
    assert rejection.snapshot == ""
    wire.flow(35.0)
    assert len(wire["r2"].store.table) == len(wire["r3"].store.table) == 12


def test_a_complete_transfer_takes_no_room_of_the_sender(wire: Wire) -> None:
    wire.settings = ReplicationSettings(pace_s=0.0, max_snapshots=1)
    wire.start("r1")
    wire.issue("r1", "x", b"1")
    wire.flow(1.5)
    for name in ("r2", "r3", "r4"):
        wire.start(name, "r1")
        wire.flow(1.5)
        assert wire.state(name) == "serving"
        wire.crash(name)
        wire["r1"].remove_replica_from_view(address(name), wire.now("r1"))


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


def test_a_late_piece_of_an_abandoned_pull_is_ignored(wire: Wire) -> None:
    overrun_the_log(wire)
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


def test_a_log_has_no_gap_after_a_join(wire: Wire) -> None:
    """r2 has r1:1 in its log and joins a snapshot at r1:13. It must not send r3 a run of updates that skips 2 to 13."""
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


def test_a_snapshot_with_forged_updates_of_its_receiver_is_rejected(wire: Wire) -> None:
    overrun_the_log(wire)
    r2 = wire["r2"]
    wire["r1"].store.clock[r2.id] = 7
    wire["r2"].peers.at(address("r1")).acked.snapshot = SnapshotOffer.OFFER
    wire["r2"].peers.at(address("r1")).acked.clock[wire["r1"].id] = 12
    before = dict(r2.store.clock)
    peer = r2.peers.at(address("r1"))
    piece = None
    with pytest.raises(BadMessage, match="the snapshot names updates of this replica"):  # noqa: PT012 - the last one is
        for _ in range(10):
            # No exchange may be due: its reply would be rejected too, because of the same clock.
            peer.schedule.next_sync_s = wire.now("r2").mono_s + 100.0
            outgoing = r2.begin(address("r1"), wire.now("r2"))
            assert outgoing is not None
            piece = wire.answer("r1", outgoing.message)
            wire.complete("r2", outgoing, piece)
    assert isinstance(piece, SnapshotPiece)
    assert piece.last
    assert r2.store.clock == before


def test_a_piece_of_another_transfer_does_not_continue_a_pull() -> None:
    pull = SnapshotPull(address("r1"))
    assert pull.stage(SnapshotPiece("r1:80@01", "first", 0, last=False))
    assert not pull.stage(SnapshotPiece("r1:80@01", "second", 1, last=True))
    assert not pull.stage(SnapshotPiece("r1:80@02", "first", 1, last=True))
    assert not pull.stage(SnapshotPiece("r1:80@01", "first", 2, last=True))
    assert not pull.stage(SnapshotPiece("r1:80@01", "", 1, last=True))
    assert pull.stage(SnapshotPiece("r1:80@01", "first", 1, last=True))


# -- snapshots end ---------------------------------------------------------------------------------------------------


def pull_while_writing(wire: Wire, receiver: str, sender: str, writes: int = 3) -> int:
    """Pull a snapshot to its last piece; the sender issues ``writes`` updates after each piece. Return the pieces."""
    pieces = 0
    while True:
        _, piece = wire.pull(receiver, sender)
        assert piece is not None
        pieces += 1
        for _ in range(writes):
            wire.issue(sender, f"new/{wire[sender].issued()}", b"1" * 20)
        if piece.last:
            return pieces


def snapshots_taken(wire: Wire, name: str) -> int:
    return [event.kind for event in wire[name].event_log.events].count("snapshot")


def test_the_log_reaches_back_to_a_snapshot_that_its_receiver_has_just_joined(wire: Wire) -> None:
    """While the snapshot travels, its sender issues far more than its log can hold. One snapshot is enough anyway."""
    overrun_the_log(wire, keys=60)
    r1, r2 = wire["r1"].store, wire["r2"].store
    wire.exchange("r1", "r2")
    before = r1.clock[wire["r1"].id]
    assert pull_while_writing(wire, "r2", "r1") > 10
    assert r1.clock[wire["r1"].id] - before > 2 * SMALL_LOG.max_log_bytes / 100
    wire.flow(0.3)
    assert r2.clock == r1.clock
    assert (wire["r2"].recovery.taken, wire["r1"].snapshots.given, snapshots_taken(wire, "r2")) == (1, 1, 1)


def test_a_snapshot_after_a_snapshot_has_only_what_has_changed(wire: Wire) -> None:
    """It is from another peer, whose log does not reach back to the first snapshot: a few keys."""
    wire.settings, wire.store_settings = SMALL_PIECES, SMALL_LOG
    wire.cluster("r1", "r2", "r3")
    wire.isolate("r3")
    for number in range(40):
        wire.issue("r1", f"k{number:02}", b"1" * 50)
        wire.flow(0.1)
    wire.cuts = {pair for pair in wire.cuts if "r2" in pair}
    assert wire.exchange("r1", "r3")[0].truncated
    pieces = 0
    while wire["r3"].recovery.taken == 0:
        wire.pull("r3", "r1")
        pieces += 1
    assert pieces >= 10
    wire.cut("r1", "r3")
    for number in range(12):
        wire.issue("r2", f"k{number:02}", b"2" * 50)
        wire.flow(0.1)
    wire.heal()
    assert wire.exchange("r2", "r3")[0].truncated
    wire["r3"].peers.at(address("r1")).acked.snapshot = SnapshotOffer.NONE
    _, first = wire.pull("r3", "r2")
    assert first is not None
    assert first.rest_unchanged
    wire.flow(0.3)
    assert wire["r3"].recovery.taken == 2
    assert "12 changed keys taken over" in {event.detail for event in wire["r3"].event_log.events}
    assert wire["r3"].store.table.copy() == wire["r1"].store.table.copy() == wire["r2"].store.table.copy()


def test_the_log_keeps_its_limit_and_a_bounded_reserve_while_receivers_catch_up(wire: Wire) -> None:
    overrun_the_log(wire, keys=60)
    log = wire["r1"].store.log
    wire.exchange("r1", "r2")
    wire.pull("r2", "r1")
    reserve = wire["r1"].store.table.bytes
    most = 0
    for number in range(3000):
        wire.issue("r1", f"k{number % 50:02}", b"1" * 20)
        most = max(most, log.bytes)
    assert SMALL_LOG.max_log_bytes + reserve * 0.9 < most <= SMALL_LOG.max_log_bytes + reserve
    wire["r1"].reserve._max_reserve_bytes = 2_000
    wire.pull("r2", "r1")
    assert log.bytes <= SMALL_LOG.max_log_bytes + 2_000


@pytest.mark.parametrize("end", ["caught up", "silent", "removed", "restarted"])
def test_the_log_has_its_limit_again_when_no_receiver_catches_up_any_more(wire: Wire, end: str) -> None:
    overrun_the_log(wire, keys=60)
    log = wire["r1"].store.log
    wire.exchange("r1", "r2")
    pull_while_writing(wire, "r2", "r1")
    assert log.bytes > 2 * SMALL_LOG.max_log_bytes
    if end == "caught up":
        wire.flow(1.5)
        assert wire["r2"].store.clock == wire["r1"].store.clock
    elif end == "removed":
        wire.isolate("r2")
        wire["r1"].remove_replica_from_view(address("r2"), wire.now("r1"))
        wire.flow(0.3)
    elif end == "restarted":
        wire.crash("r2")
        wire.start("r2", "r1")
        wire.round_trip("r2", "r1")
        wire.tick(0.1)
    else:
        wire.isolate("r2")
        wire.flow(9.0)
        assert log.bytes > 2 * SMALL_LOG.max_log_bytes
        wire.flow(2.0)
    assert log.bytes <= SMALL_LOG.max_log_bytes
    if end == "caught up":
        wire.isolate("r2")
    for number in range(100):
        wire.issue("r1", f"k{number:02}", b"1" * 20)
    assert log.bytes <= SMALL_LOG.max_log_bytes


def test_a_stranger_that_requests_a_snapshot_gets_no_reserve(wire: Wire) -> None:
    """Otherwise anybody could make the log of every replica larger."""
    overrun_the_log(wire, keys=60)
    for name in ("stranger:80@0000000000000001", f"{address('r2')}@0000000000000001"):
        piece = wire.answer("r1", SnapshotRequest(name))
        assert isinstance(piece, SnapshotPiece)
        assert piece.snapshot
    for number in range(100):
        wire.issue("r1", f"k{number:02}", b"1" * 20)
    assert wire["r1"].store.log.bytes <= SMALL_LOG.max_log_bytes


def test_the_next_snapshot_begins_after_the_pause(wire: Wire) -> None:
    overrun_the_log(wire, keys=60)
    wire.exchange("r1", "r2")
    wire.exchange("r2", "r1")
    r2, peer = wire["r2"], wire["r2"].peers.at(address("r1"))
    peer.schedule.next_sync_s = wire.now("r2").mono_s + 100.0
    peer.urgent = False
    assert r2.due_at(address("r1"), wire.now("r2")) == wire.now("r2").mono_s
    r2.recovery.pauses.until_s = wire.now("r2").mono_s + 7.0
    assert r2.due_at(address("r1"), wire.now("r2")) == r2.recovery.pauses.until_s
    wire.now_s += 6.9
    assert r2.begin(address("r1"), wire.now("r2")) is None
    wire.now_s += 0.2
    outgoing = r2.begin(address("r1"), wire.now("r2"))
    assert outgoing is not None
    assert isinstance(outgoing.message, SnapshotRequest)


def test_each_pull_counts_for_the_pauses_also_if_its_sender_dies(wire: Wire) -> None:
    """Otherwise a sender that fails in the middle would be asked for one whole snapshot after another."""
    overrun_the_log(wire, keys=60)
    r2 = wire["r2"]
    pauses = []
    for _ in range(6):
        wire.now_s += max(0.0, r2.recovery.pauses.until_s - wire.now("r2").mono_s)
        while not isinstance(wire.round_trip("r2", "r1").reply, SnapshotPiece):
            pass
        wire.now_s += 1.0
        wire.pull("r2", "r1")
        outgoing = wire.begin("r2", "r1")
        wire.complete("r2", outgoing, None)
        assert r2.recovery.pull is None
        pauses.append(r2.recovery.pauses.until_s - wire.now("r2").mono_s)
    assert r2.recovery.taken == 0
    assert pauses == pytest.approx([0, 0, 0, 1, 2, 4])


@pytest.mark.parametrize("since", [{}, {"r9:80@0000000000000001": 1}])
def test_a_partial_snapshot_for_another_clock_than_the_receivers_is_rejected(wire: Wire, since: dict[str, int]) -> None:
    """It would lack what the receiver lacks. The receiver pulls again."""
    overrun_the_log(wire)
    wire.exchange("r1", "r2")
    r2 = wire["r2"]
    outgoing = wire.begin("r2", "r1")
    while isinstance(outgoing.message, Exchange):
        wire.send("r2", outgoing)
        outgoing = wire.begin("r2", "r1")
    piece = SnapshotPiece(
        wire["r1"].id, "name", 0, last=True, clock=wire["r1"].store.clock, since=since, rest_unchanged=True
    )
    before = dict(r2.store.clock)
    with pytest.raises(BadMessage, match="the snapshot assumes updates that this replica does not have"):
        wire.complete("r2", outgoing, piece)
    r2.failed(outgoing.to, outgoing.serial, wire.now("r2"))
    assert r2.store.clock == before
    assert r2.recovery.pull is None
    wire.flow(1.5)
    assert r2.store.table.copy() == wire["r1"].store.table.copy()
