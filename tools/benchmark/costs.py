"""Costs: memory per key, bytes and CPU time of replicating an update, and how the cost of a request grows."""

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
from tools.benchmark.lag import max_rate
from tools.benchmark.loads import VALUE_BYTES, Load, Shape
from tools.benchmark.processes import BenchmarkError, cpu_s, resident_bytes
from tools.benchmark.systems import Causeway, Context, request_json, wait_until
from tools.benchmark.throughput import NAMES, Sample, sample

MEMORY_KEYS, QUICK_MEMORY_KEYS = 100_000, 5_000
MAX_BYTES_PER_KEY: Final = 900.0
DISTINCT_METADATA: Final = 1000

KEYS: Final = (1_000, 10_000, 100_000)
MANY_KEYS: Final = 1_000_000
VALUES: Final = (VALUE_BYTES, 1024, 16 * 1024)
CLOCKS: Final = (3, 30, 300)
# What grows -> (how much of it one unit is, its name).
UNITS: Final = {
    "keys": (1000, "1,000 keys"),
    "value bytes": (1024, "KiB of the value"),
    "members": (1, "member"),
}
FLAT: Final = 1.15
"""Costs whose ratio is at most this count as equal: repeated measurements of one cost differ by as much."""


# ------------------------------------------------------------------------------------------------------------ memory


def memory(context: Context) -> list[Figure]:
    """Measure the resident memory before and after writing keys, at the writer and at its peers.

    Each key is written by its own request, with a causal past that differs from those of the keys around it. Equal
    clocks share memory, and would make a key look cheaper than it is in general.
    """
    keys = QUICK_MEMORY_KEYS if context.quick else MEMORY_KEYS
    context.progress(f"memory of {keys:,} keys")
    environment = {"KV_SYNC_INTERVAL": "0.2"}  # Drains the log soon after the last write; has no other effect here.
    with Causeway(context, 3, 60, Shape(keys=2_000), environment=environment) as cluster:
        ids = [cluster.status(i)["replica_id"] for i in range(3)]
        for i in (1, 2):
            cluster.fill(Shape(keys=DISTINCT_METADATA), i, first=10_000_000 + i * DISTINCT_METADATA)
        before = [resident_bytes(pid) for pid in cluster.pids()]
        before_bytes = cluster.status(0)["data_bytes"]
        address = cluster.address(0)
        load = Load("fill", address, [_put_with_metadata(address, ids, number) for number in range(keys)])
        context.bundled.send_each_once(load)
        cluster.settle()
        wait_until("the logs are empty", lambda: all(cluster.status(i)["log"]["updates"] == 0 for i in range(3)))
        grown = [(resident_bytes(pid) - was) / keys for pid, was in zip(cluster.pids(), before, strict=True)]
        estimated = (cluster.status(0)["data_bytes"] - before_bytes) / keys
    what = f"value of {VALUE_BYTES} bytes, clock of three entries, {keys:,} keys"
    # With few keys, most of the growth is not caused by keys.
    target = None if context.quick else at_most(MAX_BYTES_PER_KEY)
    return [
        Figure("memory", "memory per key at the writer", "bytes", [grown[0]], target=target, note=what),
        Figure("memory", "memory per key at a peer", "bytes", [max(grown[1:])], target=target),
        Figure("memory", "memory per key as KV_MAX_MEMORY counts it", "bytes", [estimated]),
    ]


def _put_with_metadata(address: str, ids: Sequence[str], number: int) -> bytes:
    """Return the PUT of a new key. Its metadata has varying counters of the two other replicas."""
    metadata = {ids[1]: 1 + number % DISTINCT_METADATA, ids[2]: 1 + (7 * number) % DISTINCT_METADATA}
    body = {"value": f"{number:0{VALUE_BYTES}d}", "causal-metadata": metadata}
    return loads.http("PUT", f"/kvs/{loads.key(20_000_000 + number)}", address, body)


# ---------------------------------------------------------------------------------------------------------- exchanges


