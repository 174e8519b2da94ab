"""Charts of ten minutes, an hour or a day: turns samples into the SVG paths that the template draws."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kvsite.dashboard.cluster_state import HistoryPoint
from replication.history import Window


@dataclass(frozen=True, slots=True)
class ChartWindow:
    """What a chart shows. ``bucket_s``: the interval of one step of a curve. ``marks``: texts of the time axis."""

    name: str
    window_s: int
    bucket_s: int
    marks: tuple[str, str]


WINDOWS: Final[Mapping[str, ChartWindow]] = {
    "minutes": ChartWindow("10 minutes", 600, 5, ("10 min ago", "5 min ago")),
    "hour": ChartWindow("hour", 3600, 30, ("1 h ago", "30 min ago")),
    "day": ChartWindow("day", 86_400, 720, ("24 h ago", "12 h ago")),
}
"""Value of the query parameter ``window`` of a replica's page -> what its charts show."""

HISTORIES: Final[Mapping[str, Window]] = {"minutes": "true", "hour": "hour", "day": "day"}
"""The same values -> the history that the charts need."""

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
    window: ChartWindow


def charts(history: Sequence[HistoryPoint], wall_us: int, window: ChartWindow) -> tuple[Chart, Chart]:
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
            window,
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
            window,
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
    window: ChartWindow,
    series: list[tuple[str, ReadSample, Aggregate]],
) -> Chart:
    """Return a chart. ``series``: for each curve its name, the value of a sample, and how a bucket is aggregated."""
    buckets = _buckets(history, wall_us, window)
    values = [[(x, aggregate([read(p) for p in points])) for x, points in buckets] for _, read, aggregate in series]
    top = _round_up(max((value for curve in values for _, value in curve), default=0.0))
    curves = tuple(
        Curve(
            name=curve_name,
            hue=hue,
            path=_path(curve, top, window),
            now=_number(read(history[-1]) if history else 0.0),
            maximum=_number(max((value for _, value in curve), default=0.0)),
        )
        for hue, ((curve_name, read, _), curve) in enumerate(zip(series, values, strict=True))
    )
    described = "; ".join(f"{curve.name} now {curve.now}, maximum {curve.maximum}" for curve in curves)
    summary = f"{title}, {unit}, over the last {window.name}: {described}."
    return Chart(name, title, unit, _number(top), curves, summary, is_empty=len(buckets) < 2, window=window)


def _buckets(
    history: Sequence[HistoryPoint], wall_us: int, window: ChartWindow
) -> list[tuple[float, list[HistoryPoint]]]:
    """Return (horizontal position, points) of each interval of ``bucket_s``, oldest first."""
    now_s = wall_us / 1e6
    buckets: dict[int, list[HistoryPoint]] = {}
    for point in history:
        if point.age_s <= window.window_s:
            buckets.setdefault(math.floor((now_s - point.age_s) / window.bucket_s), []).append(point)
    half_s = window.bucket_s / 2
    return [
        (_x(now_s - number * window.bucket_s - half_s, window), points) for number, points in sorted(buckets.items())
    ]


def _x(age_s: float, window: ChartWindow) -> float:
    return round(WIDTH * (1 - min(max(age_s, 0.0), window.window_s) / window.window_s), 1)


def _path(curve: list[tuple[float, float]], top: float, window: ChartWindow) -> str:
    return " ".join(_path_steps(curve, top, window))


def _path_steps(curve: list[tuple[float, float]], top: float, window: ChartWindow) -> Iterator[str]:
    previous_x = None
    for x, value in curve:
        # The curve has a gap where the replica took no samples, for example while its process was stopped.
        is_connected = previous_x is not None and x - previous_x <= 3 * window.bucket_s * WIDTH / window.window_s
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
