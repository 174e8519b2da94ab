"""The join of snapshots, compared with brute force over all updates that either side has applied."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from replication import snapshots
from replication.messages import SnapshotPiece, SnapshotRequest, decode, encode
from replication.settings import ReplicationSettings
from replication.snapshots import SnapshotPauses, SnapshotPull, SnapshotSender, cut
from store.causal import CausalStore
from store.clock import Clock, Instant, join
from store.markers import Marker
from store.snapshot import Snapshot, has_version_above, join_tables
from store.table import KeyRange, cost
from store.versions import Change, Update, Version, Versions
from tests.support.wire import NOW, values_of, write

KEYS = ("x", "y")

steps = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.sampled_from(["write", "write", "delete", "both", "receive", "receive", "some"]),
        st.sampled_from(KEYS),
        st.integers(0, 2),
    ),
    max_size=25,
)


class History:
    """Three stores after random writes and exchanges of updates, so that every state is a reachable one."""

    def __init__(self, drawn: list[tuple[int, str, str, int]]) -> None:
        self.updates: list[Update] = []
        self.stores = [CausalStore(name) for name in "abc"]
        for number, (at, what, key, other) in enumerate(drawn):
            store = self.stores[at]
            if what in {"write", "delete"}:
                value = b"%d" % number if what == "write" else None
                self.note(store.put(Change(key, value), {}, NOW).update)
            elif what == "both":
                self.note(store.transact([], [Change(each, b"%d" % number) for each in KEYS], {}, NOW).update)
            elif other != at:
                sender = self.stores[other]
                had = [u for u in self.updates if sender.clock.get(u.origin, 0) >= u.counter]
                store.receive(had if what == "receive" else had[: len(had) // 2], NOW)

    def note(self, update: Update | None) -> None:
        if update is not None:
            self.updates.append(update)

    def visible(self, clock: Clock) -> dict[str, set[tuple[str, int]]]:
        """Return key -> dots of the versions after the updates in ``clock``, by brute force."""
        seen = [update for update in self.updates if update.counter <= clock.get(update.origin, 0)]
        left: dict[str, set[tuple[str, int]]] = {}
        for update in seen:
            for each in update.writes:
                replaced = {tuple(dot) for u in seen for w in u.writes if w.key == each.key for dot in w.replaces}
                if each.value is not None and update.dot not in replaced:
                    left.setdefault(each.key, set()).add(update.dot)
        return left


def joined(one: CausalStore, other: CausalStore) -> tuple[Clock, dict[str, Versions]]:
    table = join_tables(one.table.copy(), one.clock, other.table.copy(), other.clock)
    return join(one.clock, other.clock), table


def dots(table: Any) -> dict[str, set[tuple[str, int]]]:
    return {key: {version.dot for version in versions} for key, versions in table.items()}


@given(steps)
def test_join_is_the_effect_of_all_updates_of_both_sides(drawn: list[tuple[int, str, str, int]]) -> None:
    history = History(drawn)
    for one in history.stores:
        assert dots(one.table.copy()) == history.visible(one.clock)
        for other in history.stores:
            clock, table = joined(one, other)
            assert dots(table) == history.visible(clock)
            for versions in table.values():
                assert list(versions) == sorted(versions, key=lambda version: version.rank, reverse=True)


@given(steps)
def test_join_is_commutative_associative_and_idempotent(drawn: list[tuple[int, str, str, int]]) -> None:
    a, b, c = History(drawn).stores
    assert joined(a, b) == joined(b, a)
    assert joined(a, a) == (a.clock, a.table.copy())
    left_clock, left = joined(a, b)
    right_clock, right = joined(b, c)
    both = join_tables(left, left_clock, c.table.copy(), c.clock)
    assert both == join_tables(a.table.copy(), a.clock, right, right_clock)
    assert join_tables(left, left_clock, b.table.copy(), b.clock) == left


@given(steps)
@settings(max_examples=50)
def test_join_equals_receiving_all_updates(drawn: list[tuple[int, str, str, int]]) -> None:
    history = History(drawn)
    for receiver in range(3):
        for sender in range(3):
            one, other = History(drawn).stores[receiver], history.stores[sender]
            had = [u for u in history.updates if other.clock.get(u.origin, 0) >= u.counter]
            by_updates = History(drawn).stores[receiver]
            by_updates.receive([u for u in had if u.origin != by_updates.replica_id], NOW)
            one.join(other.snapshot(NOW), NOW)
            assert one.clock == by_updates.clock
            assert one.table.copy() == by_updates.table.copy()
            # After a join, the delete clock may contain more (deletes of the other side), but never less.
            assert all(one.delete_clock[id_] >= n for id_, n in by_updates.delete_clock.items())


# -- partial snapshots -----------------------------------------------------------------------------------------------


def partial_of(sender: CausalStore, since: Clock, piece_bytes: int = 1) -> Snapshot:
    """Return the partial snapshot that a receiver at ``since`` gets from ``sender``, cut into pieces and staged."""
    pull = SnapshotPull("sender:1", known=dict(since))
    for piece in cut("me:1@0000000000000001", "name", sender.snapshot(NOW), piece_bytes, since):
        received = decode(encode(piece), SnapshotPiece)
        assert pull.fits(received)
        assert pull.stage(received)
    return pull.snapshot()


@given(steps, st.integers(0, 25))
@settings(max_examples=300)
def test_a_partial_snapshot_has_the_effect_of_the_whole_snapshot(
    drawn: list[tuple[int, str, str, int]], later: int
) -> None:
    """The receiver may apply more updates between its request and the join: ``drawn[later:]`` happen there only."""
    for receiver in range(3):
        for sender in range(3):
            history = History(drawn)
            one, other = history.stores[receiver], history.stores[sender]
            since = dict(History(drawn[:later]).stores[receiver].clock)
            expected_clock, expected = joined(one, other)
            partial = partial_of(other, since)
            one.join(partial, NOW)
            assert one.clock == expected_clock
            assert one.table.copy() == expected
            assert dots(expected) == history.visible(expected_clock)
            assert list(one.table.keys(KeyRange())) == sorted(expected)
            assert one.table.bytes == sum(cost(key, versions) for key, versions in expected.items())
            if since:
                assert all(has_version_above(versions, since) for versions in partial.table.values())


def test_a_partial_snapshot_without_deletes_names_only_what_has_changed() -> None:
    a, b = CausalStore("a"), CausalStore("b")
    for key in ("x", "y", "z"):
        b.receive([write(a, key, b"1")], NOW)
    write(a, "y", b"2")
    partial = partial_of(a, b.clock)
    assert ([*partial.table], dict(partial.covered), partial.rest_unchanged) == (["y"], {}, True)
    b.join(partial, NOW)
    assert [values_of(b, key) for key in ("x", "y", "z")] == [[b"1"], [b"2"], [b"1"]]


def test_a_partial_snapshot_after_a_delete_has_the_dots_of_all_other_keys_and_no_values() -> None:
    a, b = CausalStore("a"), CausalStore("b")
    for key in ("x", "y", "z"):
        b.receive([write(a, key, b"1" * 100)], NOW)
    write(a, "y", None)
    write(b, "mine", b"1")
    partial = partial_of(a, b.clock)
    assert (dict(partial.table), partial.rest_unchanged) == ({}, False)
    assert partial.covered == {"x": (("a", 1),), "z": (("a", 3),)}
    b.join(partial, NOW)
    assert [len(values_of(b, key)) for key in ("x", "y", "z", "mine")] == [1, 0, 1, 1]


def test_a_partial_snapshot_after_an_expiry_does_not_leave_out_the_other_keys() -> None:
    """The version that replaced x expired at the sender: no version above the receiver's clock is left of it."""
    a, b = CausalStore("a"), CausalStore("b")
    b.receive([write(a, "x", b"1")], NOW)
    a.put(Change("x", b"2", ttl_us=1000), {}, NOW)
    a.expire(Instant(NOW.mono_s + 1, NOW.wall_us + 10**6))
    assert values_of(a, "x") == []
    partial = partial_of(a, b.clock)
    assert not partial.rest_unchanged
    b.join(partial, NOW)
    assert values_of(b, "x") == []


