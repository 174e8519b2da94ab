"""Pacing: the interval between exchanges, from round trip times and wakeup delays."""

from __future__ import annotations

import pytest

from replication.pacing import MAX_WAKEUPS, MIN_WAKEUPS, WINDOW_S, Pacing
from replication.settings import ReplicationSettings

SETTINGS = ReplicationSettings(pace_s=0.004, pace_round_trips=2.0, pace_times_late=50.0, max_pace_s=0.06)


def paced(*delays_ms: float, every_s: float = 0.01, until_s: float = 100.0) -> Pacing:
    """Return a Pacing with these wakeup delays, ``every_s`` apart, the last one at ``until_s``."""
    pacing = Pacing(SETTINGS)
    for number, delay_ms in enumerate(delays_ms):
        pacing.record_wakeup(delay_ms / 1000, until_s - every_s * (len(delays_ms) - 1 - number))
    return pacing


def test_without_measurements_the_interval_is_the_minimum() -> None:
    assert Pacing(SETTINGS).interval_s(0.0, 100.0) == 0.004


@pytest.mark.parametrize(("round_trip_s", "interval_s"), [(0.001, 0.004), (0.003, 0.006), (0.5, 0.06)])
def test_the_interval_grows_with_the_round_trip_within_bounds(round_trip_s: float, interval_s: float) -> None:
    assert Pacing(SETTINGS).interval_s(round_trip_s, 100.0) == pytest.approx(interval_s)


@pytest.mark.parametrize(("delay_ms", "interval_s"), [(0.05, 0.004), (0.2, 0.01), (1.0, 0.05), (9.0, 0.06)])
def test_the_interval_grows_with_the_wakeup_delay_within_bounds(delay_ms: float, interval_s: float) -> None:
    assert paced(*[delay_ms] * 8).interval_s(0.0, 100.0) == pytest.approx(interval_s)


def test_the_longer_of_both_intervals_counts() -> None:
    assert paced(*[0.2] * 8).interval_s(0.01, 100.0) == pytest.approx(0.02)
    assert paced(*[0.8] * 8).interval_s(0.01, 100.0) == pytest.approx(0.04)


def test_a_delay_of_half_of_the_wakeups_changes_nothing() -> None:
    """A garbage collection or another process: the mean of these is 5 ms, which would give the maximum."""
    assert paced(*[0.1, 10.0] * 10).interval_s(0.0, 100.0) == pytest.approx(0.005)


def test_a_few_wakeups_in_time_change_nothing() -> None:
    assert paced(*[0.1, 1.0, 1.0, 1.0, 1.0, 1.0] * 4).interval_s(0.0, 100.0) == pytest.approx(0.05)


def test_old_wakeups_do_not_count() -> None:
    busy = paced(*[2.0] * MAX_WAKEUPS)
    assert busy.interval_s(0.0, 100.0) == pytest.approx(0.06)
    assert busy.interval_s(0.0, 100.0 + 2 * WINDOW_S) == 0.004, "without new wakeups"
    busy = paced(*[2.0] * MAX_WAKEUPS)
    for number in range(MAX_WAKEUPS):
        busy.record_wakeup(0.0001, 100.0 + number / 1000)
    assert busy.interval_s(0.0, 100.1) == pytest.approx(0.005), "after new wakeups"


def test_too_few_wakeups_do_not_count() -> None:
    assert paced(*[9.0] * (MIN_WAKEUPS - 1)).interval_s(0.0, 100.0) == 0.004
    assert paced(*[9.0] * MIN_WAKEUPS).interval_s(0.0, 100.0) == 0.06
