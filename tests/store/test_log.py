"""The update log: deltas are in order and without gaps, whatever the log has dropped."""

from __future__ import annotations

import errno
import gc
from mmap import PAGESIZE, mmap
from pathlib import Path
from typing import NoReturn

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.clock import Clock, covers
from store.log import EMPTY_DELTA, ENTRY_OVERHEAD_BYTES, MAX_SEGMENTS, Delta, UpdateLog
from store.settings import StoreSettings
from store.versions import Update, Write, decode_update, encode_update
from tests.support.updates import logged_updates

EVERYTHING = float("inf")
MIB = 1 << 20


def update(origin: str, counter: int, timestamp: int = 0, size: int = 0) -> Update:
    return Update(origin, counter, timestamp or counter, {}, (Write("k", b"x" * size),))


def cost(update: Update) -> int:
    return len(encode_update(update)) + ENTRY_OVERHEAD_BYTES


def filled(*updates: Update, limit_bytes: int = 10**5, at_s: float = 0.0, segment_bytes: int = 50) -> UpdateLog:
    log = UpdateLog(limit_bytes, segment_bytes)
    for each in updates:
        log.append(each, at_s)
    return log


def delta(
    log: UpdateLog,
    known: Clock,
    clock: Clock,
    *,
    relay_before_s: float = EVERYTHING,
    limit: int = 1000,
    limit_bytes: int = 10**9,
) -> Delta:
    return log.delta(known, clock, own="own", relay_before_s=relay_before_s, limit=limit, limit_bytes=limit_bytes)


def decoded(delta: Delta) -> list[Update]:
    return [decode_update(encoded) for encoded in delta.batch]


def dots(delta: Delta) -> list[tuple[str, int]]:
    return [update.dot for update in decoded(delta)]


def test_delta_is_what_is_above_the_known_clock() -> None:
    log = filled(*(update("own", n) for n in range(1, 6)))
    assert dots(delta(log, {"own": 3}, {"own": 5})) == [("own", 4), ("own", 5)]
    assert delta(log, {"own": 5}, {"own": 5}) == EMPTY_DELTA
    assert delta(log, {"own": 9}, {"own": 5}) == EMPTY_DELTA


def test_delta_merges_origins_by_timestamp() -> None:
    log = filled(update("a", 1, 10), update("a", 2, 40), update("b", 1, 20), update("b", 2, 30))
    assert dots(delta(log, {}, {"a": 2, "b": 2})) == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]


def test_limit_cuts_the_batch_and_sets_more() -> None:
    log = filled(*(update("own", n) for n in range(1, 6)))
    cut = delta(log, {}, {"own": 5}, limit=2)
    assert dots(cut) == [("own", 1), ("own", 2)]
    assert cut.more
    assert not delta(log, {}, {"own": 5}, limit=5).more


def test_byte_limit_cuts_but_allows_one_update() -> None:
    log = filled(*(update("own", n, size=1000) for n in range(1, 4)))
    size = len(encode_update(update("own", 1, size=1000)))
    assert len(delta(log, {}, {"own": 3}, limit_bytes=10).batch) == 1
    assert len(delta(log, {}, {"own": 3}, limit_bytes=2 * size).batch) == 2
    assert delta(log, {}, {"own": 3}, limit_bytes=10).more


def test_own_updates_are_sent_at_once_and_relayed_ones_after_a_delay() -> None:
    log = filled()
    log.append(update("a", 1), 1.0)
    log.append(update("a", 2), 5.0)
    log.append(update("own", 1), 5.0)
    assert dots(delta(log, {}, {"a": 2, "own": 1}, relay_before_s=2.0)) == [("a", 1), ("own", 1)]
    assert dots(delta(log, {}, {"a": 2, "own": 1}, relay_before_s=0.5)) == [("own", 1)]
    assert not delta(log, {}, {"a": 2}, relay_before_s=0.5).truncated


def test_delta_is_truncated_if_the_log_does_not_reach_back() -> None:
    log = filled(*(update("a", n) for n in range(1, 6)))
    log.trim({"a": 3})
    assert delta(log, {"a": 2}, {"a": 5}).truncated
    assert dots(delta(log, {"a": 3}, {"a": 5})) == [("a", 4), ("a", 5)]
    log.trim({"a": 5})
    assert log.origins() == []
    assert delta(log, {"a": 4}, {"a": 5}).truncated
    assert not delta(log, {"a": 5}, {"a": 5}).truncated


def test_truncated_origin_sends_nothing_and_others_everything() -> None:
    log = filled(update("a", 1), update("a", 2), update("b", 1))
    log.trim({"a": 1})
    cut = delta(log, {}, {"a": 2, "b": 1})
    assert dots(cut) == [("b", 1)]
    assert cut.truncated


