"""How long it takes until everything is everywhere again: an empty replica, and two sides of a partition."""

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
from tools.benchmark.systems import Causeway, Lab, ask, wait_until

CATCH_UP_S: Final[Mapping[int, float | None]] = {0: None, 10_000: None, 100_000: 4.0}
"""Keys -> seconds in which an empty replica is to have them. With 0 it shows what its start alone takes."""

WRITES, QUICK_WRITES = 10_000, 500
HEAL_S: Final = 3.0
PARTITION_S: Final = 5.0
"""Longer than ``KV_DOWN_AFTER``: each side believes the other one down."""


def catch_up(lab: Lab) -> list[Figure]:
    """Start an empty replica beside one that holds so many keys, and wait until it serves."""
    figures = []
    for number, (keys, limit_s) in enumerate(CATCH_UP_S.items()):
        wanted = keys // 50 if lab.quick else keys
        with Causeway(lab, 1, 60 + 2 * number, Shape(keys=wanted), spare=1) as cluster:
            rounds = []
            for i in range(lab.rounds):
                lab.say(f"round {i + 1} of {lab.rounds}: an empty replica catches up {wanted:,} keys")
                rounds.append(_time_of_start(cluster))
                cluster.cluster.kill(1)
        target = at_most(limit_s) if limit_s and not lab.quick else None
        name = f"an empty replica starts and catches up {wanted:,} keys" if keys else "a replica starts among no keys"
        figures.append(Figure("catchup", name, "s", rounds, target=target))
    return figures


def _time_of_start(cluster: Causeway) -> float:
    began_s = time.monotonic()
    cluster.start_one(1)
    wait_until("the empty replica serves", lambda: cluster.cluster.is_ready(1), every_s=0.005)
    took_s = time.monotonic() - began_s
    here, there = (cluster.status(i)["keys"] for i in (0, 1))
    assert here == there, f"it serves {there} keys of {here}"
    return took_s


def healing(lab: Lab) -> list[Figure]:
    """Cut two replicas off from each other, write at both, heal, and wait until both have everything."""
    writes = QUICK_WRITES if lab.quick else WRITES
    rounds = []
    for number in range(lab.rounds):
        lab.say(f"round {number + 1} of {lab.rounds}: {writes:,} writes on each side of a partition")
        with _divided(lab) as pair:
            rounds.append(_heal_s(lab, pair, writes))
    name = f"{writes:,} writes on each side of a partition are everywhere after its healing"
    return [Figure("heal", name, "s", rounds, target=None if lab.quick else at_most(HEAL_S))]


@dataclass(frozen=True, slots=True)
class Pair:
    """Two replicas behind relays. ``addresses``: where they themselves listen, cut off or not."""

    addresses: tuple[str, str]
    relays: tuple[Relay, Relay]

    def clocks(self) -> list[dict[str, int]]:
        """Return both clocks."""
        return [ask(address, "GET", "/replication/status").body["clock"] for address in self.addresses]


@contextlib.contextmanager
def _divided(lab: Lab) -> Iterator[Pair]:
    """Two replicas, each behind a relay, that know each other."""
    fronts = (lab.port(60), lab.port(61))
    backs = (lab.port(62), lab.port(63))
    with contextlib.ExitStack() as ending:
        first, second = (ending.enter_context(Relay(*ports)) for ports in zip(fronts, backs, strict=True))
        cluster = Causeway(lab, 0, 60, Shape(keys=0), spare=2)
        ending.callback(cluster.cluster.stop, 0)
        for i, back in enumerate(backs):
            cluster.start_one(i, {"KV_BIND": f"127.0.0.1:{back}"})
        cluster.cluster.wait_ready()
        pair = Pair((f"127.0.0.1:{backs[0]}", f"127.0.0.1:{backs[1]}"), (first, second))
        wait_until("the two see each other", lambda: all(_alive(address) == 2 for address in pair.addresses))
        yield pair


def _heal_s(lab: Lab, pair: Pair, writes: int) -> float:
    for relay in pair.relays:
        relay.cut()
    cut_s = time.monotonic()
    for i, address in enumerate(pair.addresses):
        lab.bundled.once(loads.fill(address, Shape(keys=writes), first=i * writes))
    time.sleep(max(0.0, cut_s + PARTITION_S - time.monotonic()))
    left, right = pair.clocks()
    assert left != right, "the partition let everything through"
    wanted = {replica: max(left.get(replica, 0), right.get(replica, 0)) for replica in left.keys() | right.keys()}
    began_s = time.monotonic()
    for relay in pair.relays:
        relay.heal()
    wait_until("both sides have everything", lambda: all(clock == wanted for clock in pair.clocks()))
    return time.monotonic() - began_s


def _alive(address: str) -> int:
    view = ask(address, "GET", "/replication/status").body["view"]
    return sum(member["state"] == "alive" for member in view)
