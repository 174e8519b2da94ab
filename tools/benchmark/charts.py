"""Charts of figures as SVG files, readable on light and dark pages. They are drawn without a library.

If all ``x`` of a chart are numbers, it has lines on logarithmic axes, where a power law is a straight line.
Otherwise it has bars.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Final

from tools.benchmark.figures import Figure
from tools.benchmark.stats import number

WIDTH: Final = 760
_LABEL, _VALUE = 300, 90
"""Width of the labels left of the bars, and of the values right of them."""
_BAR, _GAP = 18, 8
_TOP: Final = 44
_PLOT_HEIGHT: Final = 240

_STYLE: Final = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600; font-size: 15px } .soft { fill: #59636e; font-size: 12px }
  .grid { stroke: #d1d9e0; stroke-width: 1 } .target { stroke: #cf222e; stroke-width: 1.5; stroke-dasharray: 4 3 }
  .c0 { fill: #2f6fde; stroke: #2f6fde } .c1 { fill: #c2710c; stroke: #c2710c } .c2 { fill: #1a7f5a; stroke: #1a7f5a }
  .c3 { fill: #8250df; stroke: #8250df } .other { fill: #afb8c1; stroke: #afb8c1 }
  .line { fill: none; stroke-width: 2 } .spread { stroke: #1f2328; stroke-width: 1.5; opacity: 0.6 }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .soft { fill: #9198a1 } .grid { stroke: #3d444d } .target { stroke: #ff7b72 }
    .c0 { fill: #6ea8ff; stroke: #6ea8ff } .c1 { fill: #f0a04b; stroke: #f0a04b } .c2 { fill: #4cc38a; stroke: #4cc38a }
    .c3 { fill: #b392f0; stroke: #b392f0 } .other { fill: #656c76; stroke: #656c76 }
    .line { fill: none } .spread { stroke: #e6edf3 }
  }
"""


@dataclass(frozen=True, slots=True)
class Chart:
    """One chart. ``name``: its file name without ``.svg``; ``text``: its content as text, for screen readers."""

    name: str
    title: str
    svg: str
    text: str


def file_name(chart: str) -> str:
    """Return the file name of ``chart`` without ``.svg``."""
    return re.sub(r"[^a-z0-9]+", "-", chart.lower())


TITLES: Final = {
    "get": "GET: requests per second",
    "put": "PUT: requests per second",
    "mix": "90 % GET, 10 % PUT: requests per second",
    "txn": "Transactions (two reads, two writes) per second",
    "lag": "Replication lag, ms",
    "latency": "p99 at half load, ms",
    "growth by keys": "CPU time per request by number of keys, µs",
    "growth by value bytes": "CPU time per request by length of the value, µs",
    "growth by members": "CPU time per request by number of members, each with a clock entry, µs",
    "messages": "Messages per write by number of replicas (simulation)",
    "bytes": "Bytes per write by number of replicas (simulation)",
}


def draw_all(figures: Sequence[Figure]) -> list[Chart]:
    """Return one chart for each chart name in ``figures``, in order of appearance."""
    charts: dict[str, list[Figure]] = {}
    for figure in figures:
        if figure.chart:
            charts.setdefault(figure.chart, []).append(figure)
    return [draw(name, points) for name, points in charts.items()]


def draw(name: str, points: Sequence[Figure]) -> Chart:
    """Draw the chart ``name`` of ``points``."""
    title = TITLES.get(name, name)
    numbers = {point.x for point in points if not isinstance(point.x, str)}
    is_law = len(numbers) > 1 and all(not isinstance(point.x, str) and point.value > 0 for point in points)
    body, height = _lines(points) if is_law else _bars(points)
    text = f"{title}: " + "; ".join(f"{_label(point)} {number(point.value)}" for point in points)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'role="img" aria-label="{escape(text)}">\n<style>{_STYLE}</style>\n'
        f'<text class="title" x="8" y="22">{escape(title)}</text>\n{body}\n</svg>\n'
    )
    return Chart(file_name(name), title, svg, text)


