"""What waiting requests cost others: PUTs beside all waiting places, taken by the most expensive requests allowed.

Three kinds of requests wait at one replica, as many of each as it has places: watches of keys that do not change, with
as many entity tags as a header may have; reads whose causal past never arrives, with as many ids as metadata may have;
and writes that wait for acks of a replica that is stopped. That replica is stopped during all measurements.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Final

from store.api.conditions import MAX_TAGS
from store.settings import RequestLimits, StoreSettings
from tools.benchmark import loads
from tools.benchmark.figures import Figure, at_most
from tools.benchmark.lag import max_rate
from tools.benchmark.latency import put_p50_ms
from tools.benchmark.stats import ratios
from tools.benchmark.systems import Causeway, Context, request_json, wait_until

AT_MOST: Final = 1.5
"""Target: the p50 of a PUT with all places taken, relative to the p50 with none taken."""

WAIT_S, QUICK_WAIT_S = 20.0, 4.0
PLACES, QUICK_PLACES = StoreSettings().max_watchers, 32
"""How long the requests wait, and how many of each kind."""

KINDS: Final = ("change", "causal past", "acks")
"""Label of the metric ``causeway_requests_waiting`` for each kind of request."""


def measure(context: Context) -> list[Figure]:
    """Measure PUTs at half of the maximum rate, alternately without and with all places taken."""
    places, wait_s = (QUICK_PLACES, QUICK_WAIT_S) if context.quick else (PLACES, WAIT_S)
    without: list[float] = []
    beside: list[float] = []
    with Causeway(context, 3, 60) as cluster:
        rate = max_rate(context, cluster, "put").rate / 2
        with cluster.processes.while_paused(2):
            for number in range(context.rounds):
                context.progress(f"round {number + 1} of {context.rounds}: PUT beside {places} requests of each kind")
                without.append(put_p50_ms(context, cluster, rate))
                with all_waiting(cluster, places, wait_s):
                    beside.append(put_p50_ms(context, cluster, rate))
    note = f"{places} watches, {places} deferred reads and {places} writes that wait for acks"
    return [
        Figure("waiting", "p50 of PUT at half load, nothing waits", "ms", without),
        Figure("waiting", "p50 of PUT at half load, all places taken", "ms", beside, note=note),
        Figure("waiting", "p50 with all places taken, relative", "x", ratios(beside, without), target=at_most(AT_MOST)),
        Figure("waiting", "half load of PUT", "PUT/s", [rate]),
    ]


@contextlib.contextmanager
def all_waiting(cluster: Causeway, places: int, wait_s: float) -> Iterator[None]:
    """Let ``places`` requests of each kind wait at the first replica for ``wait_s``: longer than the block runs."""
    address = cluster.address(0)
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as opened:
        for request in _requests(address, places, wait_s):
            connection = opened.enter_context(socket.create_connection((host, int(port)), timeout=5.0))
            connection.sendall(request)
        _wait_until_waiting(cluster, places)
        yield
        _wait_until_waiting(cluster, places)  # Otherwise they did not wait for the whole time.
    # The requests of clients that are gone keep their places until their time is up or others need the places.
    _wait_until_waiting(cluster, 0)


def _requests(address: str, places: int, wait_s: float) -> Iterator[bytes]:
    """Yield ``places`` requests of each kind."""
    request_json(address, "PUT", "/kvs/watched", {"value": 1})
    response = request_json(address, "GET", "/kvs/watched")
    tags = ", ".join([response.headers["etag"], *(f'"{number}"' for number in range(MAX_TAGS - 1))])
    past = {f"10.0.0.1:1@{number:016x}": 1 for number in range(1, RequestLimits().max_clock_entries + 1)}
    for number in range(places):
        yield loads.http("GET", f"/kvs/watched?wait={wait_s:g}", address, headers=[("If-None-Match", tags)])
        yield loads.http("GET", f"/kvs/watched?wait={wait_s:g}", address, {"causal-metadata": past})
        yield loads.http("PUT", f"/kvs/waits-{number}", address, {"value": 1, "w": "all", "w-timeout": wait_s})


def _wait_until_waiting(cluster: Causeway, places: int) -> None:
    """Wait until ``places`` requests of each kind wait at the first replica. Raises ``BenchmarkError``."""
    names = [f'causeway_requests_waiting{{for="{kind}"}}' for kind in KINDS]

    def all_wait() -> bool:
        metrics = cluster.metrics(0)
        return all(metrics[name] == places for name in names)

    wait_until(f"{places} requests of each kind wait", all_wait)
