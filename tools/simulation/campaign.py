"""Many runs: one per seed, over several processes; and shrinking a run that fails."""

from __future__ import annotations

import hashlib
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tools.history import dump
from tools.simulation.run import Outcome, simulate


def attempt(seed: int, operations: int, replicas: int | None = None) -> Outcome:
    """Run one seed. An exception is a violation too. ``replicas``: their number; None to take it from the seed."""
    try:
        return simulate(seed, operations, replicas)
    except Exception as exc:  # noqa: BLE001  Any exception is a finding, and the next seed must still run.
        frames = traceback.extract_tb(exc.__traceback__)
        where = f"{frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"
        return Outcome(seed, violations=[f"Crash: {type(exc).__name__} at {where}: {exc}"])


def campaign(
    seeds: Sequence[int], operations: int, processes: int = 1, replicas: int | None = None
) -> Iterator[Outcome]:
    """Yield the outcome of every seed, without its history, as runs end."""
    run = partial(_slim, operations=operations, replicas=replicas)
    if processes == 1:
        yield from map(run, seeds)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run, seeds, chunksize=max(1, min(20, len(seeds) // processes)))


def _slim(seed: int, operations: int, replicas: int | None) -> Outcome:
    outcome = attempt(seed, operations, replicas)
    outcome.history = []
    return outcome


def fingerprint(outcome: Outcome) -> str:
    """Return a digest of the history: the same seed gives the same one, on any machine."""
    return hashlib.sha256(dump(outcome.history)).hexdigest()


def shrink(seed: int, operations: int, replicas: int | None = None) -> tuple[int, Outcome]:
    """Return the smallest number of operations, found by halving, with which ``seed`` still fails, and that outcome.

    A run with fewer operations is another run, so there may be a smaller failing one that this search misses.
    """
    smallest, outcome = operations, attempt(seed, operations, replicas)
    step = operations // 2
    while step:
        shorter = attempt(seed, smallest - step, replicas) if smallest > step else None
        if shorter is not None and shorter.violations:
            smallest, outcome = smallest - step, shorter
        else:
            step //= 2
    return smallest, outcome
