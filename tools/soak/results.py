"""What a run found and counted."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools import history
from tools.soak.counts import Counts
from tools.soak.growth import Growth
from tools.soak.timeline import Timeline

MAX_PROBLEMS = 50


@dataclass
class Results:
    """The results of one run. ``directory`` gets its records and logs.

    ``problems``: the violations that were found, the first ``MAX_PROBLEMS``. ``reports``: those of the checker.
    ``round``: number of the current round, from 1. ``loads``: when the load of each round began and ended, monotonic
    seconds. ``slowest_convergence_s``: of all rounds. ``lost_updates``: updates that no replica has at the end.
    ``guests``: URLs of the guests, in order of their numbers. ``ghost_numbers``: for the addresses of ghosts.
    ``strangers_removed``: how many guests and ghosts were removed. ``growth``: what must stay flat.
    """

    directory: Path
    timeline: Timeline
    counts: Counts = field(default_factory=Counts)
    problems: list[str] = field(default_factory=list)
    reports: list[history.Report] = field(default_factory=list)
    round: int = 0
    loads: list[tuple[float, float]] = field(default_factory=list)
    slowest_convergence_s: float = 0.0
    lost_updates: int = 0
    guests: list[str] = field(default_factory=list)
    ghost_numbers: Iterator[int] = field(default_factory=itertools.count)
    strangers_removed: int = 0
    growth: Growth = field(default_factory=Growth)
    _began_s: float = field(default_factory=time.monotonic)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def load_s(self) -> float:
        """Total time under load."""
        return sum(ended_s - began_s for began_s, ended_s in self.loads)

    def problem(self, text: str) -> None:
        """Record a violation."""
        with self._lock:
            if len(self.problems) < MAX_PROBLEMS:
                self.problems.append(f"round {self.round}: {text}")
        self.note(f"PROBLEM {text}")

    def note(self, text: str) -> None:
        """Write a line to faults.log."""
        with (self.directory / "faults.log").open("a") as log:
            log.write(f"{time.time():.3f} {time.monotonic() - self._began_s:8.2f} {text}\n")
