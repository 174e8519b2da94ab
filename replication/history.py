"""What a replica did and how far it lagged: every second of the last ten minutes, an hour and a day in larger steps.

The charts of the dashboard show it. The memory has a bound: the number of samples is fixed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal, NamedTuple

# ``refused`` and ``messages_refused`` count rejections: these names are public (see replication/api/metrics.py).
COUNTERS: Final = (
    "reads",
    "writes",
    "deletes",
    "transactions",
    "lists",
    "applied",
    "deferred",
    "refused",
    "exchanges",
    "exchanges_answered",
    "exchange_failures",
    "messages_refused",
)

RATES: Final = ("reads", "writes", "deletes", "transactions", "lists", "applied")
GAUGES: Final = ("pending", "missing")

Window = Literal["true", "hour", "day"]
"""Values of the query parameter ``history``: the last ten minutes, the last hour, the last day."""


class WindowSize(NamedTuple):
    """How long a window is, and how long the interval that one of its points describes."""

    window_s: int
    interval_s: int


WINDOWS: Final[Mapping[Window, WindowSize]] = {
    "true": WindowSize(600, 1),
    "hour": WindowSize(3600, 10),
    "day": WindowSize(86_400, 120),
}

Counters = dict[str, int]


@dataclass(frozen=True, slots=True)
class _Point:
    """The interval that ended at ``at_s``: its rates in the order of ``RATES``, its gauges in that of ``GAUGES``."""

    at_s: float
    rates: tuple[float, ...]
    gauges: tuple[int, ...]


class _CoarseHistory:
    """The points of one window with intervals of several samples. A gauge of a point is the highest in its interval."""

    def __init__(self, size: WindowSize) -> None:
        self._interval_s = size.interval_s
        self.points: deque[_Point] = deque(maxlen=size.window_s // size.interval_s)
        self._began: tuple[float, Counters] | None = None
        self._highest: tuple[int, ...] = ()

    def add(self, at_s: float, counters: Counters) -> None:
        """Add a sample."""
        gauges = tuple(counters[name] for name in GAUGES)
        if self._began is None:
            self._began, self._highest = (at_s, counters), gauges
            return
        self._highest = tuple(map(max, self._highest, gauges))
        began_s, began = self._began
        if at_s - began_s >= self._interval_s:
            self.points.append(_Point(at_s, _rates(began, counters, at_s - began_s), self._highest))
            self._began, self._highest = (at_s, counters), gauges


def _rates(then: Counters, now: Counters, interval_s: float) -> tuple[float, ...]:
    return tuple(round((now[name] - then[name]) / interval_s, 1) for name in RATES)


class CounterSamples:
    """Samples of the counters, one per second, for rates and for the charts.

    ``samples``: (monotonic seconds, counters) of the last ten minutes, oldest first.
    """

    def __init__(self) -> None:
        self.samples: deque[tuple[float, Counters]] = deque(maxlen=WINDOWS["true"].window_s)
        self._coarse = {window: _CoarseHistory(size) for window, size in WINDOWS.items() if size.interval_s > 1}

    def sample(self, now_s: float, read: Callable[[], Counters]) -> None:
        """Add a sample if the last one is at least a second old. ``read`` returns the counters."""
        if not self.samples or now_s - self.samples[-1][0] >= 1.0:
            counters = read()
            self.samples.append((now_s, counters))
            for coarse in self._coarse.values():
                coarse.add(now_s, counters)

    def per_second(self) -> dict[str, float]:
        """Return the rates between the last two samples, named after the counters with the suffix ``_per_s``."""
        if len(self.samples) < 2:
            return {f"{name}_per_s": 0.0 for name in COUNTERS}
        (then_s, then), (now_s, now) = self.samples[-2], self.samples[-1]
        return {f"{name}_per_s": round((now[name] - then[name]) / (now_s - then_s), 1) for name in COUNTERS}

    def history(self, now_s: float, window: Window = "true") -> list[dict[str, float]]:
        """Return one point per interval of the window, oldest first.

        A point holds its age in seconds, the rates in its interval, and the gauges: of the window of ten minutes those
        at its end, of the others the highest.
        """
        if window != "true":
            points = list(self._coarse[window].points)
        else:
            points = [
                _Point(at_s, _rates(then, now, at_s - then_s), tuple(now[name] for name in GAUGES))
                for (then_s, then), (at_s, now) in pairwise(list(self.samples))
            ]
        return [
            {
                "age_s": round(now_s - point.at_s, 1),
                **dict(zip(RATES, point.rates, strict=True)),
                **{name: float(value) for name, value in zip(GAUGES, point.gauges, strict=True)},
            }
            for point in points
        ]
