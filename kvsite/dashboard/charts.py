"""Charts of the last ten minutes, as paths for SVG: numbers come in, what a template draws goes out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import Point

WINDOW_S = 600
BUCKET_S = 5
WIDTH, HEIGHT = 600, 120
"""In units of the drawing, which is stretched to the width that it finds."""

Read = Callable[[Point], float]


@dataclass(frozen=True, slots=True)
class Line:
    """One curve. ``path``: of an SVG; ``now``, ``most``: in words; ``hue``: which of the colours."""

    name: str
    hue: int
    path: str
    now: str
    most: str


@dataclass(frozen=True, slots=True)
class Chart:
    """``top``: what the upper edge stands for; ``summary``: the chart in words; ``is_empty``: nothing to draw yet."""

    name: str
    title: str
    unit: str
    top: str
    lines: tuple[Line, ...]
    summary: str
    is_empty: bool


def charts(history: Sequence[Point], wall_us: int) -> tuple[Chart, Chart]:
    """Return throughput and lag. ``wall_us``: now; it keeps points in their place from one look to the next."""
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


Sum = Callable[[list[float]], float]


def _chart(
    name: str, title: str, unit: str, history: Sequence[Point], wall_us: int, curves: list[tuple[str, Read, Sum]]
) -> Chart:
    buckets = _buckets(history, wall_us)
    values = [[(x, summed([read(p) for p in points])) for x, points in buckets] for _, read, summed in curves]
    top = _round_up(max((value for curve in values for _, value in curve), default=0.0))
    lines = tuple(
        Line(
            name=curve_name,
            hue=hue,
            path=_path(curve, top),
            now=_number(read(history[-1]) if history else 0.0),
            most=_number(max((value for _, value in curve), default=0.0)),
        )
        for hue, ((curve_name, read, _), curve) in enumerate(zip(curves, values, strict=True))
    )
    told = "; ".join(f"{line.name} now {line.now}, at most {line.most}" for line in lines)
    summary = f"{title}, {unit}, over the last 10 minutes: {told}."
    return Chart(name, title, unit, _number(top), lines, summary, is_empty=len(buckets) < 2)


def _buckets(history: Sequence[Point], wall_us: int) -> list[tuple[float, list[Point]]]:
    """Return the points of each few seconds, oldest first, with where they are on the horizontal axis."""
    now_s = wall_us / 1e6
    buckets: dict[int, list[Point]] = {}
    for point in history:
        if point.age_s <= WINDOW_S:
            buckets.setdefault(math.floor((now_s - point.age_s) / BUCKET_S), []).append(point)
    return [(_x(now_s - (at + 0.5) * BUCKET_S), points) for at, points in sorted(buckets.items())]


def _x(age_s: float) -> float:
    return round(WIDTH * (1 - min(max(age_s, 0.0), WINDOW_S) / WINDOW_S), 1)


def _path(curve: list[tuple[float, float]], top: float) -> str:
    return " ".join(_steps(curve, top))


def _steps(curve: list[tuple[float, float]], top: float) -> Iterator[str]:
    before = None
    for x, value in curve:
        # Where the replica took no samples (it stood still), the curve has a gap.
        is_next = before is not None and x - before <= 3 * BUCKET_S * WIDTH / WINDOW_S
        yield f"{'L' if is_next else 'M'}{x:g} {HEIGHT * (1 - value / top):.1f}"
        before = x


def _round_up(value: float) -> float:
    """Return 1, 2 or 5 times a power of ten that is not below ``value``, and at least 1."""
    if value <= 1:
        return 1.0
    power: float = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"
