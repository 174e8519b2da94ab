"""Acknowledged writes: PUTs that wait for other replicas, beside stores that always do, and what waiting costs.

A PUT of etcd is acknowledged by a majority of its nodes. The same promise of Causeway is ``"w":"majority"``. In the
mixed load only the PUTs wait. Redis promises less: one replica has received the write (``WAIT 1``).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from causeway_client import Session
from tools.benchmark import loads
from tools.benchmark.drivers import ClosedLoopResult
from tools.benchmark.figures import Figure, Target, at_least, at_most
from tools.benchmark.loads import Load
from tools.benchmark.processes import BenchmarkError, pinned, resident_bytes
from tools.benchmark.stats import median, number, percentile, ratios
from tools.benchmark.systems import Causeway, Context, Etcd, ReplicatedRedis, System, wait_until

CONNECTIONS: Final = (1, 16, 64, 256)
QUICK_CONNECTIONS: Final = (1, 16)
AT_LEAST: Final = 1.5
"""Target of the rate, relative to etcd, with several connections."""

MIXED_CONNECTIONS: Final = 16
VISIBLE_RATE: Final = 40.0
"""Writes per second while the latency of a single write is measured."""

WAITING, QUICK_WAITING = 256, 32
"""Writes that wait at once while their memory is measured."""

WAIT_S: Final = 50.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement. ``cpu_us``: CPU time of all servers per request. ``core``: the share of their core in use."""

    result: ClosedLoopResult
    cpu_us: float
    core: float


Samples = dict[tuple[str, int], dict[str, list[Sample]]]
"""(Operation, connections) -> system -> one sample per round."""


def measure(context: Context, peers: Sequence[str]) -> list[Figure]:
    """Measure acknowledged writes of three replicas, beside ``peers`` (``etcd``, ``redis``)."""
    samples: Samples = {}
    with contextlib.ExitStack() as running:
        ours = running.enter_context(Causeway(context, 3, 60))
        systems: list[System] = [ours]
        if "etcd" in peers:
            systems.append(running.enter_context(Etcd(context, 70)))
        if "redis" in peers:
            systems.append(running.enter_context(ReplicatedRedis(context, 80)))
        for round_ in range(context.rounds):
            for operation, connections in _loads(context):
                context.progress(f"round {round_ + 1} of {context.rounds}: {operation}, {connections} connections")
                # All systems run, and short measurements follow each other: a disturbance affects all of them alike.
                for system in reversed(systems) if round_ % 2 else systems:
                    if operation in system.operations:
                        done = _sample(context, system, _load(system, operation), connections)
                        samples.setdefault((operation, connections), {}).setdefault(system.name, []).append(done)
    figures = [figure for (op, connections), done in samples.items() for figure in _figures(op, connections, done)]
    with Causeway(context, 3, 60) as cluster:
        figures += [*_visibility(context, cluster), *_client(context, cluster), _memory(context, cluster)]
    return figures


def _loads(context: Context) -> list[tuple[str, int]]:
    connections = QUICK_CONNECTIONS if context.quick else CONNECTIONS
    return [*(("put", n) for n in connections), ("mix", MIXED_CONNECTIONS)]


def _load(system: System, operation: str) -> Load:
    if not isinstance(system, Causeway):
        return system.load(operation)
    return loads.causeway(operation, system.address(0), replace(system.shape, concern="majority"))


def _sample(context: Context, system: System, load: Load, connections: int) -> Sample:
    """Send ``load`` as fast as possible. Raises ``BenchmarkError`` if a request fails: errors are fast."""
    before_s = system.cpu_s()
    if isinstance(system, ReplicatedRedis):
        result = context.bundled.run(load, connections, context.seconds, redis=True)
    else:
        result = context.driver.run(load, connections, context.seconds)
    used_s = system.cpu_s() - before_s
    if result.errors:
        raise BenchmarkError(f"{system.name}: {result.errors} of {result.requests} {load.name} requests failed")
    return Sample(result, used_s * 1e6 / result.requests, used_s / result.seconds)


