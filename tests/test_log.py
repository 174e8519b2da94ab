"""The log: what it hands out is in order and without a gap, whatever was cut off."""

from __future__ import annotations

import gc

from hypothesis import given
from hypothesis import strategies as st

from store.clock import Clock, covers
from store.log import ENTRY_BYTES, NOTHING, Delta, UpdateLog
from store.versions import Update, Write, decode_update, encode_update

EVERYTHING = float("inf")


def update(origin: str, counter: int, timestamp: int = 0, size: int = 0) -> Update:
    return Update(origin, counter, timestamp or counter, {}, (Write("k", b"x" * size),))


def cost(update: Update) -> int:
    return len(encode_update(update)) + ENTRY_BYTES


def filled(*updates: Update, limit_bytes: int = 10**9, at_s: float = 0.0, segment_bytes: int = 50) -> UpdateLog:
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


def test_a_delta_is_what_is_above_the_known_clock() -> None:
    log = filled(*(update("own", n) for n in range(1, 6)))
    assert dots(delta(log, {"own": 3}, {"own": 5})) == [("own", 4), ("own", 5)]
    assert delta(log, {"own": 5}, {"own": 5}) == NOTHING
    assert delta(log, {"own": 9}, {"own": 5}) == NOTHING


def test_updates_of_several_origins_come_in_the_order_of_their_timestamps() -> None:
    log = filled(update("a", 1, 10), update("a", 2, 40), update("b", 1, 20), update("b", 2, 30))
    assert dots(delta(log, {}, {"a": 2, "b": 2})) == [("a", 1), ("b", 1), ("b", 2), ("a", 2)]


def test_a_limit_cuts_at_the_end_and_says_so() -> None:
    log = filled(*(update("own", n) for n in range(1, 6)))
    cut = delta(log, {}, {"own": 5}, limit=2)
    assert dots(cut) == [("own", 1), ("own", 2)]
    assert cut.more
    assert not delta(log, {}, {"own": 5}, limit=5).more


def test_a_byte_limit_cuts_too_but_one_update_always_goes() -> None:
    log = filled(*(update("own", n, size=1000) for n in range(1, 4)))
    size = len(encode_update(update("own", 1, size=1000)))
    assert len(delta(log, {}, {"own": 3}, limit_bytes=10).batch) == 1
    assert len(delta(log, {}, {"own": 3}, limit_bytes=2 * size).batch) == 2
    assert delta(log, {}, {"own": 3}, limit_bytes=10).more


def test_others_updates_go_only_when_they_were_applied_before_a_time_and_ones_own_at_once() -> None:
    log = filled()
    log.append(update("a", 1), 1.0)
    log.append(update("a", 2), 5.0)
    log.append(update("own", 1), 5.0)
    assert dots(delta(log, {}, {"a": 2, "own": 1}, relay_before_s=2.0)) == [("a", 1), ("own", 1)]
    assert dots(delta(log, {}, {"a": 2, "own": 1}, relay_before_s=0.5)) == [("own", 1)]
    assert not delta(log, {}, {"a": 2}, relay_before_s=0.5).truncated


def test_a_peer_below_what_is_left_is_told_that_it_needs_a_snapshot() -> None:
    log = filled(*(update("a", n) for n in range(1, 6)))
    log.trim({"a": 3})
    assert delta(log, {"a": 2}, {"a": 5}).truncated
    assert dots(delta(log, {"a": 3}, {"a": 5})) == [("a", 4), ("a", 5)]
    log.trim({"a": 5})
    assert log.origins() == []
    assert delta(log, {"a": 4}, {"a": 5}).truncated
    assert not delta(log, {"a": 5}, {"a": 5}).truncated


def test_of_an_origin_that_is_cut_off_nothing_goes_but_of_the_others_all() -> None:
    log = filled(update("a", 1), update("a", 2), update("b", 1))
    log.trim({"a": 1})
    cut = delta(log, {}, {"a": 2, "b": 1})
    assert dots(cut) == [("b", 1)]
    assert cut.truncated


def test_an_origin_that_jumped_starts_anew() -> None:
    log = filled(update("a", 1), update("b", 1))
    log.restart("a")
    assert log.origins() == ["b"]
    log.restart("unknown")
    log.append(update("a", 8), 0.0)
    assert delta(log, {"a": 1}, {"a": 8}).truncated
    assert dots(delta(log, {"a": 7}, {"a": 8})) == [("a", 8)]


def test_trimming_to_a_floor_that_is_below_the_log_or_unknown_forgets_nothing() -> None:
    log = filled(update("a", 5), update("b", 1))
    log.trim({"a": 2})
    assert log.count == 2


def test_a_log_stays_within_its_bytes_by_forgetting_the_oldest_of_who_has_most() -> None:
    log = filled(update("b", 1), limit_bytes=3_000)
    for counter in range(1, 101):
        log.append(update("a", counter), 0.0)
        assert log.bytes <= 3_000
    assert "b" in log.origins()
    kept = [update.counter for update in log.updates("a")]
    assert 100 > kept[0] > 1
    assert kept == list(range(kept[0], 101))


def test_an_update_larger_than_the_whole_log_leaves_it_empty_and_not_broken() -> None:
    log = filled(limit_bytes=1_000)
    log.append(update("a", 1, size=5_000), 0.0)
    assert (log.count, log.bytes) == (0, 0)
    log.append(update("a", 2), 0.0)
    assert delta(log, {}, {"a": 2}).truncated
    assert dots(delta(log, {"a": 1}, {"a": 2})) == [("a", 2)]


steps = st.lists(
    st.tuples(
        st.sampled_from(["append", "append", "append", "trim", "restart"]), st.sampled_from("ab"), st.integers(0, 8)
    ),
    max_size=40,
)


@given(
    steps,
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 30), max_size=2),
    st.integers(1, 6),
    st.sampled_from([1, 100, 300, 10**6]),
)
def test_the_log_is_a_window_without_gaps_and_a_delta_is_exactly_what_is_lacking(
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
            log.restart(origin)
            clock[origin] = clock.get(origin, 0) + 1 + extra
        updates = [update for kept in log.origins() for update in log.updates(kept)]
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


def test_an_update_is_found_by_its_dot_for_as_long_as_it_is_there() -> None:
    log = filled(*(update("a", n) for n in range(1, 41)))
    log.trim({"a": 9})
    found = [log.get(("a", n)) for n in range(42)]
    assert found == [None] * 10 + [update("a", n) for n in range(10, 41)] + [None]
    assert log.get(("b", 1)) is None


def test_nothing_of_what_was_trimmed_stays_in_memory() -> None:
    """Not even in a segment that is still needed: it may hold the key of something that was deleted."""
    log = filled(*(update("a", n, size=n) for n in range(1, 41)), segment_bytes=10**3)
    log.trim({"a": 17})
    assert b"x" * 18 in b"".join(delta(log, {"a": 17}, {"a": 40}).batch)
    held = texts_of(log)
    assert sum(map(len, held)) == sum(len(encode_update(update("a", n, size=n))) for n in range(18, 41))


def texts_of(log: UpdateLog) -> list[bytes]:
    """Return all bytes that the log holds, piece by piece."""
    found: dict[int, bytes] = {}
    seen: set[int] = set()
    todo: list[object] = [log]
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, type):
            continue
        seen.add(id(each))
        if isinstance(each, bytes):
            found[id(each)] = each
        elif isinstance(each, memoryview) and each.format == "B":
            found[id(each)] = bytes(each)
        todo += gc.get_referents(each)
    return list(found.values())
