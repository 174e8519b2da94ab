"""What things cost: memory of a key, bytes and CPU time of an update on its way, and how a request's cost grows."""

from __future__ import annotations

import contextlib
import http.client
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import msgspec

from replication.messages import Exchange, MembershipEntry, encode
from store.clock import replica_id
from store.versions import Update, Write, encode_update
from tools.benchmark import loads
from tools.benchmark.figures import Figure, at_most
from tools.benchmark.lag import greatest
from tools.benchmark.loads import Load, Shape
from tools.benchmark.processes import BenchmarkError, cpu_s, resident_bytes
from tools.benchmark.systems import Causeway, Lab, ask, wait_until
from tools.benchmark.throughput import NAMES, Sample, sample

MEMORY_KEYS, QUICK_MEMORY_KEYS = 100_000, 5_000
BYTES_A_KEY: Final = 900.0
VALUE_BYTES: Final = 32
DISTINCT_PASTS: Final = 1000

KEYS: Final = (1_000, 10_000, 100_000)
MANY_KEYS: Final = 1_000_000
VALUES: Final = (32, 1024, 16 * 1024)
CLOCKS: Final = (3, 30, 300)
PORTIONS: Final = {
    "keys": (1000, "thousand keys"),
    "bytes of the value": (1024, "KiB of the value"),
    "members, each in the clock": (1, "member"),
}
FLAT: Final = 1.15
"""Costs that differ by less are taken for equal: so much do measurements of the same thing."""


# ------------------------------------------------------------------------------------------------------------ memory


def memory(lab: Lab) -> list[Figure]:
    """Measure resident memory before and after so many keys, at their writer and at a peer.

    Each key is written by a request of its own whose history differs from all those around it: clocks that repeat are
    shared in memory, and would make a key look cheaper than it may be.
    """
    keys = QUICK_MEMORY_KEYS if lab.quick else MEMORY_KEYS
    lab.say(f"memory of {keys:,} keys")
    environment = {"KV_SYNC_INTERVAL": "0.2"}  # Drains the log at the end of the filling; changes nothing else.
    with Causeway(lab, 3, 60, Shape(keys=2_000), environment=environment) as cluster:
        ids = [cluster.status(i)["replica_id"] for i in range(3)]
        for i in (1, 2):
            cluster.fill(Shape(keys=DISTINCT_PASTS), i, first=10_000_000 + i * DISTINCT_PASTS)
        before = [resident_bytes(pid) for pid in cluster.pids()]
        told = cluster.status(0)
        address = cluster.address(0)
        load = Load("fill", address, [_put_with_past(address, ids, number) for number in range(keys)])
        lab.bundled.once(load)
        cluster.settle()
        wait_until("the log is drained", lambda: all(cluster.status(i)["log"]["updates"] == 0 for i in range(3)))
        grown = [(resident_bytes(pid) - was) / keys for pid, was in zip(cluster.pids(), before, strict=True)]
        estimated = (cluster.status(0)["data_bytes"] - told["data_bytes"]) / keys
    what = f"value of {VALUE_BYTES} bytes, clock of three entries, {keys:,} keys"
    target = None if lab.quick else at_most(BYTES_A_KEY)  # Of few keys, most would be what a process always grows by.
    return [
        Figure("memory", "memory of a key at its writer", "bytes", [grown[0]], target=target, note=what),
        Figure("memory", "the same at a peer", "bytes", [max(grown[1:])], target=target),
        Figure("memory", "the same as KV_MAX_MEMORY reckons it", "bytes", [estimated]),
    ]


def _put_with_past(address: str, ids: Sequence[str], number: int) -> bytes:
    """Return the PUT of a new key whose past names the two other replicas, each time at other counters."""
    past = {ids[1]: 1 + number % DISTINCT_PASTS, ids[2]: 1 + (7 * number) % DISTINCT_PASTS}
    value = f"{number:0{VALUE_BYTES - 2}d}"  # and two quotes: what is kept is the value's JSON
    body = {"value": value, "causal-metadata": past}
    return loads.http("PUT", f"/kvs/{loads.key(20_000_000 + number)}", address, body)


# ---------------------------------------------------------------------------------------------------------- exchanges


