"""Recent changes: what they remember, what they forget, and the times of expiries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from store.recent import ENTRY_BYTES, RecentChanges

A, B = "a:1@1", "b:1@1"
PLENTY = 1_000_000


def test_touched_returns_the_keys_above_a_clock() -> None:
    recent = RecentChanges(PLENTY)
    recent.applied(A, 1, ("x",))
    recent.applied(B, 1, ("y", "z"))
    recent.applied(A, 2, ("w",))
    assert recent.touched({}, 0) == {"x", "y", "z", "w"}
    assert recent.touched({A: 1}, 0) == {"y", "z", "w"}
    assert recent.touched({A: 2, B: 1}, 0) == set()


def test_the_oldest_changes_are_forgotten_and_floors_say_so() -> None:
    recent = RecentChanges(5 * (2 * ENTRY_BYTES + 1))
    for counter in range(1, 8):
        recent.applied(A, counter, (str(counter),))
    assert recent.bytes <= recent.limit_bytes
    assert recent.touched({A: 1}, 0) is None
    assert recent.touched({A: 2}, 0) == {"3", "4", "5", "6", "7"}
    recent.applied(B, 1, ("y",))
    assert recent.touched({A: 2}, 0) is None
    assert recent.touched({A: 3}, 0) == {"4", "5", "6", "7", "y"}


def test_an_update_larger_than_the_limit_is_forgotten_at_once() -> None:
    recent = RecentChanges(ENTRY_BYTES)
    recent.applied(A, 1, ("x" * 1000,))
    assert recent.bytes == 0
    assert recent.touched({}, 0) is None
    assert recent.touched({A: 1}, 0) == set()


def test_a_joined_snapshot_raises_floors() -> None:
    recent = RecentChanges(PLENTY)
    recent.applied(A, 1, ("x",))
    recent.applied(B, 1, ("y",))
    recent.jumped(A, 5)
    assert recent.touched({A: 4, B: 1}, 0) is None
    assert recent.touched({A: 5}, 0) == {"y"}
    recent.applied(A, 6, ("z",))
    assert recent.touched({A: 5, B: 1}, 0) == {"z"}
    assert recent.bytes == 2 * (2 * ENTRY_BYTES + 1)


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
    recent = RecentChanges(2 * (2 * ENTRY_BYTES + 1))
    for deadline_us in (10, 20, 30):
        recent.expired(deadline_us, "x")
    assert recent.touched({}, 9) is None
    assert recent.touched({}, 10) == {"x"}


@given(st.lists(st.tuples(st.sampled_from([A, B, ""]), st.integers(1, 3)), max_size=60), st.integers(0, 4000))
def test_the_size_is_what_is_remembered(changes: list[tuple[str, int]], limit: int) -> None:
    recent, counters = RecentChanges(limit), {A: 0, B: 0}
    remembered: list[tuple[str, int, int]] = []
    for number, (origin, keys) in enumerate(changes):
        if origin:
            counters[origin] += 1
            recent.applied(origin, counters[origin], tuple(str(n) for n in range(keys)))
            remembered.append((origin, counters[origin], ENTRY_BYTES + keys * (ENTRY_BYTES + 1)))
        else:
            recent.expired(number + 1, "k")
            remembered.append(("", number + 1, 2 * ENTRY_BYTES + 1))
        while sum(size for _, _, size in remembered) > limit:
            remembered.pop(0)
        assert recent.bytes == sum(size for _, _, size in remembered) <= limit
    for origin, counter in counters.items():
        lowest = min([c for o, c, _ in remembered if o == origin], default=counter + 1) - 1
        full = {**counters, origin: lowest}
        assert recent.touched(full, len(changes)) is not None
        if lowest:
            assert recent.touched({**counters, origin: lowest - 1}, len(changes)) is None