def test_dropped_origin_continues_at_a_later_counter() -> None:
    log = filled(update("a", 1), update("b", 1))
    log.drop_origin("a")
    assert log.origins() == ["b"]
    log.drop_origin("unknown")
    log.append(update("a", 8), 0.0)
    assert delta(log, {"a": 1}, {"a": 8}).truncated
    assert dots(delta(log, {"a": 7}, {"a": 8})) == [("a", 8)]


def test_trim_below_the_log_drops_nothing() -> None:
    log = filled(update("a", 5), update("b", 1))
    log.trim({"a": 2})
    assert log.count == 2


def test_full_log_drops_the_oldest_updates_of_the_longest_origin() -> None:
    log = filled(update("b", 1), limit_bytes=3_000)
    for counter in range(1, 101):
        log.append(update("a", counter), 0.0)
        assert log.bytes <= 3_000
    assert "b" in log.origins()
    kept = [update.counter for update in logged_updates(log, "a")]
    assert 100 > kept[0] > 1
    assert kept == list(range(kept[0], 101))


def test_update_larger_than_the_log_leaves_it_empty() -> None:
    log = filled(limit_bytes=1_000)
    log.append(update("a", 1, size=5_000), 0.0)
    assert (log.count, log.bytes) == (0, 0)
    log.append(update("a", 2), 0.0)
    assert delta(log, {}, {"a": 2}).truncated
    assert dots(delta(log, {"a": 1}, {"a": 2})) == [("a", 2)]


steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "trim", "jump"]), st.sampled_from("ab"), st.integers(0, 8)
    ),
    max_size=40,
)


@given(
    steps,
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 30), max_size=2),
    st.integers(1, 6),
    st.sampled_from([1, 100, 300, 10**6]),
)
def test_log_has_no_gaps_and_deltas_are_exact(
    drawn: list[tuple[str, str, int]], known: Clock, limit: int, segment_bytes: int
) -> None:
    log = filled(limit_bytes=1_500, segment_bytes=segment_bytes)
    issued: dict[tuple[str, int], Update] = {}
    clock: Clock = {}
    for number, (step, origin, extra) in enumerate(drawn, 1):
        if step == "append":
            clock[origin] = clock.get(origin, 0) + 1
            new = issued[origin, clock[origin]] = update(origin, clock[origin], number, size=extra * 20)
            log.append(new, 0.0)
        elif step == "trim":
            log.trim({origin: extra})
        else:
            log.drop_origin(origin)
            clock[origin] = clock.get(origin, 0) + 1 + extra
        updates = [update for kept in log.origins() for update in logged_updates(log, kept)]
        for kept in log.origins():
            counters = [update.counter for update in updates if update.origin == kept]
            assert counters == list(range(clock[kept] - len(counters) + 1, clock[kept] + 1))
        assert log.bytes == sum(map(cost, updates)) <= 1_500
        assert log.count == len(updates)
        assert updates == [issued[update.dot] for update in updates]
        assert updates == [log.get(update.dot) for update in updates]

    found = delta(log, known, clock, limit=limit)
    after = dict(known)
    for each in decoded(found):
        assert each.counter == after.get(each.origin, 0) + 1
        after[each.origin] = each.counter
    assert len(found.batch) <= limit
    assert [u.timestamp for u in decoded(found)] == sorted(u.timestamp for u in decoded(found))
    if not found.truncated and not found.more:
        assert covers(after, clock)
    if found.more:
        assert not covers(after, clock)


def test_get_by_dot() -> None:
    log = filled(*(update("a", n) for n in range(1, 41)))
    log.trim({"a": 9})
    found = [log.get(("a", n)) for n in range(42)]
    assert found == [None] * 10 + [update("a", n) for n in range(10, 41)] + [None]
    assert log.get(("b", 1)) is None


def test_trimmed_updates_leave_no_bytes_in_memory() -> None:
    """Not even in a segment with other entries: the bytes may contain data that clients have deleted."""
    texts = [b"(text %d)" % n for n in range(1, 41)]
    log = filled(*(Update("a", n, n, {}, (Write("k", text),)) for n, text in enumerate(texts, 1)), segment_bytes=500)
    for last in (9, 17):
        log.trim({"a": last})
        assert segments_of(log) == 1
        stored = b"".join(texts_of(log))
        assert [text for text in texts if text in stored] == texts[last:]
        sent = b"".join(delta(log, {"a": last}, {"a": 40}).batch)
        assert [text for text in texts if text in sent] == texts[last:]


def texts_of(log: UpdateLog) -> list[bytes]:
    """Return all byte strings and mappings that the log keeps alive, those outside of entries included."""
    return [each[:] for each in reachable_from(log) if isinstance(each, bytes | mmap)]


