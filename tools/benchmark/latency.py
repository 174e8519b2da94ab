"""Latency at half load: undisturbed, while a replica joins, and while a peer hangs.

Requests are due at a fixed rate, half of the maximum, and the latency of each counts from the time at which it was due
(load_generator.py). So a pause of the server shows in every request that was due during the pause.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from replication.settings import ReplicationSettings
from tools.benchmark.drivers import PacedResult
from tools.benchmark.figures import Figure, at_most
from tools.benchmark.lag import max_rate
from tools.benchmark.processes import BenchmarkError
from tools.benchmark.stats import percentile
from tools.benchmark.systems import Causeway, Context, alive_members, wait_until
from tools.benchmark.throughput import NAMES

P99_MS: Final = 15.0
KEYS, QUICK_KEYS = 100_000, 2_000
HANG_S: Final = 2 * ReplicationSettings().down_after_s
"""Twice ``KV_DOWN_AFTER``: it includes the time before the others consider the hanging peer down."""
JOIN_S: Final = 30.0
"""Time limit for a replica to join."""

UNDISTURBED, JOINING, HANGING = "", "while another replica joins", "while a peer hangs"

Rounds = dict[tuple[str, str], list[list[float]]]
"""(Operation, disturbance) -> the latencies of each round, milliseconds."""


def measure(context: Context) -> list[Figure]:
    """Measure a cluster of three at half load: undisturbed, while the third hangs, and while a fourth joins."""
    keys = QUICK_KEYS if context.quick else KEYS
    rounds: Rounds = {}
    rates: dict[str, list[float]] = {"get": [], "put": []}
    with Causeway(context, 3, 60, spare=1) as cluster:
        context.progress(f"filling three replicas with {keys:,} keys")
        cluster.fill(replace(cluster.shape, keys=keys))
        for number in range(context.rounds):
            for operation, measured_rates in rates.items():
                context.progress(f"round {number + 1} of {context.rounds}: {NAMES[operation]} at half load")
                rate = max_rate(context, cluster, operation).rate / 2
                measured_rates.append(rate)
                for disturbance, latencies in _measure_round(context, cluster, operation, rate):
                    rounds.setdefault((operation, disturbance), []).append(latencies)
    figures = [_figure(*key, latencies, keys) for key, latencies in rounds.items()]
    halves = [Figure("latency", f"half load of {NAMES[op]}", f"{NAMES[op]}/s", r) for op, r in rates.items()]
    return [*figures, *halves]


def put_p50_ms(context: Context, cluster: Causeway, rate: float) -> float:
    """Measure the p50 of the latency of ``rate`` PUTs per second. Raises ``BenchmarkError`` if one fails."""
    done = context.bundled.run_paced(cluster.load("put"), rate, context.seconds, context.connections)
    if done.errors:
        raise BenchmarkError(f"{done.errors} of {len(done.due_s)} requests failed")
    return float(percentile(done.latency_ms, 0.5))


def _measure_round(
    context: Context, cluster: Causeway, operation: str, rate: float
) -> Iterator[tuple[str, list[float]]]:
    """Yield each disturbance with the latencies of the requests during it, milliseconds."""
    load = cluster.load(operation)
    cluster.settle()
    undisturbed = context.bundled.run_paced(load, rate, context.seconds, context.connections)
    yield UNDISTURBED, list(_require_success(undisturbed).latency_ms)
    cluster.settle()
    with (
        context.bundled.start_paced(load, rate, 1.0 if context.quick else HANG_S, context.connections) as running,
        cluster.processes.while_paused(2),
    ):
        yield HANGING, list(_require_success(running.result()).latency_ms)
    wait_until(
        "the peer that hung is alive again", lambda: all(alive_members(cluster.address(i)) == 3 for i in range(3))
    )
    cluster.settle()
    # Only requests that were due between the start of the fourth replica and its readiness count.
    with context.bundled.start_paced(load, rate, _join_window_s(context), context.connections) as running:
        began_s = time.monotonic()
        cluster.start_one(3, separate=True)
        wait_until("the fourth replica is ready", lambda: cluster.processes.is_ready(3), JOIN_S)
        ready_s = time.monotonic()
        yield JOINING, _require_success(running.result()).between(began_s, ready_s)
    cluster.processes.terminate(3)
    wait_until("the fourth replica has left", lambda: all(alive_members(cluster.address(i)) == 3 for i in range(3)))


def _join_window_s(context: Context) -> float:
    return 6.0 if context.quick else 8.0


def _require_success(result: PacedResult) -> PacedResult:
    if result.errors:
        raise BenchmarkError(f"{result.errors} of {len(result.due_s)} requests failed")
    return result


def _figure(operation: str, disturbance: str, rounds: list[list[float]], keys: int) -> Figure:
    if not all(rounds):
        raise BenchmarkError(f"no {operation} was due {disturbance}: the disturbance ended before the load began")
    what = f" {disturbance}" + (f" with {keys:,} keys" if disturbance == JOINING else "") if disturbance else ""
    p99 = [percentile(latencies, 0.99) for latencies in rounds]
    details = {"p50_ms": percentile([percentile(latencies, 0.5) for latencies in rounds], 0.5)}
    return Figure(
        "latency",
        f"p99 of {NAMES[operation]} at half load{what}",
        "ms",
        p99,
        details,
        None if disturbance == JOINING and keys < KEYS else at_most(P99_MS),
        chart="latency",
        series=NAMES[operation],
        x=disturbance or "undisturbed",
    )
