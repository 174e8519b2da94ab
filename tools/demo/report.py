"""Figures of a demo run, as texts for people."""

from __future__ import annotations

from collections.abc import Sequence

from tools.benchmark.stats import percentile


def milliseconds(values_s: Sequence[float]) -> str:
    """Median and 99th percentile of durations in seconds."""
    if not values_s:
        return "not measured"
    p50, p99 = percentile(values_s, 0.5) * 1000, percentile(values_s, 0.99) * 1000
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(values_s):,} samples)"


def megabytes(size: float) -> str:
    """``size`` in bytes."""
    return f"{size / 1e6:,.1f} MB"


def table(rows: Sequence[tuple[str, str]]) -> str:
    """Two columns, the first as wide as its widest entry."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"  {name:<{width}}  {value}" for name, value in rows)