def test_a_delete_that_a_marker_has_taken_in_is_not_left_out() -> None:
    """The delete clock names the marker's dot in place of the delete of a retired id. The receiver has neither."""
    a, b, old = CausalStore("a"), CausalStore("b"), CausalStore("old")
    first = write(old, "x", b"1")
    for store in (a, b):
        store.receive([first], NOW)
    a.receive([write(old, "x", None)], NOW)
    a.set_present_ids(["a", "b"])
    marker = a.issue_marker(NOW)
    a.markers.promote(a.clock, ["a", "b"])
    a.simplify_delete_clock()
    assert a.delete_clock == {"a": marker.counter}
    partial = partial_of(a, b.clock)
    assert not partial.rest_unchanged
    b.join(partial, NOW)
    assert values_of(b, "x") == []


def test_a_piece_of_a_partial_snapshot_leaves_out_a_limited_number_of_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sender looks at each key under its lock."""
    monkeypatch.setattr(snapshots, "MAX_KEYS_SKIPPED", 10)
    pieces = list(cut("me", "name", snapshot_of(95)._replace(delete_clock={}), 10**6, {"a": 94}))
    assert len(pieces) == 10
    assert [key for piece in pieces for key, _ in piece.items] == ["k94"]
    assert [piece.last for piece in pieces] == [False] * 9 + [True]


def test_a_piece_of_a_partial_snapshot_has_a_limited_size_also_if_it_has_only_dots() -> None:
    pieces = list(cut("me", "name", snapshot_of(1000), 2_000, {"a": 1000, "b": 1}))
    assert max(len(encode(piece)) for piece in pieces) < 4_000
    assert sum(len(versions) for piece in pieces for versions in piece.covered.values()) in {0, 1000}
    uncovered = snapshot_of(1000)._replace(delete_clock={"a": 1001})
    pieces = list(cut("me", "name", uncovered, 2_000, {"a": 1000}))
    assert max(len(encode(piece)) for piece in pieces) < 4_000
    assert sum(len(versions) for piece in pieces for versions in piece.covered.values()) == 1000


def test_snapshot_does_not_restore_a_deleted_version() -> None:
    a, b = CausalStore("a"), CausalStore("b")
    b.receive([write(a, "x", b"1")], NOW)
    write(a, "x", None)
    a.join(b.snapshot(NOW), NOW)
    assert values_of(a, "x") == []
    b.join(a.snapshot(NOW), NOW)
    assert values_of(b, "x") == []


def test_version_that_the_sender_never_applied_stays() -> None:
    a, b = CausalStore("a"), CausalStore("b")
    write(a, "x", b"mine")
    write(b, "y", b"theirs")
    a.join(b.snapshot(NOW), NOW)
    assert (values_of(a, "x"), values_of(a, "y")) == ([b"mine"], [b"theirs"])


def test_pending_updates_are_retried_after_a_join() -> None:
    a, b, here = CausalStore("a"), CausalStore("b"), CausalStore("here")
    cause = write(a, "x", b"1")
    b.receive([cause], NOW)
    effect = write(b, "y", b"1", cause.past)
    here.receive([effect], NOW)
    here.join(a.snapshot(NOW), NOW)
    assert values_of(here, "y") == [b"1"]
    assert len(here.pending) == 0


def test_join_observes_the_hybrid_time_of_the_sender() -> None:
    a, here = CausalStore("a"), CausalStore("here")
    late = Instant(NOW.mono_s, NOW.wall_us + 10**9)
    write(a, "x", b"1", now=late)
    here.join(a.snapshot(late), NOW)
    assert write(here, "y", b"1").timestamp > a.table.get("x")[0].timestamp


def test_snapshot_does_not_change_with_its_store() -> None:
    a = CausalStore("a")
    write(a, "x", b"1")
    snapshot = a.snapshot(NOW)
    write(a, "x", b"2")
    write(a, "y", b"1")
    a.issue_marker(NOW)
    assert snapshot.clock == {"a": 1}
    assert [version.value for version in snapshot.table["x"]] == [b"1"]
    assert list(snapshot.table) == ["x"]
    assert snapshot.markers == []


# -- in pieces -----------------------------------------------------------------------------------------------------


def snapshot_of(keys: int, value: bytes = b"1") -> Snapshot:
    table: dict[str, Versions] = {f"k{n}": (Version(value, "a", n + 1, n + 1, {}),) for n in range(keys)}
    return Snapshot(7, {"a": keys} if keys else {}, {"a": 1}, [Marker("a", 1, {})], table)


@given(st.integers(0, 12), st.integers(1, 2000))
def test_pieces_make_up_the_snapshot(keys: int, piece_bytes: int) -> None:
    pieces = list(cut("me", "name", snapshot_of(keys), piece_bytes))
    assert [piece.piece for piece in pieces] == list(range(len(pieces)))
    assert [piece.last for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    pull = SnapshotPull("me")
    assert all(pull.stage(piece) for piece in pieces)
    assert pull.snapshot() == snapshot_of(keys)


def test_what_is_sent_is_not_kept() -> None:
    snapshot = snapshot_of(100, b"x" * 580)
    pieces = cut("me", "name", snapshot, 10_000)
    sent = len(next(pieces).items or ())
    assert sent
    assert len(snapshot.table) <= 100 - sent


def test_pieces_have_about_the_requested_size() -> None:
    pieces = list(cut("me", "name", snapshot_of(100, b"x" * 580), 10_000))
    assert 9 <= len(pieces) <= 12
    assert max(len(piece.items) for piece in pieces) <= 10 + 1


def test_piece_out_of_order_is_not_staged() -> None:
    pieces = list(cut("me", "name", snapshot_of(3), 1))
    pull = SnapshotPull("me")
    assert not pull.stage(pieces[1])
    assert pull.stage(pieces[0])
    assert not pull.stage(pieces[0])
    assert not pull.stage(pieces[2])
    assert not pull.stage(SnapshotPiece("other", "name", 1, last=False))
    assert not pull.stage(SnapshotPiece("me", "another", 1, last=False))
    assert not pull.stage(SnapshotPiece("me", "", 1, last=True))
    assert pull.stage(pieces[1])


def test_sender_repeats_a_piece_until_the_next_is_requested() -> None:
    sender = SnapshotSender(2, 1)
    first = sender.begin("me", "you", snapshot_of(3), 0.0)
    name = first.snapshot
    assert sender.piece(SnapshotRequest("you", name, 0), 0.0) == first
    second = sender.piece(SnapshotRequest("you", name, 1), 0.0)
    assert second is not None
    assert sender.piece(SnapshotRequest("you", name, 1), 0.0) == second
    assert sender.piece(SnapshotRequest("you", name, 0), 0.0) is None
    assert sender.piece(SnapshotRequest("you", name, 3), 0.0) is None
    assert sender.piece(SnapshotRequest("else", name, 2), 0.0) is None
    assert sender.piece(SnapshotRequest("you", "unknown", 2), 0.0) is None


def test_sender_bounds_receivers_and_forgets_silent_ones() -> None:
    sender = SnapshotSender(1, 1)
    name = sender.begin("me", "you", snapshot_of(3), 0.0).snapshot
    assert sender.has_room("you")
    assert not sender.has_room("else")
    sender.piece(SnapshotRequest("you", name, 1), 20.0)
    sender.expire(40.0)
    assert not sender.has_room("else")
    sender.expire(60.0)
    assert sender.has_room("else")
    assert sender.piece(SnapshotRequest("you", name, 2), 60.0) is None


def test_a_snapshot_counts_as_given_once_its_last_piece_is_made() -> None:
    sender = SnapshotSender(1, 1)
    name = sender.begin("me", "you", snapshot_of(2), 0.0).snapshot
    assert sender.given == 0
    for _ in range(2):
        last = sender.piece(SnapshotRequest("you", name, 1), 0.0)
        assert last is not None
        assert last.last
        assert sender.given == 1


def paused(pauses: SnapshotPauses, took_s: float, times: int) -> list[float]:
    """Return the pauses after ``times`` pulls in a row, each of which begins as soon as it may."""
    at_s, found = 0.0, []
    for _ in range(times):
        begun_s = max(at_s, pauses.until_s)
        at_s = begun_s + took_s
        pauses.note(begun_s, at_s)
        found.append(max(0.0, pauses.until_s - at_s))
    return found


def test_the_first_snapshots_of_a_row_follow_at_once_and_later_ones_after_growing_pauses() -> None:
    found = paused(SnapshotPauses(ReplicationSettings()), 0.5, 20)
    assert found == pytest.approx([0, 0, 0, 0.5, 1, *[2] * 15])
    # In the long run, about a fifth of the time goes into snapshots.
    assert 0.5 * 100 / (0.5 * 100 + sum(paused(SnapshotPauses(ReplicationSettings()), 0.5, 100))) < 0.22


def test_a_pause_has_an_upper_bound_however_long_the_snapshot_and_the_row() -> None:
    assert max(paused(SnapshotPauses(ReplicationSettings()), 3600.0, 3000)) == 60.0


def test_a_row_ends_when_no_snapshot_begins_for_some_time() -> None:
    pauses = SnapshotPauses(ReplicationSettings())
    paused(pauses, 0.5, 6)
    begun_s = pauses.until_s + 10.1
    pauses.note(begun_s, begun_s + 0.5)
    assert pauses.until_s == begun_s + 0.5


def test_receiver_that_starts_again_replaces_its_earlier_snapshot() -> None:
    sender = SnapshotSender(1, 1)
    old = sender.begin("me", "you", snapshot_of(3), 0.0).snapshot
    new = sender.begin("me", "you", snapshot_of(3), 0.0).snapshot
    assert old != new
    assert sender.piece(SnapshotRequest("you", old, 1), 0.0) is None
    assert sender.piece(SnapshotRequest("you", new, 1), 0.0) is not None
