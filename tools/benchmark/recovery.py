"""How long it takes until all replicas have everything again: after an empty start, and after a partition."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from tools.benchmark import loads
from tools.benchmark.figures import Figure, at_most
from tools.benchmark.loads import Shape
from tools.benchmark.relay import Relay
from tools.benchmark.systems import Causeway, Context, alive_members, request_json, wait_until

CATCH_UP_S: Final[Mapping[int, float | None]] = {0: None, 10_000: None, 100_000: 4.0}
"""Number of keys -> target in seconds for an empty replica to fetch them. 0 keys shows the cost of the start alone."""

WRITES, QUICK_WRITES = 10_000, 500
HEAL_S: Final = 3.0
PARTITION_S: Final = 5.0
"""Longer than ``KV_DOWN_AFTER``: each side considers the other one down."""


def catch_up(context: Context) -> list[Figure]:
    """Start an empty replica beside one that has keys; measure the time until it serves."""
    figures = []
    for number, (keys, limit_s) in enumerate(CATCH_UP_S.items()):
        count = keys // 50 if context.quick else keys
        with Causeway(context, 1, 60 + 2 * number, Shape(keys=count), spare=1) as cluster:
            rounds = []
            for i in range(context.rounds):
                context.progress(f"round {i + 1} of {context.rounds}: an empty replica fetches {count:,} keys")
                rounds.append(_time_of_start(cluster))
                cluster.processes.kill(1)
        target = at_most(limit_s) if limit_s and not context.quick else None
        name = f"an empty replica starts and fetches {count:,} keys" if keys else "an empty replica starts, no keys"
        figures.append(Figure("catchup", name, "s", rounds, target=target))
    return figures


def _time_of_start(cluster: Causeway) -> float:
    began_s = time.monotonic()
    cluster.start_one(1)
    wait_until("the empty replica serves", lambda: cluster.processes.is_ready(1), every_s=0.005)
    took_s = time.monotonic() - began_s
    existing, fetched = (cluster.status(i)["keys"] for i in (0, 1))
    assert existing == fetched, f"the new replica serves {fetched} of {existing} keys"
    return took_s


def healing(context: Context) -> list[Figure]:
    """Partition two replicas, write at both, heal the partition; measure the time until both have all writes."""
    writes = QUICK_WRITES if context.quick else WRITES
    rounds = []
    for number in range(context.rounds):
        context.progress(f"round {number + 1} of {context.rounds}: {writes:,} writes on each side of a partition")
        with _partitionable_pair(context) as pair:
            rounds.append(_heal_s(context, pair, writes))
    name = f"{writes:,} writes on each side of a partition: time from healing to equal replicas"
    return [Figure("heal", name, "s", rounds, target=None if context.quick else at_most(HEAL_S))]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replicas behind relays. ``addresses``: where the replicas listen; reachable during a partition too."""

    addresses: tuple[str, str]
    relays: tuple[Relay, Relay]

    def clocks(self) -> list[dict[str, int]]:
        """Return the clocks of both replicas."""
        return [request_json(address, "GET", "/replication/status").body["clock"] for address in self.addresses]


@contextlib.contextmanager
def _partitionable_pair(context: Context) -> Iterator[Pair]:
    """Start two replicas that reach each other only through relays."""
    fronts = (context.port(60), context.port(61))
    backs = (context.port(62), context.port(63))
    with contextlib.ExitStack() as cleanup:
        first, second = (cleanup.enter_context(Relay(*ports)) for ports in zip(fronts, backs, strict=True))
        cluster = Causeway(context, 0, 60, Shape(keys=0), spare=2)
        cleanup.callback(cluster.processes.stop, 0)
        for i, back in enumerate(backs):
            cluster.start_one(i, {"KV_BIND": f"127.0.0.1:{back}"})
        cluster.processes.wait_ready()
        pair = Pair((f"127.0.0.1:{backs[0]}", f"127.0.0.1:{backs[1]}"), (first, second))
        wait_until(
            "both replicas see each other", lambda: all(alive_members(address) == 2 for address in pair.addresses)
        )
        yield pair


def _heal_s(context: Context, pair: Pair, writes: int) -> float:
    for relay in pair.relays:
        relay.cut()
    cut_s = time.monotonic()
    for i, address in enumerate(pair.addresses):
        context.bundled.send_each_once(loads.fill(address, Shape(keys=writes), first=i * writes))
    time.sleep(max(0.0, cut_s + PARTITION_S - time.monotonic()))
    left, right = pair.clocks()
    assert left != right, "updates passed the partition"
    joined = {replica: max(left.get(replica, 0), right.get(replica, 0)) for replica in left.keys() | right.keys()}
    began_s = time.monotonic()
    for relay in pair.relays:
        relay.heal()
    wait_until("both replicas have all writes", lambda: all(clock == joined for clock in pair.clocks()))
    return time.monotonic() - began_s