def exchanges(context: Context) -> list[Figure]:
    """Measure the cost of replicating an update to each of two peers: one update alone, and at half load."""
    figures = []
    with Causeway(context, 3, 60) as cluster:
        half = max_rate(context, cluster, "put").rate / 2
        for name, rate in (("one update alone", 20.0), ("one update at half load", half)):
            bytes_, cpu_us, messages = [], [], []
            for number in range(context.rounds):
                context.progress(f"round {number + 1} of {context.rounds}: replication of {name}")
                cost = _cost_of_updates(context, cluster, rate)
                bytes_.append(cost[0])
                cpu_us.append(cost[1])
                messages.append(cost[2])
            figures += [
                Figure("exchange", f"{name}: bytes per peer, both directions", "bytes", bytes_),
                Figure("exchange", f"{name}: exchanges per peer", "", messages),
                Figure("exchange", f"{name}: CPU per peer", "µs", cpu_us),
            ]
    return figures


def _cost_of_updates(context: Context, cluster: Causeway, rate: float) -> tuple[float, float, float]:
    """Return bytes, CPU microseconds and exchanges per update and peer, minus those of an idle cluster."""
    seconds = 2 * context.seconds
    cluster.settle()
    idle = _Counters(cluster)
    time.sleep(seconds)
    loaded = _Counters(cluster)
    idle_bytes, idle_cpu_s, idle_exchanges = loaded.since(idle)
    updates = len(context.bundled.run_paced(cluster.load("put"), rate, seconds, context.connections).due_s)
    bytes_, used_s, exchanges_ = _Counters(cluster).since(loaded)
    peers = cluster.replicas - 1
    return (
        (bytes_ - idle_bytes) / updates / peers,
        (used_s - idle_cpu_s) * 1e6 / updates / peers,
        (exchanges_ - idle_exchanges) / updates / peers,
    )


class _Counters:
    """The bytes and exchanges of a cluster so far, and the CPU time of the peers of its first replica."""

    def __init__(self, cluster: Causeway) -> None:
        metrics = [cluster.metrics(i) for i in range(cluster.replicas)]
        # Both replicas of an exchange count it. The metrics of the requesting role count each exchange once.
        self.bytes = sum(
            _exchange_bytes(each, "sum", "sent") + _exchange_bytes(each, "sum", "received") for each in metrics
        )
        self.exchanges = sum(_exchange_bytes(each, "count", "sent") for each in metrics)
        self.cpu_s = cpu_s(cluster.pids()[1:])

    def since(self, other: _Counters) -> tuple[float, float, float]:
        """Return the differences: bytes, CPU seconds, exchanges."""
        return self.bytes - other.bytes, self.cpu_s - other.cpu_s, self.exchanges - other.exchanges


def _exchange_bytes(metrics: dict[str, float], what: str, direction: str) -> float:
    return metrics.get(f'causeway_exchange_bytes_{what}{{direction="{direction}",role="asked"}}', 0.0)


# ------------------------------------------------------------------------------------------------------------- growth


def growth(context: Context) -> list[Figure]:
    """Measure the CPU time of a request at one replica with more keys, longer values and longer clocks."""
    sizes = (*KEYS, MANY_KEYS) if context.full else (KEYS[:2] if context.quick else KEYS)
    by_keys = [Causeway(context, 1, 60 + i, Shape(keys=0)) for i in range(len(sizes))]
    with contextlib.ExitStack() as running:
        clusters = [running.enter_context(cluster) for cluster in by_keys]
        for cluster, keys in zip(clusters, sizes, strict=True):
            context.progress(f"filling a replica with {keys:,} keys")
            _fill_by_transactions(cluster.address(0), keys)
            cluster.shape = replace(cluster.shape, keys=keys)
        figures = _by_size(context, "keys", sizes, lambda i: clusters[i], flat=True)
    shapes = [Shape(keys=200, value_bytes=size) for size in VALUES]
    with contextlib.ExitStack() as running:
        clusters = [running.enter_context(Causeway(context, 1, 70 + i, shape)) for i, shape in enumerate(shapes)]
        figures += _by_size(context, "value bytes", VALUES, lambda i: clusters[i])
    with contextlib.ExitStack() as running:
        clusters = [running.enter_context(_ManyMembers(context, 80 + i, length)) for i, length in enumerate(CLOCKS)]
        figures += _by_size(context, "members", CLOCKS, lambda i: clusters[i])
    return figures


