"""How many requests a second, and what one costs: Causeway beside its limits and its peers, and without causality."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tools.benchmark.drivers import Measured
from tools.benchmark.figures import Figure, Target, at_least, at_most
from tools.benchmark.loads import Load
from tools.benchmark.processes import BenchmarkError
from tools.benchmark.stats import median, number, ratios
from tools.benchmark.systems import Causeway, Etcd, Lab, Limit, Redis, System
from tools.simulation.growth import exponent, growth_in_words

NAMES: Final = {"get": "GET", "put": "PUT", "mix": "90/10 mix", "txn": "transactions"}
SIZES: Final = (1, 3, 5)
"""Replicas."""

SLICE_S: Final = 1.0
"""The shortest that wrk can."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. ``cpu_us``: CPU time of all servers together for one request; ``core``: the share of their
    core that they had. Driven as fast as they go they take all of it, unless somebody else does."""

    measured: Measured
    cpu_us: float
    core: float


def sample(lab: Lab, system: System, load: Load) -> Sample:
    """Drive ``load`` as fast as it goes. Raises ``BenchmarkError`` where a request fails: it would count as fast."""
    if lab.warm_up_s:
        lab.bundled.run(load, lab.connections, lab.warm_up_s)
    before_s = system.cpu_s()
    measured = lab.driver.run(load, lab.connections, lab.seconds)
    used_s = system.cpu_s() - before_s
    if measured.errors:
        raise BenchmarkError(f"{system.name}: {measured.errors} of {measured.requests} {load.name} requests failed")
    return Sample(measured, used_s * 1e6 / measured.requests, used_s / measured.seconds)


Samples = dict[str, dict[str, list[Sample]]]
"""Operation -> system -> one sample a round."""


def compare(lab: Lab, operations: Sequence[str], peers: Sequence[str]) -> list[Figure]:
    """Measure ``operations`` of Causeway at each size, of its limits, and of ``peers`` (``etcd``, ``redis``).

    In each round all systems are started, measured and ended one after the other: what idles costs something too. What
    is compared comes close together, and every other round goes backwards: machines become slower and faster.
    """
    one, three, five = (lambda n=n, at=at: Causeway(lab, n, at) for n, at in zip(SIZES, (0, 10, 20), strict=True))
    makers: list[Callable[[], System]] = [one, lambda: Limit(lab, "empty", 30), lambda: Limit(lab, "django", 31)]
    if "etcd" in peers:
        makers.append(lambda: Etcd(lab, 40))
    makers.append(three)
    if "redis" in peers:
        makers.append(lambda: Redis(lab, 50))
    makers.append(five)
    samples: Samples = {operation: {} for operation in operations}
    for round_ in range(lab.rounds):
        for make in reversed(makers) if round_ % 2 else makers:
            system = make()
            wanted = [operation for operation in operations if operation in system.operations]
            if not wanted:
                continue
            lab.say(f"round {round_ + 1} of {lab.rounds}: {system.name}")
            with system:
                for operation in wanted:
                    done = sample(lab, system, system.load(operation))
                    samples[operation].setdefault(system.name, []).append(done)
    return [figure for operation in operations for figure in _figures(operation, samples[operation])]


def _figures(operation: str, by_system: dict[str, list[Sample]]) -> list[Figure]:
    shown = sorted(by_system, key=lambda name: not name.startswith("Causeway"))  # those first, the others as they are
    rows = [_row(operation, name, by_system[name]) for name in shown]
    alone, three, five = (f"Causeway, {n} replica{'s' if n > 1 else ''}" for n in SIZES)
    targets = {"get": (at_least(2), at_least(1 / 3)), "put": (at_least(3), at_least(1 / 4))}
    to_etcd, to_empty = targets.get(operation, (None, None))
    rows += _ratio(operation, by_system, three, Etcd.name, to_etcd)
    rows += _ratio(operation, by_system, three, Redis.name, None)
    rows += _ratio(operation, by_system, alone, "limit: empty WSGI app", to_empty)
    rows += _ratio(operation, by_system, alone, "limit: bare Django view", None)
    if operation == "put":
        rows += _growth([[sample.cpu_us for sample in by_system[name]] for name in (alone, three, five)])
    return rows


def _row(operation: str, system: str, done: Sequence[Sample]) -> Figure:
    details = {
        "p50_ms": median([each.measured.p50_ms for each in done]),
        "p99_ms": median([each.measured.p99_ms for each in done]),
        "cpu_us": median([each.cpu_us for each in done]),
        "core": median([each.core for each in done]),
    }
    rounds = [each.measured.rate for each in done]
    return Figure(operation, f"{NAMES[operation]}: {system}", "/s", rounds, details, chart=operation, series=system)


def _ratio(
    operation: str, by_system: dict[str, list[Sample]], ours: str, theirs: str, target: Target | None
) -> list[Figure]:
    if theirs not in by_system:
        return []
    ours_done, theirs_done = by_system[ours], by_system[theirs]
    rates = ratios([each.measured.rate for each in ours_done], [each.measured.rate for each in theirs_done])
    # On a core of one's own both say the same; on a busy machine this one is the steadier.
    by_cpu = median(ratios([each.cpu_us for each in theirs_done], [each.cpu_us for each in ours_done]))
    name = f"{NAMES[operation]}: {ours} to {theirs}"
    return [Figure(operation, name, "x", rates, target=target, note=f"{number(by_cpu)} x by CPU time of a request")]


def _growth(cpu_us: Sequence[Sequence[float]]) -> list[Figure]:
    """Say how the cost of a PUT, all replicas together, grows with their number."""
    exponents = [exponent(SIZES, round_) for round_ in zip(*cpu_us, strict=True)]
    k = median(exponents)
    alone, three, five = (median(each) for each in cpu_us)
    note = (
        f"costs {growth_in_words(k)} (exponent {k:.2f}): {alone:.0f} us at 1 replica, "
        f"{(three - alone) / 2:.0f} us more for each up to 3, {(five - three) / 2:.0f} us up to 5"
    )
    name = "PUT: CPU of all replicas by their number, exponent"
    return [Figure("put", name, "", exponents, target=at_most(1.0), note=note)]


def causality(lab: Lab) -> list[Figure]:
    """Measure how much faster three replicas are without causality: slices of both in turn, both running all along.

    A few per cent are looked for, so there are many short slices: what disturbs the machine then meets both alike.
    """
    figures = []
    pairs = 1 if lab.quick else max(1, round(2 * lab.rounds * lab.seconds / SLICE_S))
    slices = replace(lab, seconds=SLICE_S, warm_up_s=0.0)
    with Causeway(lab, 3, 60) as full, Causeway(lab, 3, 70, variant=True) as bare:
        for operation in ("get", "put"):
            done: dict[System, list[Sample]] = {full: [], bare: []}
            lab.say(f"{NAMES[operation]} with and without causality, {pairs} times")
            for system in (full, bare):
                lab.bundled.run(system.load(operation), lab.connections, max(0.2, lab.warm_up_s))
            for pair in range(pairs):
                # Whoever is second finds the machine as the first has left it: each is first half of the time.
                for system in (full, bare) if pair % 2 else (bare, full):
                    done[system].append(sample(slices, system, system.load(operation)))
            figures += [_variant_row(operation, system.name, done[system]) for system in (full, bare)]
            rates = [[each.measured.rate for each in done[system]] for system in (bare, full)]
            costs = [[each.cpu_us for each in done[system]] for system in (full, bare)]
            name = f"{NAMES[operation]}: faster without causality"
            faster = [100 * (ratio - 1) for ratio in ratios(*rates)]
            cheaper = [100 * (ratio - 1) for ratio in ratios(*costs)]
            figures += [
                Figure("variant", f"{name}, by throughput", "%", faster, target=at_most(7)),
                Figure("variant", f"{name}, by CPU time", "%", cheaper),
            ]
    return figures


def _variant_row(operation: str, system: str, done: Sequence[Sample]) -> Figure:
    row = _row(operation, system, done)
    return Figure("variant", row.name, row.unit, row.rounds, row.details)