def _figures(operation: str, connections: int, by_system: dict[str, list[Sample]]) -> list[Figure]:
    what = {"put": "PUT, w majority", "mix": "90 % GET, 10 % PUT w majority"}[operation]
    load = f"{what}, {connections} connection{'s' if connections > 1 else ''}"
    rows = [_row(f"{load}: {name}", done) for name, done in by_system.items()]
    ours = next(iter(by_system.values()))
    if Etcd.name not in by_system:
        return rows
    theirs = by_system[Etcd.name]
    by_cpu = median(ratios([each.cpu_us for each in theirs], [each.cpu_us for each in ours]))
    target: Target | None = at_least(AT_LEAST) if operation == "put" and connections > 1 else None
    rates = ratios([each.result.rate for each in ours], [each.result.rate for each in theirs])
    note = f"{number(by_cpu)} x by CPU time per request"
    rows.append(Figure("acks", f"{load}, relative to {Etcd.name}", "x", rates, target=target, note=note))
    if connections == 1:
        p50 = ratios([each.result.p50_ms for each in ours], [each.result.p50_ms for each in theirs])
        rows.append(Figure("acks", f"{load}: p50 relative to {Etcd.name}", "x", p50, target=at_most(1.0)))
    return rows


def _row(name: str, done: Sequence[Sample]) -> Figure:
    details = {
        "p50_ms": median([each.result.p50_ms for each in done]),
        "p99_ms": median([each.result.p99_ms for each in done]),
        "cpu_us": median([each.cpu_us for each in done]),
    }
    # The load of Redis comes from the bundled load generator, which may be slower than Redis.
    note = "bundled load generator" if name.endswith(ReplicatedRedis.name) else ""
    return Figure("acks", name, "/s", [each.result.rate for each in done], details, note=note)


# ------------------------------------------------------------------------------------------------- one write at a time


def _visibility(context: Context, cluster: Causeway) -> list[Figure]:
    """Measure how long a single write takes until every replica shows it: the latency of a PUT with ``w`` all."""
    load = loads.causeway("put", cluster.address(0), replace(cluster.shape, concern="all"))
    rounds = []
    for round_ in range(context.rounds):
        context.progress(f"round {round_ + 1} of {context.rounds}: one write until it is visible everywhere")
        done = context.bundled.run_paced(load, VISIBLE_RATE, 2 * context.seconds, 1)
        if done.errors:
            raise BenchmarkError(f"{done.errors} of {len(done.due_s)} writes failed")
        rounds.append(list(done.latency_ms))
    return [
        Figure("acks", f"one write until every replica shows it, {name}", "ms", [percentile(r, share) for r in rounds])
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]


def _client(context: Context, cluster: Causeway) -> list[Figure]:
    """Measure one session of the Python client: calls one after another, in this process."""
    rounds: dict[str, list[float]] = {"GET": [], "PUT": [], "PUT w majority": []}
    with pinned(context.cores.load), Session([cluster.address(0)]) as session:
        calls: dict[str, Callable[[], object]] = {
            "GET": lambda: session.get("client"),
            "PUT": lambda: session.put("client", 1),
            "PUT w majority": lambda: session.put("client", 1, w="majority"),
        }
        session.put("client", 1)
        for _ in range(context.rounds):
            for name, call in calls.items():
                count, began_s = 0, time.monotonic()
                while (elapsed_s := time.monotonic() - began_s) < context.seconds:
                    call()
                    count += 1
                rounds[name].append(count / elapsed_s)
    return [Figure("acks", f"Python client, one session: {name}", "/s", rates) for name, rates in rounds.items()]


# --------------------------------------------------------------------------------------------- what waiting takes


def _memory(context: Context, cluster: Causeway) -> Figure:
    """Measure the resident memory of a replica for each write that waits for acks, its connection and thread included.

    The third replica is stopped, so that ``w`` all waits.
    """
    count = QUICK_WAITING if context.quick else WAITING
    context.progress(f"memory of {count} writes that wait for acks")
    pid = cluster.pids()[0]
    before = resident_bytes(pid)
    with cluster.processes.while_paused(2), _waiting_writes(cluster, count):
        grown = resident_bytes(pid) - before
    return Figure("acks", "memory per write that waits for acks", "KiB", [grown / count / 1024])


@contextlib.contextmanager
def _waiting_writes(cluster: Causeway, count: int) -> Iterator[None]:
    """Let ``count`` writes wait for acks while the block runs, each on a connection of its own."""
    host, _, port = cluster.address(0).rpartition(":")
    with contextlib.ExitStack() as opened:
        for i in range(count):
            body = {"value": "x" * loads.VALUE_BYTES, "w": "all", "w-timeout": WAIT_S}
            request = loads.http("PUT", f"/kvs/{loads.key(i)}", cluster.address(0), body)
            opened.enter_context(socket.create_connection((host, int(port)), timeout=5.0)).sendall(request)
        metric = 'causeway_requests_waiting{for="acks"}'
        wait_until(f"{count} writes wait for acks", lambda: cluster.metrics(0).get(metric) == count)
        yield
