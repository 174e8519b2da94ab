"""The status has a bound, whatever clients and peers have sent (docs/limits.md)."""

from __future__ import annotations

import msgspec

from replication.status import (
    MAX_CLOCK_ENTRIES_LISTED,
    MAX_KEY_CHARS_LISTED,
    MAX_KEYS_LISTED,
    MAX_PENDING_LISTED,
    recent_updates,
    replica_status,
)
from store.engine import Engine
from store.settings import StoreSettings
from store.versions import MAX_ID_CHARACTERS, Update, Write
from tests.support.wire import Wire


def status_bytes(wire: Wire, name: str) -> tuple[dict[str, object], int]:
    replica = wire[name]
    counters = {**Engine(replica.store).stats(), "exchanges": 0, "exchanges_answered": 0, "exchange_failures": 0}
    content = replica_status(replica, {**counters, "messages_refused": 0}, wire.now(name))
    return content, len(msgspec.json.encode(content))


def test_many_pending_updates_with_long_ids_and_keys() -> None:
    """2,000 updates of the longest ids wait, each with 20 keys of 64 KiB (the longest that a setting allows)."""
    wire = Wire(store_settings=StoreSettings(max_pending=10_000, max_pending_bytes=1 << 40))
    wire.start("r1")
    writes = tuple(Write(f"{n:065536}", b"1") for n in range(20))
    updates = [
        Update(f"{n:0{MAX_ID_CHARACTERS}}", 2, 1, {}, writes if n < 500 else (Write(f"short{n}", b"1"),))
        for n in range(2_000)
    ]
    wire["r1"].store.receive(updates, wire.now("r1"))
    content, size = status_bytes(wire, "r1")
    assert content["pending_count"] == 2_000
    pending = content["pending"]
    assert isinstance(pending, list)
    assert len(pending) == MAX_PENDING_LISTED
    assert max(len(each["keys"]) for each in pending) <= MAX_KEYS_LISTED
    assert sum(len(key) for each in pending for key in each["keys"]) <= MAX_KEY_CHARS_LISTED
    assert size < MAX_KEY_CHARS_LISTED + MAX_PENDING_LISTED * (2 * MAX_ID_CHARACTERS + 200) + 65_536


def test_many_members_with_large_clocks() -> None:
    """100 members whose clocks have 1,000 entries each."""
    wire = Wire()
    wire.cluster("r1", "r2")
    replica = wire["r1"]
    large = {f"gone{n}:80@{n:016x}": 1 for n in range(1_000)}
    for n in range(100):
        assert replica.add_replica_from_view(f"member{n}:80", wire.now("r1"))
    for address in replica.membership.table.others:
        peer = replica.peers.at(address)
        peer.acked.clock = large
        peer.acked.replica = replica.membership.table.present_id(address) or ""
    content, _ = status_bytes(wire, "r1")
    view = content["view"]
    assert isinstance(view, list)
    assert len(view) == 102
    assert sum(len(member["clock"]) for member in view) <= MAX_CLOCK_ENTRIES_LISTED


def test_recent_updates_keep_their_keys_when_the_log_has_dropped_them() -> None:
    wire = Wire()
    r1, r2 = wire.cluster("r1", "r2")
    overwritten = wire.issue("r1", "a", b"1")
    wire.issue("r1", "b", b"2")
    wire.issue("r1", "a", b"3")
    wire.issue("r2", "c", b"4")
    assert [each["key"] for each in recent_updates(r1, 3)] == ["a", "b", "a"], "the log has all of them"
    wire.flow(3)
    assert r1.store.log.get(overwritten.dot) is None, "every member has it"
    for replica in (r1, r2):
        keys = {tuple(each["dot"]): each["key"] for each in recent_updates(replica, 10)}
        assert keys == {(r1.id, 1): None, (r1.id, 2): "b", (r1.id, 3): "a", (r2.id, 1): "c"}
