"""Recent changes: what they remember, what they forget, and the times of expiries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from store.recent import ENTRY_BYTES, MAX_ENDED, RecentChanges

A, B = "a:1@1", "b:1@1"
PLENTY = 1_000_000


def test_touched_returns_the_keys_above_a_clock() -> None:
    recent = RecentChanges(PLENTY)
    recent.applied(A, 1, {}, "x")
    for key in "yz":
        recent.applied(B, 1, {}, key)
    recent.applied(A, 2, {}, "w")
    assert recent.touched({}, 0) == {"x", "y", "z", "w"}
    assert recent.touched({A: 1}, 0) == {"y", "z", "w"}
    assert recent.touched({A: 2, B: 1}, 0) == set()


def test_only_the_latest_update_of_a_key_is_remembered() -> None:
    recent = RecentChanges(PLENTY)
    for counter in range(1, 1001):
        recent.applied(A, counter, {}, f"{counter % 3}")
    assert recent.bytes == 3 * (ENTRY_BYTES + 1)
    assert recent.touched({A: 997}, 0) == {"0", "1", "2"}
    assert recent.touched({A: 998}, 0) == {"0", "1"}
    assert recent.touched({A: 1000}, 0) == set()
    assert recent.touched({}, 0) == {"0", "1", "2"}


def test_the_oldest_changes_are_forgotten_and_floors_say_so() -> None:
    recent = RecentChanges(5 * (ENTRY_BYTES + 1))
    for counter in range(1, 8):
        recent.applied(A, counter, {}, str(counter))
        assert recent.bytes <= recent.limit_bytes
    known = next(n for n in range(8) if recent.touched({A: n}, 0) is not None)
    assert 2 <= known <= 4
    assert recent.touched({A: known}, 0) == {str(n) for n in range(known + 1, 8)}
    assert recent.touched({A: known - 1}, 0) is None


def test_the_origin_with_the_most_keys_is_forgotten_first() -> None:
    recent = RecentChanges(10 * (ENTRY_BYTES + 2))
    recent.applied(B, 1, {}, "b")
    for counter in range(1, 50):
        recent.applied(A, counter, {}, f"{counter:02}")
    assert recent.touched({A: 49}, 0) == {"b"}


def test_an_update_larger_than_the_limit_is_forgotten_at_once() -> None:
    recent = RecentChanges(ENTRY_BYTES)
    recent.applied(A, 1, {}, "x" * 1000)
    assert recent.bytes == 0
    assert recent.touched({}, 0) is None
    assert recent.touched({A: 1}, 0) == set()


def test_a_joined_snapshot_raises_floors() -> None:
    recent = RecentChanges(PLENTY)
    recent.applied(A, 1, {}, "x")
    recent.applied(B, 1, {}, "y")
    recent.jumped(A, 5)
    assert recent.touched({A: 4, B: 1}, 0) is None
    assert recent.touched({A: 5}, 0) == {"y"}
    recent.applied(A, 6, {}, "z")
    assert recent.touched({A: 5, B: 1}, 0) == {"z"}
    assert recent.bytes == 2 * (ENTRY_BYTES + 1)


def test_expiries_are_told_to_those_who_have_seen_an_earlier_time() -> None:
    recent = RecentChanges(PLENTY)
    seen = recent.expiry_time(100)
    recent.expired(150, "x")
    assert recent.touched({}, seen) == {"x"}
    assert recent.touched({}, recent.expiry_time(150)) == set()


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 3)), min_size=1))
def test_every_expiry_is_told_once_whatever_the_wall_clock_does(steps: list[tuple[int, int]]) -> None:
    """Steps of the wall clock, and how many versions with a deadline at that time expire after each."""
    recent, now_us, seen, told, expired = RecentChanges(PLENTY), 1000, 0, [], []
    for number, (step, count) in enumerate(steps):
        now_us += step
        for each in range(count):
            key = f"{number}.{each}"
            expired.append(key)
            recent.expired(now_us, key)
        told += sorted(recent.touched({}, seen) or ())
        seen = recent.expiry_time(now_us)
    assert told == expired


def test_forgotten_expiries() -> None:
    recent = RecentChanges(2 * (ENTRY_BYTES + 1))
    for deadline_us, key in ((10, "x"), (20, "y"), (30, "z")):
        recent.expired(deadline_us, key)
    assert recent.touched({}, 9) is None
    assert recent.touched({}, 29) == {"z"}


def test_an_update_replaces_those_of_its_causal_past() -> None:
    """A clock that lacks the earlier one lacks the later one too, because clocks are causally closed."""
    recent = RecentChanges(PLENTY)
    recent.applied(A, 1, {}, "x")
    recent.applied(A, 2, {}, "y")
    for key in "xy":
        recent.applied(B, 1, {A: 1}, key)
    assert recent.bytes == 3 * (ENTRY_BYTES + 1)
    assert recent.touched({}, 0) == {"x", "y"}
    assert recent.touched({A: 1}, 0) == {"x", "y"}
    assert recent.touched({A: 1, B: 1}, 0) == {"y"}
    assert recent.touched({A: 2, B: 1}, 0) == set()


def test_only_the_last_ended_incarnations_are_remembered() -> None:
    recent = RecentChanges(PLENTY)
    ids = [f"a:1@{number}" for number in range(MAX_ENDED + 3)]
    for number, origin in enumerate(ids):
        recent.applied(origin, 1, {}, f"{number}")
        recent.applied(origin, 2, {}, f"{number}")
    recent.expired(5, "z")
    recent.forget_ended(ids[-1:])
    full = dict.fromkeys(ids, 2)
    assert recent.touched({**full, ids[1]: 1}, 9) is None
    assert recent.touched({**full, ids[2]: 1}, 9) == {"2"}
    assert recent.touched(full, 4) == {"z"}
    assert recent.bytes == (MAX_ENDED + 2) * (ENTRY_BYTES + 1)


@given(st.lists(st.tuples(st.sampled_from([A, B, ""]), st.lists(st.sampled_from("vwxyz"), min_size=1, unique=True))))
def test_what_is_remembered_is_right_and_within_the_limit(changes: list[tuple[str, list[str]]]) -> None:
    limit = 6 * (ENTRY_BYTES + 1)
    recent, counters = RecentChanges(limit), {A: 0, B: 0}
    log: list[tuple[str, int, str]] = []
    for origin, keys in changes:
        if origin:
            counters[origin] += 1
            for key in keys:
                recent.applied(origin, counters[origin], {}, key)
            log += [(origin, counters[origin], key) for key in keys]
        else:
            recent.expired(0, keys[0])
            log.append(("", recent.expiry_time(0), keys[0]))
        assert recent.bytes <= limit
    now = recent.expiry_time(0)
    for a in range(counters[A] + 1):
        for time in {0, now // 2, now}:
            known = {A: a, B: counters[B], "": time}
            touched = recent.touched({A: a, B: counters[B]}, time)
            if touched is not None:
                assert touched == {key for origin, counter, key in log if counter > known[origin]}
    assert recent.touched(counters, now) == set()


@given(st.lists(st.tuples(st.sampled_from([A, B]), st.sampled_from("uvwxyz")), max_size=40), st.data())
def test_copies_have_what_is_touched_and_counting_agrees(writes: list[tuple[str, str]], data: st.DataObject) -> None:
    recent, counters = RecentChanges(PLENTY), {A: 0, B: 0}
    for origin, key in writes:
        counters[origin] += 1
        recent.applied(origin, counters[origin], {}, key)
    clock = {origin: data.draw(st.integers(0, counter)) for origin, counter in counters.items()}
    copies = recent.copy_since(clock, 0)
    assert copies is not None
    wanted = {key for copy in copies for key, n in zip(copy.keys, copy.counters, strict=True) if n > copy.known}
    assert wanted == recent.touched(clock, 0)
    assert all(copy.counters == sorted(copy.counters) for copy in copies)
    most = max((sum(n > copy.known for n in copy.counters) for copy in copies), default=0)
    for count in range(8):
        assert recent.touches_more(clock, 0, count) == (most > count)


def test_forgotten_changes_are_not_copied() -> None:
    recent = RecentChanges(3 * (ENTRY_BYTES + 1))
    for counter in range(1, 8):
        recent.applied(A, counter, {}, str(counter))
    assert recent.copy_since({}, 0) is None
    assert recent.copy_since({A: 7}, 0) == []


def test_the_changes_of_a_key_are_those_that_no_other_one_follows() -> None:
    recent = RecentChanges(PLENTY)
    assert recent.of_key("x") == ({}, None, True)
    recent.applied(A, 1, {}, "x")
    recent.applied(B, 1, {}, "x")
    assert recent.of_key("x").updates == {(A, 1): False, (B, 1): False}
    recent.applied(B, 2, {A: 1}, "x")
    recent.expired(77, "x")
    assert recent.of_key("x") == ({(B, 2): False}, 77, True)
    recent.jumped(A, 9)
    assert recent.of_key("x") == ({(B, 2): False}, 77, False)


def test_whether_an_update_deleted_the_key_is_remembered_without_another_entry() -> None:
    recent = RecentChanges(PLENTY)
    recent.applied(A, 1, {}, "x", deletes=True)
    assert recent.of_key("x").updates == {(A, 1): True}
    size = recent.bytes
    recent.applied(A, 2, {}, "x")
    assert recent.of_key("x").updates == {(A, 2): False}, "the last update of the key counts"
    recent.applied(A, 3, {}, "x", deletes=True)
    recent.applied(B, 1, {}, "x")
    assert recent.of_key("x").updates == {(A, 3): True, (B, 1): False}
    assert [type(counter) for _, counter in recent.of_key("x").updates] == [int, int]
    recent.applied(B, 2, {A: 3}, "x", deletes=True)
    assert (recent.of_key("x").updates, recent.bytes) == ({(B, 2): True}, size)
    assert recent.touched({A: 3, B: 1}, 0) == {"x"}
    assert recent.touched({A: 3, B: 2}, 0) == set()


def test_the_keys_of_updates_are_found_within_a_limit() -> None:
    recent = RecentChanges(PLENTY)
    recent.applied(A, 1, {}, "gone")
    for key in ("first", "second"):
        recent.applied(A, 2, {}, key)
    recent.applied(A, 3, {}, "gone")
    recent.applied(B, 1, {}, "b")
    wanted = [(A, 1), (A, 2), (A, 3), (B, 1), ("other@1", 1)]
    assert recent.keys_of(wanted, 10) == {(A, 2): "first", (A, 3): "gone", (B, 1): "b"}
    assert recent.keys_of(wanted, 1) == {(A, 3): "gone", (B, 1): "b"}
    assert recent.keys_of([(A, 3)], 10) == {(A, 3): "gone"}
