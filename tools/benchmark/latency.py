"""Latency at half load, while nothing else happens, while a replica joins, and while a peer hangs.

The load comes at a fixed rate, half of what the cluster can take, and each request is timed from when it was due
(client.py), so that a pause of the server is seen by all the requests that would have come in it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from tools.benchmark.drivers import Paced
from tools.benchmark.figures import Figure, at_most
from tools.benchmark.lag import greatest
from tools.benchmark.processes import BenchmarkError
from tools.benchmark.stats import percentile
from tools.benchmark.systems import Causeway, Lab, wait_until
from tools.benchmark.throughput import NAMES

P99_MS: Final = 15.0
KEYS, QUICK_KEYS = 100_000, 2_000
HANG_S: Final = 6.0
"""Twice ``KV_DOWN_AFTER``: so the time is in it in which the others do not know yet."""
JOIN_S: Final = 30.0
"""How long a replica may take to join."""

PLAIN, JOINING, HANGING = "", "while another replica joins", "while a peer hangs"

Rounds = dict[tuple[str, str], list[list[float]]]
"""(Operation, what happens meanwhile) -> the latencies of each round, milliseconds."""


def measure(lab: Lab) -> list[Figure]:
    """Measure a cluster of three at half load; a fourth joins, the third hangs."""
    keys = QUICK_KEYS if lab.quick else KEYS
    rounds: Rounds = {}
    rates: dict[str, list[float]] = {"get": [], "put": []}
    with Causeway(lab, 3, 60, spare=1) as cluster:
        lab.say(f"filling three replicas with {keys:,} keys")
        cluster.fill(replace(cluster.shape, keys=keys))
        for number in range(lab.rounds):
            for operation, told in rates.items():
                lab.say(f"round {number + 1} of {lab.rounds}: {NAMES[operation]} at half load")
                rate = greatest(lab, cluster, operation).rate / 2
                told.append(rate)
                for meanwhile, latencies in _three(lab, cluster, operation, rate):
                    rounds.setdefault((operation, meanwhile), []).append(latencies)
    figures = [_figure(*key, latencies, keys) for key, latencies in rounds.items()]
    halves = [Figure("latency", f"that half load of {NAMES[op]}", f"{NAMES[op]}/s", r) for op, r in rates.items()]
    return [*figures, *halves]


def _three(lab: Lab, cluster: Causeway, operation: str, rate: float) -> Iterator[tuple[str, list[float]]]:
    load = cluster.load(operation)
    cluster.settle()
    yield PLAIN, _sound(lab.bundled.paced(load, rate, lab.seconds, lab.connections)).between(0, float("inf"))
    cluster.settle()
    with lab.bundled.pacing(load, rate, 1.0 if lab.quick else HANG_S, lab.connections) as running, hanging(cluster, 2):
        yield HANGING, _sound(running.result()).between(0, float("inf"))
    wait_until("the peer that hung is back", lambda: all(_sees(cluster, i, 3) for i in range(3)))
    cluster.settle()
    # As long as it takes, and of that only what lies between its start and its being ready.
    with lab.bundled.pacing(load, rate, _join_window_s(lab), lab.connections) as running:
        began_s = time.monotonic()
        cluster.start_one(3, apart=True)
        wait_until("the fourth replica has joined", lambda: cluster.cluster.is_ready(3), JOIN_S)
        ready_s = time.monotonic()
        latencies = _sound(running.result()).between(began_s, ready_s)
        yield JOINING, latencies
    cluster.cluster.terminate(3)
    wait_until("the fourth replica has left", lambda: all(_sees(cluster, i, 3) for i in range(3)))


def _join_window_s(lab: Lab) -> float:
    return 6.0 if lab.quick else 8.0


@contextmanager
def hanging(cluster: Causeway, i: int) -> Iterator[None]:
    """Let replica ``i`` hang (SIGSTOP) while the block runs: it takes connections and answers nothing."""
    pid = cluster.cluster.pid(i)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _sound(paced: Paced) -> Paced:
    if paced.errors:
        raise BenchmarkError(f"{paced.errors} of {len(paced.due_s)} requests failed")
    return paced


def _sees(cluster: Causeway, i: int, members: int) -> bool:
    states = [member["state"] for member in cluster.status(i)["view"]]
    return states.count("alive") == members


def _figure(operation: str, meanwhile: str, rounds: list[list[float]], keys: int) -> Figure:
    if not all(rounds):
        raise BenchmarkError(f"no {operation} {meanwhile}: it was over before the load began")
    what = f" {meanwhile}" + (f" with {keys:,} keys" if meanwhile == JOINING else "") if meanwhile else ""
    p99 = [percentile(latencies, 0.99) for latencies in rounds]
    details = {"p50_ms": percentile([percentile(latencies, 0.5) for latencies in rounds], 0.5)}
    return Figure(
        "latency",
        f"p99 of {NAMES[operation]} at half load{what}",
        "ms",
        p99,
        details,
        None if meanwhile == JOINING and keys < KEYS else at_most(P99_MS),
        chart="latency",
        series=NAMES[operation],
        x=meanwhile or "plain",
    )
