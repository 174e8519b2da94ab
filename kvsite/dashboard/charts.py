"""Charts of the last ten minutes: turns samples into the SVG paths that the template draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import HistoryPoint

WINDOW_S = 600
BUCKET_S = 5
WIDTH, HEIGHT = 600, 120
"""Size of the chart in SVG units. The browser stretches it to the width of the page."""

ReadSample = Callable[[HistoryPoint], float]
Aggregate = Callable[[list[float]], float]


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve. ``path``: an SVG path; ``now``, ``maximum``: as text; ``hue``: index of the colour."""

    name: str
    hue: int
    path: str
    now: str
    maximum: str


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. ``top``: the value at the upper edge; ``summary``: the chart in words, for screen readers.

    ``is_empty``: there are not enough samples to draw.
    """

    name: str
    title: str
    unit: str
    top: str
    curves: tuple[Curve, ...]
    summary: str
    is_empty: bool


def charts(history: Sequence[HistoryPoint], wall_us: int) -> tuple[Chart, Chart]:
    """Return the throughput chart and the lag chart.

    ``wall_us``: the present time. It aligns the buckets, so that curves do not change shape from refresh to refresh.
    """
    return (
        _chart(
            "throughput",
            "Throughput",
            "per second",
            history,
            wall_us,
            [
                ("reads", lambda p: p.reads + p.lists, _mean),
                ("writes", lambda p: p.writes + p.deletes + p.transactions, _mean),
                ("applied", lambda p: p.applied, _mean),
            ],
        ),
        _chart(
            "lag",
            "Lag",
            "updates",
            history,
            wall_us,
            [("missing", lambda p: p.missing, max), ("pending", lambda p: p.pending, max)],
        ),
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _chart(
    name: str,
    title: str,
    unit: str,
    history: Sequence[HistoryPoint],
    wall_us: int,
    series: list[tuple[str, ReadSample, Aggregate]],
) -> Chart:
    """Return a chart. ``series``: for each curve its name, the value of a sample, and how a bucket is aggregated."""
    buckets = _buckets(history, wall_us)
    values = [[(x, aggregate([read(p) for p in points])) for x, points in buckets] for _, read, aggregate in series]
    top = _round_up(max((value for curve in values for _, value in curve), default=0.0))
    curves = tuple(
        Curve(
            name=curve_name,
            hue=hue,
            path=_path(curve, top),
            now=_number(read(history[-1]) if history else 0.0),
            maximum=_number(max((value for _, value in curve), default=0.0)),
        )
        for hue, ((curve_name, read, _), curve) in enumerate(zip(series, values, strict=True))
    )
    described = "; ".join(f"{curve.name} now {curve.now}, maximum {curve.maximum}" for curve in curves)
    summary = f"{title}, {unit}, over the last 10 minutes: {described}."
    return Chart(name, title, unit, _number(top), curves, summary, is_empty=len(buckets) < 2)


def _buckets(history: Sequence[HistoryPoint], wall_us: int) -> list[tuple[float, list[HistoryPoint]]]:
    """Return (horizontal position, points) of each interval of ``BUCKET_S``, oldest first."""
    now_s = wall_us / 1e6
    buckets: dict[int, list[HistoryPoint]] = {}
    for point in history:
        if point.age_s <= WINDOW_S:
            buckets.setdefault(math.floor((now_s - point.age_s) / BUCKET_S), []).append(point)
    return [(_x(now_s - (number + 0.5) * BUCKET_S), points) for number, points in sorted(buckets.items())]


def _x(age_s: float) -> float:
    return round(WIDTH * (1 - min(max(age_s, 0.0), WINDOW_S) / WINDOW_S), 1)


def _path(curve: list[tuple[float, float]], top: float) -> str:
    return " ".join(_path_steps(curve, top))


def _path_steps(curve: list[tuple[float, float]], top: float) -> Iterator[str]:
    previous_x = None
    for x, value in curve:
        # The curve has a gap where the replica took no samples, for example while its process was stopped.
        is_connected = previous_x is not None and x - previous_x <= 3 * BUCKET_S * WIDTH / WINDOW_S
        yield f"{'L' if is_connected else 'M'}{x:g} {HEIGHT * (1 - value / top):.1f}"
        previous_x = x


def _round_up(value: float) -> float:
    """Return the smallest 1, 2 or 5 times a power of ten that is not below ``value``, and at least 1."""
    if value <= 1:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
