"""What open event streams of the change feed cost: PUTs beside them, memory, and how soon a follower sees a write.

All places for streams but one are taken at one replica, which also receives the load. Each stream follows a prefix of
its own that does not change: it waits, as most streams do most of the time.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from typing import Final

from store.settings import StoreSettings
from tools.benchmark import loads
from tools.benchmark.figures import Figure, at_most
from tools.benchmark.lag import KEY, Probe, half_load, max_rate
from tools.benchmark.latency import put_p50_ms
from tools.benchmark.processes import BenchmarkError, resident_bytes
from tools.benchmark.stats import percentile, ratios
from tools.benchmark.systems import Causeway, Context, request_json, wait_until

STREAMS, QUICK_STREAMS = StoreSettings().max_streams - 1, 32
"""One place is left for the follower that is measured."""

AT_MOST: Final = 1.3
"""Target: the p50 of a PUT beside all streams, relative to the p50 without any."""

BEHIND_MS: Final = 5.0
"""Target: how much later the event of a write arrives than the response of a watch for it, p50."""


def measure(context: Context) -> list[Figure]:
    """Measure PUTs at half of the maximum rate, alternately without and with streams; then followers beside both."""
    count = QUICK_STREAMS if context.quick else STREAMS
    without: list[float] = []
    beside: list[float] = []
    lags: list[float] = []
    stream_lags: list[float] = []
    with Causeway(context, 3, 60) as cluster:
        rate = max_rate(context, cluster, "put").rate / 2
        # The first time, because Python keeps the memory for the next streams.
        memory = _memory_kib(cluster, count)
        for number in range(context.rounds):
            context.progress(f"round {number + 1} of {context.rounds}: PUT beside {count} event streams")
            without.append(put_p50_ms(context, cluster, rate))
            cluster.settle()
            with streams(cluster, count):
                beside.append(put_p50_ms(context, cluster, rate))
                cluster.settle()
                with half_load(context, cluster, rate):
                    probe = Probe([cluster.address(1), cluster.address(0)], streams=True)
                    lags.append(1000 * percentile(probe.run(2 * context.seconds), 0.5))
                    stream_lags.append(1000 * percentile(probe.stream_lags_s, 0.5))
    behind = [stream - lag for stream, lag in zip(stream_lags, lags, strict=True)]
    return [
        Figure("streams", "p50 of PUT at half load, no streams", "ms", without),
        Figure("streams", f"p50 of PUT at half load, {count} event streams", "ms", beside),
        Figure("streams", "p50 beside the streams, relative", "x", ratios(beside, without), target=at_most(AT_MOST)),
        Figure("streams", "lag beside the streams, p50", "ms", lags),
        Figure("streams", "lag of a follower, p50", "ms", stream_lags),
        Figure("streams", "lag of a follower above that of a watch", "ms", behind, target=at_most(BEHIND_MS)),
        Figure("streams", "memory per idle stream", "KiB", [memory]),
    ]


def _memory_kib(cluster: Causeway, count: int) -> float:
    """Return what each of ``count`` new streams adds to the memory of the first replica."""
    before = resident_bytes(cluster.pids()[0])
    with streams(cluster, count):
        return (resident_bytes(cluster.pids()[0]) - before) / count / 1024


@contextlib.contextmanager
def streams(cluster: Causeway, count: int) -> Iterator[None]:
    """Keep ``count`` event streams open at the first replica. None of their prefixes changes."""
    address = cluster.address(0)
    host, _, port = address.rpartition(":")
    with contextlib.ExitStack() as opened:
        for number in range(count):
            connection = opened.enter_context(socket.create_connection((host, int(port)), timeout=5.0))
            path = f"/changes?prefix=stream-{number:04}/"
            connection.sendall(loads.http("GET", path, address, headers=[("Accept", "text/event-stream")]))
        _wait_until_open(cluster, count)
        yield
        _check_open(cluster, count)
    _end(cluster, count)


def _wait_until_open(cluster: Causeway, count: int) -> None:
    wait_until(f"{count} event streams are open", lambda: _open(cluster) == count)
    time.sleep(0.2)


def _end(cluster: Causeway, count: int) -> None:
    """Wait until no stream is open. The replica notices that clients are gone when it sends to them."""
    keys = [KEY.removeprefix("/kvs/"), *(f"stream-{number:04}/key" for number in range(count))]

    def none_is_open() -> bool:
        request_json(cluster.address(0), "POST", "/kvs", {"writes": [{"key": key, "value": 0} for key in keys]})
        return _open(cluster) == 0

    wait_until("no event stream is open", none_is_open, every_s=0.2)


def _check_open(cluster: Causeway, count: int) -> None:
    # One that has been closed meanwhile, the follower, may still count.
    if _open(cluster) < count:
        raise BenchmarkError(f"{_open(cluster):.0f} of {count} event streams are open at the end")


def _open(cluster: Causeway) -> float:
    return cluster.metrics(0)["causeway_event_streams"]
