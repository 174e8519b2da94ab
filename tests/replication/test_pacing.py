"""How far apart exchanges are: by how long they take, and by how late threads wake."""

from __future__ import annotations

import pytest

from replication.pacing import MAX_WAKEUPS, MIN_WAKEUPS, WINDOW_S, Pacing
from replication.settings import ReplicationSettings

SETTINGS = ReplicationSettings(pace_s=0.004, pace_round_trips=2.0, pace_times_late=50.0, max_pace_s=0.06)


def woken(*late_ms: float, every_s: float = 0.01, until_s: float = 100.0) -> Pacing:
    """Return a pace whose threads woke so late, the last one at ``until_s``."""
    pacing = Pacing(SETTINGS)
    for number, late in enumerate(late_ms):
        pacing.record_wakeup(late / 1000, until_s - every_s * (len(late_ms) - 1 - number))
    return pacing


def test_where_nothing_is_known_the_pause_is_the_least() -> None:
    assert Pacing(SETTINGS).interval_s(0.0, 100.0) == 0.004


@pytest.mark.parametrize(("takes_s", "pause_s"), [(0.001, 0.004), (0.003, 0.006), (0.5, 0.06)])
def test_a_peer_is_left_as_much_time_as_it_takes_within_bounds(takes_s: float, pause_s: float) -> None:
    assert Pacing(SETTINGS).interval_s(takes_s, 100.0) == pytest.approx(pause_s)


@pytest.mark.parametrize(("late_ms", "pause_s"), [(0.05, 0.004), (0.2, 0.01), (1.0, 0.05), (9.0, 0.06)])
def test_threads_that_wake_late_make_the_pause_longer_within_bounds(late_ms: float, pause_s: float) -> None:
    assert woken(*[late_ms] * 8).interval_s(0.0, 100.0) == pytest.approx(pause_s)


def test_the_longer_of_both_pauses_counts() -> None:
    assert woken(*[0.2] * 8).interval_s(0.01, 100.0) == pytest.approx(0.02)
    assert woken(*[0.8] * 8).interval_s(0.01, 100.0) == pytest.approx(0.04)


def test_what_makes_half_of_the_threads_late_changes_nothing() -> None:
    """A collection, or somebody else on the machine: the mean of these is 5 ms, which would be the longest pause."""
    assert woken(*[0.1, 10.0] * 10).interval_s(0.0, 100.0) == pytest.approx(0.005)


def test_a_few_that_wake_in_time_by_chance_change_nothing() -> None:
    assert woken(*[0.1, 1.0, 1.0, 1.0, 1.0, 1.0] * 4).interval_s(0.0, 100.0) == pytest.approx(0.05)


def test_what_is_over_counts_no_more() -> None:
    busy = woken(*[2.0] * MAX_WAKEUPS)
    assert busy.interval_s(0.0, 100.0) == pytest.approx(0.06)
    assert busy.interval_s(0.0, 100.0 + 2 * WINDOW_S) == 0.004, "time passes and nobody talks"
    busy = woken(*[2.0] * MAX_WAKEUPS)
    for number in range(MAX_WAKEUPS):
        busy.record_wakeup(0.0001, 100.0 + number / 1000)
    assert busy.interval_s(0.0, 100.1) == pytest.approx(0.005), "others have come since"


def test_a_pair_of_wakes_is_not_enough_to_tell() -> None:
    assert woken(*[9.0] * (MIN_WAKEUPS - 1)).interval_s(0.0, 100.0) == 0.004
    assert woken(*[9.0] * MIN_WAKEUPS).interval_s(0.0, 100.0) == 0.06
