"""What a run showed, in numbers; and whether that is enough."""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from tools.soak.clients import ANSWERED, ERROR, GIVEN_UP, NOT_EXCUSED, REFUSED
from tools.soak.reach import NO_EXCUSE, REASONS
from tools.soak.run import Run
from tools.soak.tally import Tally

WINDOW_S = 5
"""Over how many seconds the lowest throughput is told."""

MIN_SUCCESS = 0.99
MIN_PER_S = 100.0


@dataclass(frozen=True)
class Success:
    """How many of the requests to serving replicas, and of the clients' calls, were answered; see the package's head.

    ``requests``: excused refusals left out; ``all_requests``: each one counted as an error. Likewise ``calls``.
    """

    requests: float
    all_requests: float
    calls: float
    all_calls: float


def success(tally: Tally) -> Success:
    """Return the shares of what was answered."""
    requests, calls = tally.requests, tally.calls
    good, bad = requests[ANSWERED], requests[ERROR] + requests[REFUSED + NO_EXCUSE]
    refused = sum(n for outcome, n in requests.items() if outcome.startswith(REFUSED))
    failed = sum(n for outcome, n in calls.items() if outcome.endswith(NOT_EXCUSED))
    return Success(
        requests=_share(good, good + bad),
        all_requests=_share(good, good + requests[ERROR] + refused),
        calls=_share(calls[ANSWERED], calls[ANSWERED] + failed),
        all_calls=_share(calls[ANSWERED], sum(calls.values())),
    )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


@dataclass(frozen=True)
class Window:
    """A stretch of ``WINDOW_S`` under load: operations acknowledged a second, how many clients waited, the faults."""

    per_s: float
    began_s: float
    waiting: int
    faults: tuple[str, ...]


def slowest(run: Run) -> Window:
    """Return the stretch of whole seconds in which the fewest operations were acknowledged."""
    starts = [at_s for began_s, ended_s in run.loads for at_s in range(int(began_s) + 1, int(ended_s) - WINDOW_S + 1)]
    if not starts:
        return Window(0.0, 0.0, 0, ())
    counts = {at_s: sum(run.tally.per_second[at_s + n] for n in range(WINDOW_S)) for at_s in starts}
    at_s = min(starts, key=lambda start_s: counts[start_s])
    waiting = max(run.tally.waiting.get(at_s + n, 0) for n in range(WINDOW_S))
    return Window(counts[at_s] / WINDOW_S, at_s, waiting, tuple(run.tally.active(at_s, at_s + WINDOW_S)))


def shortcomings(run: Run) -> list[str]:
    """Return what of the three numbers that the verdict asks for was not reached."""
    shares, worst = success(run.tally), slowest(run)
    return [
        text
        for is_short, text in (
            (shares.requests < MIN_SUCCESS, f"only {shares.requests:.2%} of requests at serving replicas answered"),
            (shares.calls < MIN_SUCCESS, f"only {shares.calls:.2%} of calls answered, excused ones left out"),
            (worst.per_s < MIN_PER_S, f"only {worst.per_s:.0f} operations a second for {WINDOW_S} s"),
        )
        if is_short
    ]


def report(run: Run) -> str:
    """Return what happened, for people."""
    tally = run.tally
    requests, calls, shares, worst = tally.requests, tally.calls, success(tally), slowest(run)
    judged = [sum(getattr(each, what) for each in run.judged) for what in ("checked", "reads", "conflicts")]
    faults = Counter(fault.kind for fault in tally.faults)
    refusals = [(reason, requests[REFUSED + reason]) for reason in REASONS]
    late = sorted(tally.late_s)
    lines = [
        f"rounds                {run.round}, {run.load_s:.0f} s under load; load average {os.getloadavg()[1]:.1f}",
        f"faults                {_listed(sorted(faults.items()))}",
        f"acknowledged          {tally.acknowledged} operations",
        f"  a second            {tally.acknowledged / max(1.0, run.load_s):.0f}",
        f"  in the worst {WINDOW_S} s    {worst.per_s:.0f}, {worst.waiting} clients wait, with {_named(worst.faults)}",
        f"at serving replicas   {sum(requests.values())} requests, {requests[ANSWERED]} of them answered",
        *(f"  refused             {n}: {reason}" for reason, n in refusals if n),
        f"  given up            {requests[GIVEN_UP]}, by the client, while the replica could still wait for the past",
        f"  errors              {requests[ERROR]}",
        f"success there         {shares.requests:.2%}; {shares.all_requests:.2%} if all refusals were errors",
        f"  after a cut         {_late(late)}",
        f"calls                 {sum(calls.values())}, {calls[ANSWERED]} of them answered in time, wherever",
        *(f"  not                 {n}: {outcome}" for outcome, n in sorted(calls.items()) if outcome != ANSWERED),
        f"success for users     {shares.calls:.2%}; {shares.all_calls:.2%} with those that are excused",
        f"at replicas in trouble {_listed(sorted(tally.in_trouble.items()))}",
        f"lost with a crash     {run.lost_updates} updates; told to clients {len(tally.told_lost)} times",
        f"in step after a heal  {run.slowest_step_s:.1f} s at most",
        f"judged                {judged[0]} operations, {judged[1]} reads, {judged[2]} conflicts",
    ]
    lines += [f"error                 {n} x {why}" for why, n in tally.errors.most_common(8)]
    return "\n".join(lines)


def _late(late: list[float]) -> str:
    if not late:
        return "no refusal came when a way was whole again"
    return (
        f"refusals came up to {late[-1]:.1f} s after a way was whole again (median {statistics.median(late):.1f} s, "
        f"{len(late)} of them)"
    )


def _named(faults: Iterable[str]) -> str:
    return ", ".join(faults) or "no fault"


def _listed(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {n}" for name, n in counts) or "none"
