"""The history of a replica: three windows, each with a fixed number of points."""

from __future__ import annotations

from functools import partial

import pytest

from replication.history import COUNTERS, GAUGES, WINDOWS, CounterSamples, Window


def counters(second: int, missing: int = 0) -> dict[str, int]:
    return {**dict.fromkeys([*COUNTERS, *GAUGES], 0), "reads": 3 * second, "writes": second, "missing": missing}


@pytest.fixture(scope="module")
def day() -> CounterSamples:
    """A day and an hour of samples. In one second of the last hour, 40 updates were missing."""
    samples = CounterSamples()
    for second in range(90_000):
        samples.sample(float(second), partial(counters, second, 40 if second == 89_000 else 0))
    return samples


@pytest.mark.parametrize("window", WINDOWS)
def test_each_window_has_its_length_and_its_interval(day: CounterSamples, window: Window) -> None:
    size = WINDOWS[window]
    points = day.history(89_999.0, window)
    assert size.window_s // size.interval_s - 1 <= len(points) <= size.window_s // size.interval_s
    ages_s = [point["age_s"] for point in points]
    assert ages_s == sorted(ages_s, reverse=True)
    assert size.window_s - 2 * size.interval_s <= ages_s[0] <= size.window_s + size.interval_s
    assert ages_s[-1] <= size.interval_s
    assert {(point["reads"], point["writes"]) for point in points} == {(3.0, 1.0)}


def test_a_short_lag_is_still_seen_in_the_coarse_windows(day: CounterSamples) -> None:
    assert {window: max(each["missing"] for each in day.history(89_999.0, window)) for window in WINDOWS} == {
        "true": 0.0,  # It is longer ago than ten minutes.
        "hour": 40.0,
        "day": 40.0,
    }


def test_samples_closer_than_a_second_are_not_taken() -> None:
    samples = CounterSamples()
    for tenth in range(100):
        samples.sample(tenth / 10, lambda: counters(0))
    assert len(samples.samples) == 10
    assert samples.history(10.0, "hour") == []