def _by_size(
    context: Context, what: str, sizes: Sequence[int], cluster_of: Callable[[int], Causeway], *, flat: bool = False
) -> list[Figure]:
    """Measure GET and PUT at each of ``sizes``, interleaved. ``flat``: the target is that a PUT does not cost more."""
    figures = []
    for operation in ("get", "put"):
        samples: list[list[Sample]] = [[] for _ in sizes]
        for number in range(context.rounds):
            context.progress(f"round {number + 1} of {context.rounds}: {NAMES[operation]} by {what}")
            for i in range(len(sizes)):
                cluster = cluster_of(i)
                # Use about as many different requests as keys. A few keys would stay in the processor's caches.
                count = min(max(loads.DISTINCT, cluster.shape.keys), 20_000)
                samples[i].append(sample(context, cluster, cluster.load(operation, count)))
        costs = [[each.cpu_us for each in at_size] for at_size in samples]
        figures += [_point(operation, what, *pair) for pair in zip(sizes, samples, strict=True)]
        figures.append(_slope(operation, what, sizes, costs))
        if flat and operation == "put":
            name = f"{NAMES[operation]}: CPU with {sizes[-1]:,} {what} relative to {sizes[0]:,}"
            rounds = [last / first for first, last in zip(costs[0], costs[-1], strict=True)]
            figures.append(Figure("growth", name, "x", rounds, target=at_most(FLAT)))
    return figures


def _slope(operation: str, what: str, sizes: Sequence[int], costs: Sequence[Sequence[float]]) -> Figure:
    """Return the additional CPU time per unit (``UNITS``) of ``what``, between the smallest and the largest size."""
    rounds = list(zip(*costs, strict=True))
    unit, unit_name = UNITS[what]
    each_us = [unit * (last - first) / (sizes[-1] - sizes[0]) for first, *_, last in rounds]
    return Figure("growth", f"{NAMES[operation]}: additional CPU per {unit_name}", "µs", each_us)


def _point(operation: str, what: str, size: int, samples: Sequence[Sample]) -> Figure:
    name = f"{NAMES[operation]}: CPU with {size:,} {what}"
    rounds = [each.cpu_us for each in samples]
    return Figure("growth", name, "µs", rounds, chart=f"growth by {what}", series=NAMES[operation], x=size)


def _fill_by_transactions(address: str, keys: int) -> None:
    """Write ``keys`` keys in transactions of 1,000."""
    for first in range(0, keys, 1000):
        writes = [{"key": loads.key(i), "value": "0" * VALUE_BYTES} for i in range(first, min(first + 1000, keys))]
        response = request_json(address, "POST", "/kvs", {"writes": writes})
        if response.status != 200:
            raise BenchmarkError(f"a transaction that writes keys returned {response.status}: {response.body}")


# ----------------------------------------------------------------------------------------------------- many replicas


class _ManyMembers(Causeway):
    """One replica whose membership table has ``members`` members, each of which has issued one update.

    The other members do not exist; one forged message introduces them. So the clock, and the metadata of a session that
    has read from each, have one entry per member. The intervals of exchanges are long, so that only requests are
    measured.
    """

    def __init__(self, context: Context, port: int, members: int) -> None:
        self._others = members - 1
        environment = {"KV_SYNC_INTERVAL": "300", "KV_DOWN_AFTER": "600"}
        super().__init__(context, 1, port, Shape(keys=0), environment=environment)

    def start(self) -> None:
        super().start()
        forge_members(self.address(0), self._others)
        metadata = {name: counter for name, counter in self.status(0)["clock"].items() if counter}
        self.shape = Shape(keys=200, metadata=metadata)
        self.context.bundled.send_each_once(loads.fill(self.address(0), self.shape))


def forge_members(address: str, count: int) -> None:
    """Add ``count`` members that do not exist to the membership table of a replica, with one update of each.

    Their addresses are ports of 127.0.0.1 below 1024, where no server listens. Raises ``BenchmarkError`` if the replica
    does not accept them.
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
    status = post_bytes(address, "/replication/exchange", encode(message))
    clock = request_json(address, "GET", "/replication/status").body["clock"]
    if status != 200 or len(clock) < count:
        raise BenchmarkError(f"the replica has {len(clock)} of {count} entries in its clock (status {status})")


def _first_update(id_: str, number: int, time_us: int) -> Update:
    return Update(id_, 1, time_us, {}, (Write(f"member:{number}", b"1", (), None),))


def post_bytes(address: str, path: str, body: bytes) -> int:
    """Send a replication message; return the HTTP status."""
    connection = http.client.HTTPConnection(address, timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/msgpack"})
        response = connection.getresponse()
        response.read()
        return response.status
    finally:
        connection.close()
