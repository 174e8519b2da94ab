"""Markers: when replicas issue them, and which clock entries they may replace."""

from __future__ import annotations

from store.clock import covers
from tests.support.wire import Wire, address, start_three


def test_metadata_does_not_grow_over_a_hundred_restarts(wire: Wire) -> None:
    start_three(wire)
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
    assert all(id_ in wire["r2"].membership.table.present for id_ in update.past)


def test_a_marker_is_used_only_once_every_member_has_it(wire: Wire) -> None:
    start_three(wire)
    old = wire.issue("r3", "x", b"1")
    wire.flow()
    wire.crash("r3")
    wire.start("r3", "r1", "r2")
    wire.exchange("r3", "r1")
    wire.isolate("r3")
    wire.flow(5.0)
    assert wire["r1"].store.markers.all()
    metadata = wire.get("r1", "x").metadata
    assert old.origin in metadata
    assert covers(wire["r3"].store.clock, metadata)


def test_every_member_covers_metadata_that_a_marker_has_simplified(wire: Wire) -> None:
    start_three(wire)
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


def test_a_dot_that_no_marker_covers_stays_in_the_metadata(wire: Wire) -> None:
    """r3's last update arrives only after the marker that covers its earlier ones."""
    start_three(wire)
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


def test_retired_entries_are_sent_only_if_their_digests_differ(wire: Wire) -> None:
    start_three(wire)
    wire.issue("r3", "x", b"1")
    wire.flow()
    wire.crash("r3")
    wire.start("r3", "r1", "r2")
    wire.flow(5.0)
    request, reply = wire.exchange("r1", "r2")
    assert request.retired is None
    assert reply.retired is None
    assert request.membership is None
    assert reply.membership is None
    assert request.clock.keys() <= wire["r1"].membership.table.present
    assert request.retired_digest == reply.retired_digest != 0


def test_a_removed_replica_issues_no_markers(wire: Wire) -> None:
    r1, _, r3 = start_three(wire)
    wire.issue("r2", "x", b"1")
    wire.flow(1.5)
    r1.remove_replica_from_view(address("r3"), wire.now("r1"))
    wire.flow(1.5)
    wire.crash("r2")
    wire.start("r2", "r1")
    wire.flow(5.0)
    assert r3.id not in r3.store.clock
