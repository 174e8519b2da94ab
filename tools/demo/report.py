"""Durations, sizes and tables as text."""

from __future__ import annotations

from collections.abc import Sequence

from tools.benchmark.stats import percentile


def milliseconds(values_s: Sequence[float]) -> str:
    """Return the median and the 99th percentile of durations in seconds."""
    if not values_s:
        return "not measured"
    p50, p99 = percentile(values_s, 0.5) * 1000, percentile(values_s, 0.99) * 1000
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(values_s):,} samples)"


def megabytes(size: float) -> str:
    """Return a size in bytes as megabytes."""
    return f"{size / 1e6:,.1f} MB"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Return two aligned columns."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
