"""Figures: measurements with their target, and tables of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tools.benchmark.stats import median, number, percentile


@dataclass(frozen=True, slots=True)
class Target:
    """The target of a figure. ``bound`` is in the figure's unit."""

    sense: Literal["at least", "at most"]
    bound: float

    def met(self, value: float) -> bool:
        """Return whether ``value`` meets the target."""
        return value >= self.bound if self.sense == "at least" else value <= self.bound


def at_least(bound: float) -> Target:
    """Return a target with a lower bound."""
    return Target("at least", bound)


def at_most(bound: float) -> Target:
    """Return a target with an upper bound."""
    return Target("at most", bound)


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the results.

    ``rounds``: the measurement of each round; ``value`` is their median.
    ``details``: further medians by name: ``p50_ms``, ``p99_ms``, ``cpu_us`` (CPU time per request), ``core``.
    ``note``: an explanation below the row. ``chart``, ``series``, ``x``: the chart that shows the figure ("" for none),
    and the line and place in it.
    """

    section: str
    name: str
    unit: str
    rounds: Sequence[float]
    details: Mapping[str, float] = field(default_factory=dict)
    target: Target | None = None
    note: str = ""
    chart: str = ""
    series: str = ""
    x: float | str = ""

    @property
    def value(self) -> float:
        """The median of the rounds."""
        return float(median(self.rounds))

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without a target."""
        return None if self.target is None else self.target.met(self.value)

    @property
    def spread(self) -> tuple[float, float]:
        """The lower and upper quartile of the rounds."""
        return percentile(self.rounds, 0.25), percentile(self.rounds, 0.75)

    def as_json(self) -> dict[str, Any]:
        """Return the figure as JSON, with ``value`` and ``met``."""
        return {**asdict(self), "rounds": list(self.rounds), "value": self.value, "met": self.met}


def figure_from_json(content: Mapping[str, Any]) -> Figure:
    """Return the figure that ``as_json`` encoded."""
    fields = {name: value for name, value in content.items() if name not in ("value", "met")}
    target = fields.pop("target")
    return Figure(**fields, target=Target(**target) if target else None)


COLUMNS = ("figure", "measured", "p50 ms", "p99 ms", "CPU µs", "target", "")
_DETAILS = ("p50_ms", "p99_ms", "cpu_us")


def cells(figure: Figure) -> tuple[str, ...]:
    """Return the cells of a figure's row, in the order of ``COLUMNS``."""
    details = [number(figure.details[name]) if name in figure.details else "" for name in _DETAILS]
    target = f"{figure.target.sense} {number(figure.target.bound)} {figure.unit}" if figure.target else ""
    status = {True: "met", False: "MISSED", None: ""}[figure.met]
    measured = f"{number(figure.value)} {figure.unit}".strip()
    return (figure.name, measured, *details, target, status)


def text_table(figures: Sequence[Figure]) -> str:
    """Return a table for a terminal, with a heading before each section."""
    rows = [cells(figure) for figure in figures]
    widths = [max(len(row[i]) for row in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
    lines = [_aligned(COLUMNS, widths), "  ".join("-" * width for width in widths)]
    section = ""
    for figure, row in zip(figures, rows, strict=True):
        if figure.section != section:
            section = figure.section
            lines += ["", f"[{section}]"]
        lines.append(_aligned(row, widths))
        if figure.note:
            lines.append(f"    {figure.note}")
    return "\n".join(lines)


def markdown_table(figures: Sequence[Figure]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(COLUMNS[:-1]) + " | |", "|---|---:|---:|---:|---:|---|---|"]
    for figure in figures:
        name, *rest = cells(figure)
        note = f"<br>{figure.note}" if figure.note else ""
        lines.append("| " + " | ".join([name + note, *rest]) + " |")
    return "\n".join(lines)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *middle, target, status = row
    parts = [f"{first:<{widths[0]}}"]
    parts += [f"{text:>{width}}" for text, width in zip(middle, widths[1:-2], strict=True)]
    return "  ".join([*parts, f"{target:<{widths[-2]}}", status]).rstrip()
