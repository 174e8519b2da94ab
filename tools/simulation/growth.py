"""Messages and bytes per write as the cluster grows, counted in the simulation for sizes beyond one machine.

The replicas are those that servers run. Every message is encoded in its wire form and counted. The network is good (a
delay of a few milliseconds, no losses), so the counts show the protocol's own cost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from statistics import linear_regression

from replication.messages import Exchange, SnapshotPiece, SnapshotRequest, encode
from store.versions import Change
from tools.simulation.world import SETTLE_S, Conditions, Host, World

ALONE_S = 0.05
"""Longer than a write takes in this network to reach every replica and to be acknowledged."""

KEYS = 1000
VALUE = b'"0123456789abcdef0123456789abcd"'
"""30 characters, 32 bytes of JSON. (The benchmark's values have 32 characters: see ``loads.VALUE_BYTES``.)"""


@dataclass(slots=True)
class Traffic:
    """Traffic on the network: the number of requests and replies, and the bytes of their bodies."""

    messages: int = 0
    bytes: int = 0

    def add(self, *sizes: int) -> None:
        """Count messages of these sizes."""
        self.messages += len(sizes)
        self.bytes += sum(sizes)


@dataclass(frozen=True, slots=True)
class Growth:
    """The counts for ``replicas``.

    ``messages``, ``bytes``: per write, of the exchanges that carry updates. ``idle_messages_s``, ``idle_bytes_s``:
    traffic per second without writes. ``rate``: writes per second, all at one replica; 0 if each write was alone.
    """

    replicas: int
    rate: float
    messages: float
    bytes: float
    idle_messages_s: float
    idle_bytes_s: float


class CountingWorld(World):
    """A world that counts its traffic. ``carrying``: of exchanges with updates in either direction; ``other``: the
    rest.
    """

    def __init__(self, rng: Random, replicas: int) -> None:
        good = Conditions(delay_s=0.004, slow=0.0, loss=0.0, duplication=0.0)
        addresses = [f"10.0.{i // 250}.{i % 250}:8090" for i in range(replicas)]
        super().__init__(rng, addresses, conditions=good)
        self.carrying, self.other = Traffic(), Traffic()
        self._requests: dict[tuple[str, int], tuple[int, bool]] = {}

    def reset(self) -> None:
        """Reset the counts."""
        self.carrying, self.other = Traffic(), Traffic()

    def _send(self, host: Host, to: str, serial: int, message: Exchange | SnapshotRequest) -> None:
        self._requests[host.address, serial] = len(encode(message)), _carries(message)
        super()._send(host, to, serial, message)

    def _reply(self, host: Host, boot: int, to: str, serial: int, reply: Exchange | SnapshotPiece) -> None:
        asked, carried = self._requests.pop((host.address, serial))
        (self.carrying if carried or _carries(reply) else self.other).add(asked, len(encode(reply)))
        super()._reply(host, boot, to, serial, reply)


def _carries(message: Exchange | SnapshotRequest | SnapshotPiece) -> bool:
    return isinstance(message, Exchange) and bool(message.batch)


def count(replicas: int, *, writes: int = 20, rate: float = 2000.0, seed: int = 1) -> tuple[Growth, Growth]:
    """Start ``replicas`` and let them settle; return the cost of a write alone, and of one of many writes.

    Alone: ``writes`` writes at random replicas, each after the one before has reached every replica. Many: ten times
    as many at one replica, at ``rate`` per second. Raises ``RuntimeError`` if the replicas do not settle.
    """
    rng = Random(seed)
    world = CountingWorld(rng, replicas)
    for address in world.hosts:
        world.start(address)
    _settle(world)
    # Until each pair has exchanged again, replicas send tables to peers that have them already.
    world.run_until(world.now_s + 2 * world.settings.sync_interval_s)
    world.reset()
    # Idle replicas exchange once per sync interval and peer: one interval contains all of that traffic.
    world.run_until(world.now_s + world.settings.sync_interval_s)
    idle = world.other
    hosts = list(world.hosts.values())
    alone = _watch(world, [(rng.choice(hosts), ALONE_S) for _ in range(writes)], rng)
    many = _watch(world, [(hosts[0], rng.expovariate(rate)) for _ in range(10 * writes)], rng)
    interval_s = world.settings.sync_interval_s

    def growth(traffic: Traffic, number: int, rate: float) -> Growth:
        idle_rates = idle.messages / interval_s, idle.bytes / interval_s
        return Growth(replicas, rate, traffic.messages / number, traffic.bytes / number, *idle_rates)

    return growth(alone, writes, 0.0), growth(many, 10 * writes, rate)


def _watch(world: CountingWorld, plan: Sequence[tuple[Host, float]], rng: Random) -> Traffic:
    """Write at each planned host, pausing after each write; return the traffic of exchanges that carry updates."""
    world.reset()
    for host, pause_s in plan:
        _write(world, host, rng)
        world.run_until(world.now_s + pause_s)
    _settle(world)
    return world.carrying


def _write(world: World, host: Host, rng: Random) -> None:
    """Write one key at ``host``, like a client that has just read the key there."""
    replica, now = host.replica, world.now(host)
    assert replica is not None
    key = f"key:{rng.randrange(KEYS):012d}"
    past = replica.store.get(key, {}, now).metadata
    replica.store.put(Change(key, VALUE), past, now)
    world.schedule_pump(host)


def _settle(world: World) -> None:
    """Run until all replicas settle. Raises RuntimeError if that takes longer than ``SETTLE_S``."""
    limit_s = world.now_s + SETTLE_S
    while world.unsettled() is not None:
        if world.now_s > limit_s:
            raise RuntimeError(f"{len(world.hosts)} replicas do not settle: {world.unsettled()}")
        world.run_until(world.now_s + 0.5)


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the exponent k of the best fit cost ~ size**k: the slope of log cost over log size, by least squares."""
    return linear_regression([math.log(size) for size in sizes], [math.log(cost) for cost in costs]).slope


def growth_in_words(k: float) -> str:
    """Describe how costs ~ size**k grow."""
    names = (
        (-0.15, "fall"),
        (0.15, "do not grow"),
        (0.85, "grow slower than linearly"),
        (1.15, "grow linearly"),
        (1.85, "grow slower than the square"),
        (2.15, "grow with the square"),
        (2.85, "grow slower than the cube"),
        (3.15, "grow with the cube"),
    )
    return next((words for limit, words in names if k < limit), "grow faster than the cube")


def law(counted: Sequence[Growth]) -> str:
    """Describe how the messages and bytes of a write, and the idle traffic, grow with the number of replicas."""
    others = [each.replicas - 1 for each in counted]
    laws = [
        ("a write's messages", [each.messages for each in counted]),
        ("its bytes", [each.bytes for each in counted]),
        ("idle messages", [each.idle_messages_s for each in counted]),
        ("and idle bytes", [each.idle_bytes_s for each in counted]),
    ]
    exponents = [(name, exponent(others, costs)) for name, costs in laws]
    return "with n replicas " + ", ".join(f"{name} {growth_in_words(k)} ((n-1)^{k:.1f})" for name, k in exponents)