def exchanges(lab: Lab) -> list[Figure]:
    """Measure what an update costs on its way to each of two peers: written alone, and under half load."""
    figures = []
    with Causeway(lab, 3, 60) as cluster:
        half = greatest(lab, cluster, "put").rate / 2
        for name, rate in (("an update written alone", 20.0), ("an update at half load", half)):
            bytes_, cpu_us, messages = [], [], []
            for number in range(lab.rounds):
                lab.say(f"round {number + 1} of {lab.rounds}: what {name} costs on its way")
                cost = _cost_of_updates(lab, cluster, rate)
                bytes_.append(cost[0])
                cpu_us.append(cost[1])
                messages.append(cost[2])
            figures += [
                Figure("exchange", f"{name}: bytes to each peer, both directions", "bytes", bytes_),
                Figure("exchange", f"{name}: exchanges with each peer", "", messages),
                Figure("exchange", f"{name}: CPU of each peer", "us", cpu_us),
            ]
    return figures


def _cost_of_updates(lab: Lab, cluster: Causeway, rate: float) -> tuple[float, float, float]:
    """Return bytes, microseconds of CPU and exchanges of one update and peer, less what the cluster takes idle."""
    seconds = 2 * lab.seconds
    cluster.settle()
    idle = _Reading(cluster)
    time.sleep(seconds)
    loaded = _Reading(cluster)
    idle_bytes, idle_cpu_s, idle_exchanges = loaded.since(idle)
    updates = len(lab.bundled.paced(cluster.load("put"), rate, seconds, lab.connections).due_s)
    bytes_, used_s, exchanges_ = _Reading(cluster).since(loaded)
    peers = cluster.replicas - 1
    return (
        (bytes_ - idle_bytes) / updates / peers,
        (used_s - idle_cpu_s) * 1e6 / updates / peers,
        (exchanges_ - idle_exchanges) / updates / peers,
    )


class _Reading:
    """What exchanges have moved so far in a cluster, and what the peers of the first replica have worked."""

    def __init__(self, cluster: Causeway) -> None:
        told = [cluster.metrics(i) for i in range(cluster.replicas)]
        # Each exchange is counted by who asked and by who answered: once is enough.
        self.bytes = sum(_of(each, "sum", "sent") + _of(each, "sum", "received") for each in told)
        self.exchanges = sum(_of(each, "count", "sent") for each in told)
        self.cpu_s = cpu_s(cluster.pids()[1:])

    def since(self, other: _Reading) -> tuple[float, float, float]:
        """Return the differences: bytes, CPU seconds, exchanges."""
        return self.bytes - other.bytes, self.cpu_s - other.cpu_s, self.exchanges - other.exchanges


def _of(metrics: dict[str, float], what: str, direction: str) -> float:
    return metrics.get(f'causeway_exchange_bytes_{what}{{direction="{direction}",role="asked"}}', 0.0)


# ------------------------------------------------------------------------------------------------------------- growth


def growth(lab: Lab) -> list[Figure]:
    """Measure what a request costs one replica with more keys, longer values, longer clocks."""
    sizes = (*KEYS, MANY_KEYS) if lab.full else (KEYS[:2] if lab.quick else KEYS)
    by_keys = [Causeway(lab, 1, 60 + i, Shape(keys=0)) for i in range(len(sizes))]
    with contextlib.ExitStack() as running:
        clusters = [running.enter_context(cluster) for cluster in by_keys]
        for cluster, keys in zip(clusters, sizes, strict=True):
            lab.say(f"filling a replica with {keys:,} keys")
            _fill_at_once(cluster.address(0), keys)
            cluster.shape = replace(cluster.shape, keys=keys)
        figures = _by(lab, "keys", sizes, lambda i: clusters[i], flat=True)
    shapes = [Shape(keys=200, value_bytes=size) for size in VALUES]
    with contextlib.ExitStack() as running:
        clusters = [running.enter_context(Causeway(lab, 1, 70 + i, shape)) for i, shape in enumerate(shapes)]
        figures += _by(lab, "bytes of the value", VALUES, lambda i: clusters[i])
    with contextlib.ExitStack() as running:
        clusters = [running.enter_context(_with_clock(lab, 80 + i, length)) for i, length in enumerate(CLOCKS)]
        figures += _by(lab, "members, each in the clock", CLOCKS, lambda i: clusters[i])
    return figures