def reachable_from(log: UpdateLog) -> list[object]:
    """Return all objects that the log keeps alive."""
    found: dict[int, object] = {}
    unseen: list[object] = [log]
    while unseen:
        each = unseen.pop()
        if id(each) not in found and not isinstance(each, type):
            found[id(each)] = each
            unseen += gc.get_referents(each)
            if isinstance(each, msgspec.Struct):  # The garbage collector may not know its fields.
                unseen += msgspec.structs.astuple(each)
    return list(found.values())


# -- memory ----------------------------------------------------------------------------------------


def mappings() -> int:
    return len(Path("/proc/self/maps").read_text(encoding="utf-8").splitlines())


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * PAGESIZE


def segments_of(log: UpdateLog) -> int:
    return sum(isinstance(each, mmap) for each in reachable_from(log))


@pytest.mark.linux
def test_kernel_merges_mappings_of_segments() -> None:
    before = mappings()
    log = filled(*(update("a", n, size=4_000) for n in range(1, 601)), limit_bytes=16 * MIB, segment_bytes=8_000)
    assert segments_of(log) == 300
    assert mappings() - before < 100


@pytest.mark.linux
def test_trim_returns_memory_to_the_system_within_a_segment() -> None:
    log = filled(*(update("a", n, size=1_000) for n in range(1, 20_001)), limit_bytes=100 * MIB, segment_bytes=9 * MIB)
    assert segments_of(log) == 2
    most = resident_bytes()
    for counter in range(1, 9_001):  # Each trim frees less than a page. The parts must add up.
        log.trim({"a": counter})
    assert segments_of(log) == 2
    assert most - resident_bytes() > 7 * MIB
    log.trim({"a": 20_000})
    assert most - resident_bytes() > 16 * MIB


@pytest.mark.parametrize("limit_bytes", [4 * MIB, 400 * MIB])
def test_number_of_segments_is_bounded(limit_bytes: int) -> None:
    """With 4 KiB each, 400 MiB would be 100,000 segments. Linux allows a process 65,530 mappings."""
    log = UpdateLog(limit_bytes, 4096)
    full = max(4096, limit_bytes // MAX_SEGMENTS)
    counter = 0
    while segments_of(log) < 2:
        counter += 1
        log.append(update("a", counter, size=500), 0.0)
    assert log.bytes == pytest.approx(2 * full * (1 + ENTRY_OVERHEAD_BYTES / 530), rel=0.1)
    assert StoreSettings().max_log_bytes // MAX_SEGMENTS < StoreSettings().log_segment_bytes, (
        "the default segment size is not raised"
    )


def test_log_works_without_memory_for_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = []

    def fail(*args: object, **_: object) -> NoReturn:
        attempts.append(args)
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    updates = [update("a", n, size=100) for n in range(1, 101)]
    log = filled(*updates[:20], segment_bytes=1_000)
    packed = segments_of(log)
    with monkeypatch.context() as patch:
        patch.setattr("store.log.mmap", fail)
        for each in updates[20:80]:
            log.append(each, 0.0)
        assert 1 < len(attempts) < 10, "tried again, but not at every update"
        assert segments_of(log) == packed
        assert logged_updates(log, "a") == updates[:80]
        log.trim({"a": 4})  # Within a segment: dropping updates needs no memory.
        assert logged_updates(log, "a") == updates[4:80]
        log.trim({"a": 40})
    for each in updates[80:]:
        log.append(each, 0.0)
    assert segments_of(log) > 0, "packed when there is memory again"
    assert logged_updates(log, "a") == updates[40:]
    assert log.bytes == sum(map(cost, updates[40:]))


# -- the reserve -----------------------------------------------------------------------------------------------------


def test_the_log_grows_by_its_reserve_and_no_further_and_shrinks_when_the_reserve_ends() -> None:
    one = cost(update("own", 1, size=100))
    log = UpdateLog(10 * one, 50)
    log.set_reserve(30 * one)
    for counter in range(1, 36):
        log.append(update("own", counter, size=100), 0.0)
    assert log.count == 35
    for counter in range(36, 500):
        log.append(update("own", counter, size=100), 0.0)
        assert log.bytes <= 40 * one + one
    log.set_reserve(5 * one)
    assert log.bytes <= 15 * one
    log.set_reserve(0)
    assert log.bytes <= 10 * one
    assert dots(delta(log, {"own": 498}, {"own": 499})) == [("own", 499)]


def test_the_estimate_of_what_a_peer_lacks_counts_only_what_the_log_has() -> None:
    log = filled(*[update("own", n, size=50) for n in range(1, 11)], *[update("b", n, size=50) for n in range(1, 11)])
    assert log.estimate_above({}) == log.bytes
    assert log.estimate_above({"own": 10, "b": 10}) == log.estimate_above({"own": 12, "b": 99, "c": 5}) == 0
    assert log.estimate_above({"own": 5, "b": 10}) == log.bytes // 4
    log.trim({"own": 8, "b": 10})
    assert log.estimate_above({}) == log.bytes
    assert UpdateLog(100, 50).estimate_above({}) == 0
