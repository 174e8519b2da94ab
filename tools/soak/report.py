"""The figures of a run, and whether they are good enough."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tools.soak.clients import ANSWERED, ERROR, GIVEN_UP, NOT_EXCUSED, REJECTED
from tools.soak.counts import Counts
from tools.soak.reachability import NO_EXCUSE, REASONS
from tools.soak.results import Results

WINDOW_S = 5
"""Length of the period whose throughput is the lowest."""

MIN_SUCCESS = 0.99
MIN_PER_S = 100.0


@dataclass(frozen=True)
class Success:
    """Shares (0 to 1) of successful requests to serving replicas, and of successful calls. See the package docstring.

    ``requests`` leaves excused rejections out; ``all_requests`` counts them as errors. Likewise ``calls``.
    """

    requests: float
    all_requests: float
    calls: float
    all_calls: float


def success(counts: Counts) -> Success:
    """Return the shares of successful requests and calls."""
    requests, calls = counts.requests, counts.calls
    good, bad = requests[ANSWERED], requests[ERROR] + requests[REJECTED + NO_EXCUSE]
    rejected = sum(n for outcome, n in requests.items() if outcome.startswith(REJECTED))
    failed = sum(n for outcome, n in calls.items() if outcome.endswith(NOT_EXCUSED))
    return Success(
        requests=_share(good, good + bad),
        all_requests=_share(good, good + requests[ERROR] + rejected),
        calls=_share(calls[ANSWERED], calls[ANSWERED] + failed),
        all_calls=_share(calls[ANSWERED], sum(calls.values())),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Window:
    """A period of ``WINDOW_S`` under load: operations per second, the most clients that waited, and the faults."""

    per_s: float
    began_s: float
    waiting: int
    faults: tuple[str, ...]


def slowest(results: Results) -> Window:
    """Return the period with the fewest acknowledged operations."""
    starts = [
        at_s for began_s, ended_s in results.loads for at_s in range(int(began_s) + 1, int(ended_s) - WINDOW_S + 1)
    ]
    if not starts:
        return Window(0.0, 0.0, 0, ())
    operations = {at_s: sum(results.counts.per_second[at_s + n] for n in range(WINDOW_S)) for at_s in starts}
    at_s = min(starts, key=lambda start_s: operations[start_s])
    waiting = max(results.counts.waiting.get(at_s + n, 0) for n in range(WINDOW_S))
    return Window(operations[at_s] / WINDOW_S, at_s, waiting, tuple(results.timeline.active(at_s, at_s + WINDOW_S)))


def shortcomings(results: Results) -> list[str]:
    """Return a text for each of the three required figures that the run did not reach."""
    shares, worst = success(results.counts), slowest(results)
    return [
        text
        for is_short, text in (
            (shares.requests < MIN_SUCCESS, f"only {shares.requests:.2%} of requests to serving replicas succeeded"),
            (shares.calls < MIN_SUCCESS, f"only {shares.calls:.2%} of calls succeeded, without excused ones"),
            (worst.per_s < MIN_PER_S, f"only {worst.per_s:.0f} operations per second for {WINDOW_S} s"),
        )
        if is_short
    ]


def report(results: Results) -> str:
    """Return a report of the run as text."""
    counts = results.counts
    requests, calls, shares, worst = counts.requests, counts.calls, success(counts), slowest(results)
    checked = [sum(getattr(each, what) for each in results.reports) for what in ("checked", "reads", "conflicts")]
    faults = Counter(fault.kind for fault in results.timeline.faults)
    load_average = os.getloadavg()[1]
    rejections = [(reason, requests[REJECTED + reason]) for reason in REASONS]
    lines = [
        f"rounds                {results.round}, {results.load_s:.0f} s under load; load average {load_average:.1f}",
        f"faults                {_listed(sorted(faults.items()))}",
        f"acknowledged          {counts.acknowledged} operations",
        f"  per second          {counts.acknowledged / max(1.0, results.load_s):.0f}",
        f"  slowest {WINDOW_S} s         {worst.per_s:.0f} per second, {worst.waiting} clients waited",
        f"    with faults         {', '.join(worst.faults) or 'none'}",
        f"requests              {sum(requests.values())} to serving replicas, {requests[ANSWERED]} of them succeeded",
        *(f"  rejected            {n}: {reason}" for reason, n in rejections if n),
        f"  given up            {requests[GIVEN_UP]} by the client, while the replica could still wait",
        f"  errors              {requests[ERROR]}",
        f"  success             {shares.requests:.2%}; {shares.all_requests:.2%} if every rejection is an error",
        f"  after a heal        {_after_heal(sorted(counts.rejected_after_heal_s))}",
        f"calls                 {sum(calls.values())}, {calls[ANSWERED]} of them succeeded in time, at any replica",
        *(f"  failed              {n}: {outcome}" for outcome, n in sorted(calls.items()) if outcome != ANSWERED),
        f"  success             {shares.calls:.2%}; {shares.all_calls:.2%} if excused calls are failures",
        f"other requests        to unavailable replicas: {_listed(sorted(counts.requests_to_unavailable.items()))}",
        f"lost updates          {results.lost_updates}; reported to clients {len(counts.reported_lost)} times",
        f"converged             at most {results.slowest_convergence_s:.1f} s after a heal",
        f"addresses             {results.strangers_removed} came and went",
        f"  guests              {len(results.guests)}, which served {counts.guest_operations} operations",
        f"followers             received {_listed(sorted(counts.feed.items()))}",
        f"storms                {counts.storm_bytes / 1e6:.0f} MB written",
        *results.growth.lines(counts.longest_metadata),
        f"history               {checked[0]} operations, {checked[1]} reads and {checked[2]} conflicts checked",
    ]
    lines += [f"error                 {n} x {text}" for text, n in counts.errors.most_common(8)]
    return "\n".join(lines)


def _after_heal(seconds: list[float]) -> str:
    if not seconds:
        return "no request was rejected"
    return (
        f"{len(seconds)} requests were rejected up to {seconds[-1]:.1f} s after the replica was connected again "
        f"(median {statistics.median(seconds):.1f} s)"
    )


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts) or "none"