def _by(
    lab: Lab, what: str, sizes: Sequence[int], cluster_of: Callable[[int], Causeway], *, flat: bool = False
) -> list[Figure]:
    """Measure GET and PUT at each of ``sizes``, in turn; ``flat``: a PUT's cost is not to grow."""
    figures = []
    for operation in ("get", "put"):
        done: list[list[Sample]] = [[] for _ in sizes]
        for number in range(lab.rounds):
            lab.say(f"round {number + 1} of {lab.rounds}: {NAMES[operation]} by {what}")
            for i in range(len(sizes)):
                cluster = cluster_of(i)
                # As many different requests as there are keys, or nearly: few keys stay in the processor's caches.
                count = min(max(loads.DISTINCT, cluster.shape.keys), 20_000)
                done[i].append(sample(lab, cluster, cluster.load(operation, count)))
        costs = [[each.cpu_us for each in samples] for samples in done]
        figures += [_point(operation, what, *pair) for pair in zip(sizes, done, strict=True)]
        figures.append(_law(operation, what, sizes, costs))
        if flat and operation == "put":
            name = f"{NAMES[operation]}: CPU at {sizes[-1]:,} {what} to that at {sizes[0]:,}"
            rounds = [last / first for first, last in zip(costs[0], costs[-1], strict=True)]
            figures.append(Figure("growth", name, "x", rounds, target=at_most(FLAT)))
    return figures


def _law(operation: str, what: str, sizes: Sequence[int], costs: Sequence[Sequence[float]]) -> Figure:
    """Say how CPU time grows: what each further ``PORTIONS`` of ``what`` costs, between the ends of ``sizes``."""
    rounds = list(zip(*costs, strict=True))
    portion, of_it = PORTIONS[what]
    each_us = [portion * (last - first) / (sizes[-1] - sizes[0]) for first, *_, last in rounds]
    return Figure("growth", f"{NAMES[operation]}: CPU of each further {of_it}", "us", each_us)


def _point(operation: str, what: str, size: int, done: Sequence[Sample]) -> Figure:
    name = f"{NAMES[operation]}: CPU with {size:,} {what}"
    rounds = [each.cpu_us for each in done]
    return Figure("growth", name, "us", rounds, chart=f"growth by {what}", series=NAMES[operation], x=size)


def _fill_at_once(address: str, keys: int) -> None:
    """Write ``keys`` keys in transactions of a thousand."""
    for first in range(0, keys, 1000):
        writes = [{"key": loads.key(i), "value": "0" * VALUE_BYTES} for i in range(first, min(first + 1000, keys))]
        reply = ask(address, "POST", "/kvs", {"writes": writes})
        if reply.status != 200:
            raise BenchmarkError(f"filling: {reply.status} {reply.body}")


# ----------------------------------------------------------------------------------------------------- many replicas


class _Crowded(Causeway):
    """One replica that believes ``members`` others to belong, each of which has issued an update that it has.

    They do not exist: one message says all that they would have said. So the clock, and the metadata of a session that
    has read something of each, has as many entries. Nobody is asked again soon: only requests are measured.
    """

    def __init__(self, lab: Lab, port: int, members: int) -> None:
        self._others = members - 1
        environment = {"KV_SYNC_INTERVAL": "300", "KV_DOWN_AFTER": "600"}
        super().__init__(lab, 1, port, Shape(keys=0), environment=environment)

    def start(self) -> None:
        super().start()
        forge_members(self.address(0), self._others)
        metadata = {name: counter for name, counter in self.status(0)["clock"].items() if counter}
        self.shape = Shape(keys=200, metadata=metadata)
        self.lab.bundled.once(loads.fill(self.address(0), self.shape))


def _with_clock(lab: Lab, port: int, length: int) -> Causeway:
    return _Crowded(lab, port, length)


def forge_members(address: str, count: int) -> None:
    """Make the replica at ``address`` believe that ``count`` others belong, each with one update that it gets now.

    Their addresses are ports of 127.0.0.1 below 1024 where nobody listens. Raises ``BenchmarkError``.
    """
    time_us = time.time_ns() // 1000
    addresses = [f"127.0.0.1:{port}" for port in range(100, 100 + count)]
    incarnation = (time_us // 1000) << 21
    ids = [replica_id(other, incarnation) for other in addresses]
    message = Exchange(
        sender=ids[0],
        heartbeat=1,
        time=time_us,
        membership_digest=0,
        clock=dict.fromkeys(ids, 1),
        retired_digest=0,
        state="serving",
        membership={other: MembershipEntry(incarnation, time_us, belongs=True) for other in addresses},
        batch=[msgspec.Raw(encode_update(_first_update(id_, i, time_us))) for i, id_ in enumerate(ids)],
    )
    reply = post_bytes(address, "/replication/exchange", encode(message))
    told = ask(address, "GET", "/replication/status").body["clock"]
    if reply != 200 or len(told) < count:
        raise BenchmarkError(f"the replica took {len(told)} of {count} entries into its clock ({reply})")


def _first_update(id_: str, number: int, time_us: int) -> Update:
    return Update(id_, 1, time_us, {}, (Write(f"member:{number}", b"1", (), None),))


def post_bytes(address: str, path: str, body: bytes) -> int:
    """Send a message as a replica does; return the status."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/msgpack"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
