"""Requests per second and their CPU time: Causeway beside baselines and other stores, and without causality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tools.benchmark.drivers import ClosedLoopResult
from tools.benchmark.figures import Figure, Target, at_least, at_most
from tools.benchmark.loads import Load
from tools.benchmark.processes import BenchmarkError
from tools.benchmark.stats import median, number, ratios
from tools.benchmark.systems import EMPTY_APP, MINIMAL_VIEW, Baseline, Causeway, Context, Etcd, Redis, System
from tools.simulation.growth import exponent

NAMES: Final = {"get": "GET", "put": "PUT", "mix": "90/10 mix", "txn": "transactions"}
SIZES: Final = (1, 3, 5)
"""Numbers of replicas."""

CAUSALITY_US: Final = {"get": 3.0, "put": 4.0}
"""Targets for the CPU time of causality, on a machine where a request of the empty app takes 12 microseconds."""

SLICE_S: Final = 1.0
"""The shortest run of wrk."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement.

    ``cpu_us``: CPU time of all servers per request. ``core``: the share of their core that the servers used; under full
    load less than 1 means that other processes took the rest.
    """

    result: ClosedLoopResult
    cpu_us: float
    core: float


def sample(context: Context, system: System, load: Load) -> Sample:
    """Send ``load`` as fast as possible. Raises ``BenchmarkError`` if a request fails: errors are fast."""
    if context.warm_up_s:
        context.bundled.run(load, context.connections, context.warm_up_s)
    before_s = system.cpu_s()
    result = context.driver.run(load, context.connections, context.seconds)
    used_s = system.cpu_s() - before_s
    if result.errors:
        raise BenchmarkError(f"{system.name}: {result.errors} of {result.requests} {load.name} requests failed")
    return Sample(result, used_s * 1e6 / result.requests, used_s / result.seconds)


Samples = dict[str, dict[str, list[Sample]]]
"""Operation -> system -> one sample per round."""


def compare(context: Context, operations: Sequence[str], peers: Sequence[str]) -> list[Figure]:
    """Measure ``operations`` of Causeway at each size, of the baselines, and of ``peers`` (``etcd``, ``redis``).

    Only one system runs at a time: idle systems use CPU time too. Each round measures all systems once; every other
    round measures them in reverse order. Systems that are compared follow each other closely. So a drift of the
    machine's speed affects both sides of a comparison.
    """
    one, three, five = (lambda n=n, at=at: Causeway(context, n, at) for n, at in zip(SIZES, (0, 10, 20), strict=True))
    makers: list[Callable[[], System]] = [
        one,
        lambda: Baseline(context, "empty", 30),
        lambda: Baseline(context, "django", 31),
    ]
    if "etcd" in peers:
        makers.append(lambda: Etcd(context, 40))
    makers.append(three)
    if "redis" in peers:
        makers.append(lambda: Redis(context, 50))
    makers.append(five)
    samples: Samples = {operation: {} for operation in operations}
    for round_ in range(context.rounds):
        for make in reversed(makers) if round_ % 2 else makers:
            system = make()
            wanted = [operation for operation in operations if operation in system.operations]
            if not wanted:
                continue
            context.progress(f"round {round_ + 1} of {context.rounds}: {system.name}")
            with system:
                for operation in wanted:
                    done = sample(context, system, system.load(operation))
                    samples[operation].setdefault(system.name, []).append(done)
    return [figure for operation in operations for figure in _figures(operation, samples[operation])]


def _figures(operation: str, by_system: dict[str, list[Sample]]) -> list[Figure]:
    names = sorted(by_system, key=lambda name: not name.startswith("Causeway"))  # Causeway first
    rows = [_row(operation, name, by_system[name]) for name in names]
    alone, three, five = (f"Causeway, {n} replica{'s' if n > 1 else ''}" for n in SIZES)
    targets = {"get": (at_least(4), at_least(0.45)), "put": (at_least(3.3), at_least(0.33))}
    to_etcd, to_empty = targets.get(operation, (None, None))
    rows += _ratio(operation, by_system, three, Etcd.name, to_etcd)
    rows += _ratio(operation, by_system, three, Redis.name, None)
    rows += _ratio(operation, by_system, alone, EMPTY_APP, to_empty)
    rows += _ratio(operation, by_system, alone, MINIMAL_VIEW, None)
    if operation == "put":
        rows += _growth([[sample.cpu_us for sample in by_system[name]] for name in (alone, three, five)])
    return rows


def _row(operation: str, system: str, done: Sequence[Sample]) -> Figure:
    details = {
        "p50_ms": median([each.result.p50_ms for each in done]),
        "p99_ms": median([each.result.p99_ms for each in done]),
        "cpu_us": median([each.cpu_us for each in done]),
        "core": median([each.core for each in done]),
    }
    rounds = [each.result.rate for each in done]
    return Figure(operation, f"{NAMES[operation]}: {system}", "/s", rounds, details, chart=operation, series=system)


def _ratio(
    operation: str, by_system: dict[str, list[Sample]], ours: str, theirs: str, target: Target | None
) -> list[Figure]:
    if theirs not in by_system:
        return []
    ours_done, theirs_done = by_system[ours], by_system[theirs]
    rates = ratios([each.result.rate for each in ours_done], [each.result.rate for each in theirs_done])
    # On an idle machine both ratios agree; on a busy one the ratio of CPU times varies less.
    by_cpu = median(ratios([each.cpu_us for each in theirs_done], [each.cpu_us for each in ours_done]))
    name = f"{NAMES[operation]}: {ours}, relative to {theirs}"
    return [Figure(operation, name, "x", rates, target=target, note=f"{number(by_cpu)} x by CPU time per request")]


def _growth(cpu_us: Sequence[Sequence[float]]) -> list[Figure]:
    """Return how the CPU time of a PUT, at all replicas together, grows with their number."""
    exponents = [exponent(SIZES, round_) for round_ in zip(*cpu_us, strict=True)]
    alone, three, five = (median(each) for each in cpu_us)
    note = (
        f"CPU time of one PUT, all replicas together: {alone:.0f} µs with 1 replica, {three:.0f} µs with 3 "
        f"({three / alone:.1f} times), {five:.0f} µs with 5 ({five / alone:.1f} times)"
    )
    name = "PUT: CPU of all replicas by number of replicas, exponent"
    return [Figure("put", name, "", exponents, target=at_most(1.0), note=note)]


def causality(context: Context) -> list[Figure]:
    """Measure how much faster three replicas are without causality (the ablation).

    Both clusters run all the time and are measured alternately. The difference is a few per cent, so there are many
    short slices: a disturbance of the machine then affects both clusters alike.
    """
    figures = []
    pairs = 1 if context.quick else max(1, round(2 * context.rounds * context.seconds / SLICE_S))
    slices = replace(context, seconds=SLICE_S, warm_up_s=0.0)
    with Causeway(context, 3, 60) as full, Causeway(context, 3, 70, ablated=True) as ablated:
        for operation in ("get", "put"):
            done: dict[System, list[Sample]] = {full: [], ablated: []}
            context.progress(f"{NAMES[operation]} with and without causality, {pairs} times")
            for system in (full, ablated):
                context.bundled.run(system.load(operation), context.connections, max(0.2, context.warm_up_s))
            for pair in range(pairs):
                # The first measurement can affect the second one, so each cluster is first half of the time.
                for system in (full, ablated) if pair % 2 else (ablated, full):
                    done[system].append(sample(slices, system, system.load(operation)))
            figures += [_ablation_row(operation, system.name, done[system]) for system in (full, ablated)]
            rates = [[each.result.rate for each in done[system]] for system in (ablated, full)]
            costs = [[each.cpu_us for each in done[system]] for system in (full, ablated)]
            faster = [100 * (ratio - 1) for ratio in ratios(*rates)]
            extra_us = [with_it - without for with_it, without in zip(*costs, strict=True)]
            target = at_most(CAUSALITY_US[operation])
            figures += [
                Figure("ablation", f"{NAMES[operation]}: CPU for causality", "µs", extra_us, target=target),
                Figure("ablation", f"{NAMES[operation]}: faster without causality", "%", faster),
            ]
    return figures


def _ablation_row(operation: str, system: str, done: Sequence[Sample]) -> Figure:
    row = _row(operation, system, done)
    return Figure("ablation", row.name, row.unit, row.rounds, row.details)
