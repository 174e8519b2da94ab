"""Vector clocks, replica ids and hybrid time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store.clock import (
    MAX_INCARNATION,
    Clock,
    HybridClock,
    Instant,
    address_of,
    count_missing,
    covers,
    incarnation_of,
    join,
    join_into,
    missing,
    replica_id,
)

clocks = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 5), max_size=4)


@given(clocks, clocks, clocks)
def test_join_is_commutative_associative_and_idempotent(a: Clock, b: Clock, c: Clock) -> None:
    assert join(a, b) == join(b, a)
    assert join(a, join(b, c)) == join(join(a, b), c)
    assert join(a, a) == a


@given(clocks, clocks)
def test_join_is_the_least_clock_covering_both(a: Clock, b: Clock) -> None:
    joined = join(a, b)
    assert covers(joined, a)
    assert covers(joined, b)
    for replica, counter in joined.items():
        less = {**joined, replica: counter - 1}
        assert not (covers(less, a) and covers(less, b))


@given(clocks, clocks)
def test_clock_describes_a_set_of_dots(a: Clock, b: Clock) -> None:
    def dots(clock: Clock) -> set[tuple[str, int]]:
        return {(replica, n) for replica, last in clock.items() for n in range(1, last + 1)}

    assert covers(a, b) == (dots(a) >= dots(b))
    assert dots(join(a, b)) == dots(a) | dots(b)


@given(clocks, clocks)
def test_missing_returns_here_and_needed(a: Clock, b: Clock) -> None:
    gaps = missing(a, b)
    assert bool(gaps) != covers(a, b)
    for replica, (have, need) in gaps.items():
        assert (have, need) == (a.get(replica, 0), b[replica])
        assert have < need
    assert count_missing(a, b) == sum(max(0, n - a.get(replica, 0)) for replica, n in b.items())


@given(clocks, clocks)
def test_join_changes_no_argument_and_join_into_only_the_first(a: Clock, b: Clock) -> None:
    before_a, before_b = dict(a), dict(b)
    joined = join(a, b)
    assert (a, b) == (before_a, before_b)
    join_into(a, b)
    assert a == joined
    assert b == before_b


def test_empty_clock_is_covered_by_all() -> None:
    assert covers({}, {})
    assert covers({"a": 1}, {})
    assert not covers({}, {"a": 1})


@pytest.mark.parametrize("address", ["127.0.0.1:8090", "[::1]:8090", "my_replica:1", "user@host:80"])
@pytest.mark.parametrize("incarnation", [0, 1, 0xABCDEF, MAX_INCARNATION])
def test_replica_id_contains_address_and_incarnation(address: str, incarnation: int) -> None:
    replica = replica_id(address, incarnation)
    assert address_of(replica) == address
    assert incarnation_of(replica) == incarnation
    assert len(replica) == len(address) + 17


@pytest.mark.parametrize(
    "text", ["", "nonsense", "@", "host:80@", "host:80@12", "host:80@" + "g" * 16, "host:80@" + "1" * 17]
)
def test_other_texts_have_no_incarnation(text: str) -> None:
    assert incarnation_of(text) == 0


@given(st.text(max_size=40))
def test_any_text_can_be_parsed_as_replica_id(text: str) -> None:
    assert isinstance(address_of(text), str)
    assert isinstance(incarnation_of(text), int)


def at(wall_us: int) -> Instant:
    return Instant(0.0, wall_us)


@given(
    st.lists(
        st.tuples(st.sampled_from(["stamp", "read", "observe"]), st.integers(0, 1000), st.integers(0, 2000)),
        max_size=30,
    )
)
def test_hybrid_time_never_goes_back_and_stamps_rise(steps: list[tuple[str, int, int]]) -> None:
    """Even if the wall clock jumps and other replicas send any timestamps."""
    clock, highest = HybridClock(), 0
    for step, wall_us, timestamp in steps:
        if step == "stamp":
            stamp = clock.stamp(at(wall_us))
            assert stamp > highest
            highest = stamp
        elif step == "read":
            time = clock.read(at(wall_us))
            assert time >= highest
            highest = time
        else:
            clock.observe(timestamp, at(wall_us))
            highest = max(highest, timestamp)
        assert clock.read(at(wall_us)) >= wall_us


def test_hybrid_time_runs_at_real_speed_after_a_wrong_clock() -> None:
    clock = HybridClock()
    clock.observe(10_000_000, at(1_000_000))
    assert clock.lead_us == 9_000_000
    assert clock.read(at(1_500_000)) == 10_500_000
    assert clock.stamp(at(2_000_000)) == 11_000_000


def test_wall_clock_set_back_does_not_stop_hybrid_time() -> None:
    clock = HybridClock()
    first = clock.stamp(at(5_000_000))
    second = clock.stamp(at(1_000_000))
    assert second == first + 1
    assert clock.read(at(2_000_000)) == second + 1_000_000


def test_stamps_of_the_same_moment_differ() -> None:
    clock = HybridClock()
    assert len({clock.stamp(at(7)) for _ in range(100)}) == 100


# -- jumps of the wall clock -------------------------------------------------------------------------------------------

HOUR_US = 3600 * 1_000_000
DAY_US = 24 * HOUR_US


def reading(seconds: float, ahead_us: int = 0) -> Instant:
    """Return the reading ``seconds`` after the start, with a wall clock that is ``ahead_us`` ahead."""
    return Instant(50.0 + seconds, 1_700_000_000_000_000 + round(seconds * 1e6) + ahead_us)


def test_a_jump_ahead_moves_hybrid_time_by_its_lead_at_most() -> None:
    clock = HybridClock()
    clock.stamp(reading(0))
    for n, ahead_us in enumerate((2 * DAY_US, 40 * DAY_US, 0, 20 * HOUR_US, 365 * DAY_US), start=1):
        assert clock.stamp(reading(n, ahead_us)) <= reading(n).wall_us + 12 * HOUR_US + 5, "jumps do not add up"
    assert clock.stamp(reading(3600, 365 * DAY_US)) - clock.stamp(reading(0, 365 * DAY_US)) <= 2 * HOUR_US


def test_a_jump_of_some_hours_is_followed() -> None:
    clock = HybridClock()
    clock.stamp(reading(0))
    assert clock.read(reading(1, 11 * HOUR_US)) == reading(1, 11 * HOUR_US).wall_us


def test_a_process_that_has_nothing_yet_follows_every_jump() -> None:
    """A machine may start in 1970, before its clock is set."""
    clock = HybridClock()
    clock.read(reading(0, -50 * 365 * DAY_US))
    assert clock.stamp(reading(1)) == reading(1).wall_us


def test_a_confirmed_wall_clock_is_followed_again() -> None:
    clock = HybridClock()
    clock.stamp(reading(0, -50 * 365 * DAY_US))
    assert clock.read(reading(1)) < reading(1).wall_us - DAY_US
    clock.trust(reading(2))
    assert clock.stamp(reading(3)) == reading(3).wall_us


def test_hybrid_time_goes_back_with_the_wall_clock_but_never_below_an_update() -> None:
    clock = HybridClock()
    clock.read(reading(0, 40 * DAY_US))
    assert clock.read(reading(1)) == reading(0, 40 * DAY_US).wall_us
    clock.forget_lead(reading(2))
    assert clock.stamp(reading(3)) == reading(3).wall_us
    clock.observe_kept(reading(4, 3 * HOUR_US).wall_us, reading(4))
    clock.forget_lead(reading(5))
    assert clock.stamp(reading(6)) > reading(4, 3 * HOUR_US).wall_us


def test_the_time_of_a_message_is_no_reason_to_jump_but_the_timestamp_of_an_update_is() -> None:
    clock = HybridClock()
    clock.stamp(reading(0))
    clock.observe(reading(1, 20 * HOUR_US).wall_us, reading(1))
    assert clock.read(reading(1)) == reading(1).wall_us + 12 * HOUR_US
    clock.observe_kept(reading(2, 20 * HOUR_US).wall_us, reading(2))
    assert clock.stamp(reading(2)) > reading(2, 20 * HOUR_US).wall_us
    assert clock.highest_kept_us > reading(2, 20 * HOUR_US).wall_us