def _label(point: Figure) -> str:
    return f"{point.series}, {point.x}" if point.x != "" else point.series


# -------------------------------------------------------------------------------------------------------------- bars


def _bars(points: Sequence[Figure]) -> tuple[str, int]:
    bound = max((point.target.bound for point in points if point.target), default=0.0)
    top = max([point.value for point in points] + [bound]) or 1.0
    parts = []
    for i, point in enumerate(points):
        y = _TOP + i * (_BAR + _GAP)
        end = _across(point.value, top)
        low, high = (_across(value, top) for value in point.spread)
        middle, width = y + _BAR / 2, max(1.0, end - _LABEL)
        parts += [
            f'<text x="{_LABEL - 8}" y="{y + 14}" text-anchor="end">{escape(_label(point))}</text>',
            f'<rect class="{_colour(point)}" x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2"/>',
            f'<path class="spread" d="M{low:.1f} {middle}H{high:.1f}"/>',
            f'<text class="soft" x="{max(end, high) + 6:.1f}" y="{y + 14}">{number(point.value)}</text>',
        ]
        if point.target:
            x = _across(point.target.bound, top)
            parts.append(f'<path class="target" d="M{x:.1f} {y - 3}v{_BAR + 6}"/>')
    return "\n".join(parts), _TOP + len(points) * (_BAR + _GAP) + 8


def _across(value: float, top: float) -> float:
    return _LABEL + (WIDTH - _LABEL - _VALUE) * value / top


def _colour(point: Figure) -> str:
    """Return the CSS class of a bar: Causeway in colour, baselines and other stores in grey."""
    return "other" if point.series.startswith(("baseline", "etcd", "Redis")) else "c0"


# ------------------------------------------------------------------------------------------------------------- lines


def _lines(points: Sequence[Figure]) -> tuple[str, int]:
    marks = sorted({point.x for point in points if not isinstance(point.x, str)})
    xs = float(marks[0]), float(marks[-1])
    ys = _decades(point.value for point in points)
    left, right, bottom = 80.0, WIDTH - 150.0, _TOP + _PLOT_HEIGHT

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            left + (right - left) * _share(x, xs),
            bottom - _PLOT_HEIGHT * _share(y, ys),
        )

    parts = []
    for tick in _ticks(ys):
        y = place(xs[0], tick)[1]
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(f'<text class="soft" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{number(tick)}</text>')
    for mark in marks:
        x = place(mark, ys[0])[0]
        parts.append(f'<text class="soft" x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{number(mark)}</text>')
    for hue, (series, line) in enumerate(groupby(points, key=lambda point: point.series)):
        placed = [place(float(point.x), point.value) for point in line]
        path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
        parts.append(f'<path class="line c{hue % 4}" style="fill:none" d="M{path}"/>')
        parts += [f'<circle class="c{hue % 4}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in placed]
        x, y = placed[-1]
        parts.append(f'<text x="{x + 10:.1f}" y="{y + 4:.1f}">{escape(series)}</text>')
    return "\n".join(parts), int(bottom + 34)


def _decades(values: Iterable[float]) -> tuple[float, float]:
    """Return the ends of a logarithmic axis for ``values``: each is 1, 2 or 5 times a power of ten."""
    numbers = list(values)
    low, high = min(numbers), max(numbers)
    below = max(tick for tick in _steps(low / 10, low) if tick <= low * 1.0001)
    above = min(tick for tick in _steps(high, high * 10) if tick >= high * 0.9999)
    return (below, above) if above > below else (below, below * 10)


def _ticks(ends: tuple[float, float]) -> list[float]:
    return [tick for tick in _steps(*ends) if ends[0] * 0.9999 <= tick <= ends[1] * 1.0001]


def _steps(low: float, high: float) -> list[float]:
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    return [step * 10.0**power for power in powers for step in (1, 2, 5)]


def _share(value: float, ends: tuple[float, float]) -> float:
    return math.log(value / ends[0]) / math.log(ends[1] / ends[0])
