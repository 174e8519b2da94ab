"""Replication lag: from sending a PUT at one replica to receiving the response that shows it at another replica.

The lag contains two requests and the replication between them: the time that a user waits, not only the replicas' part.
A writer sends a probe every ``PAUSE_S``. At each other replica a request watches the key (``If-None-Match`` and
``wait``); the replica responds as soon as the key changes.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tools.benchmark.drivers import ClosedLoopResult
from tools.benchmark.figures import Figure, at_most
from tools.benchmark.processes import BenchmarkError
from tools.benchmark.stats import percentile
from tools.benchmark.systems import Causeway, Context

KEY: Final = "/kvs/probe"
PAUSE_S: Final = 0.025
IDLE: Final = (3.0, 10.0)
HALF_LOAD: Final = (8.0, 30.0)
"""Targets for p50 and p99 of the lag, milliseconds."""


class Probe:
    """Writes at the first of ``addresses`` and watches at the others, with one connection and one thread for each.

    ``lags_s``: one lag per probe and watching replica. The lag of a probe that was overwritten before a watcher saw it
    ends when the watcher sees a later one.
    ``stream_lags_s``: the same for an event stream of the change feed at each of these replicas, if ``streams``.
    """

    def __init__(self, addresses: Sequence[str], *, streams: bool = False) -> None:
        self._addresses = addresses
        self._streams = streams
        self.stream_lags_s: list[float] = []
        self._sent_s: list[float] = []
        self._stopping = threading.Event()
        self._failures: list[BaseException] = []
        self.lags_s: list[float] = []

    def run(self, seconds: float) -> list[float]:
        """Probe for this time and return the lags, seconds. Raises ``BenchmarkError`` if a request fails."""
        writer = http.client.HTTPConnection(self._addresses[0], timeout=10)
        etag = self._put(writer)
        others = self._addresses[1:]
        watchers = [threading.Thread(target=self._guarded, args=(self._watch, address, etag)) for address in others]
        if self._streams:
            watchers += [threading.Thread(target=self._guarded, args=(self._follow, address)) for address in others]
        time.sleep(0.2)  # The first probe has reached all replicas by then; it is not counted.
        for watcher in watchers:
            watcher.start()
        end_s = time.monotonic() + seconds
        try:
            while time.monotonic() < end_s and not self._failures:
                time.sleep(PAUSE_S)
                self._put(writer)
        finally:
            time.sleep(PAUSE_S)
            self._stopping.set()
            self._put(writer)  # Wakes the watchers, so that they stop.
            for watcher in watchers:
                watcher.join()
            writer.close()
        if self._failures:
            raise BenchmarkError(f"the lag probe failed: {self._failures[0]!r}")
        return self.lags_s

    def _put(self, writer: http.client.HTTPConnection) -> str:
        number = len(self._sent_s)
        self._sent_s.append(time.monotonic())
        writer.request("PUT", KEY, json.dumps({"value": number}), {"Content-Type": "application/json"})
        response = writer.getresponse()
        response.read()
        if response.status not in (200, 201):
            raise BenchmarkError(f"the PUT of a probe returned {response.status}")
        return response.getheader("ETag") or ""

    def _guarded(self, job: Callable[..., None], *arguments: str) -> None:
        try:
            job(*arguments)
        except BaseException as exc:  # noqa: BLE001  # ``run`` raises it in the caller's thread
            self._failures.append(exc)

    def _watch(self, address: str, etag: str) -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        seen = 0
        while not self._stopping.is_set():
            connection.request("GET", f"{KEY}?wait=5", headers={"If-None-Match": etag})
            response = connection.getresponse()
            body = response.read()
            now_s = time.monotonic()
            if response.status == 304:
                continue
            if response.status != 200:
                raise BenchmarkError(f"a watching GET returned {response.status}")
            etag = response.getheader("ETag") or ""
            seen = self._note(self.lags_s, now_s, seen, json.loads(body)["value"])
        connection.close()

    def _follow(self, address: str) -> None:
        connection = http.client.HTTPConnection(address, timeout=30)
        path = f"/changes?prefix={KEY.removeprefix('/kvs/')}"
        connection.request("GET", path, headers={"Accept": "text/event-stream"})
        response = connection.getresponse()
        if response.status != 200:
            raise BenchmarkError(f"a stream returned {response.status}")
        seen = -1
        while not self._stopping.is_set():
            line = response.readline()
            now_s = time.monotonic()
            if line.startswith(b"data: "):
                for change in json.loads(line[6:])["changes"]:
                    # The first event has the state at the beginning: it says nothing about the lag.
                    lags = self.stream_lags_s if seen >= 0 else []
                    seen = self._note(lags, now_s, seen, change["value"])
        response.close()
        connection.close()

    def _note(self, lags_s: list[float], now_s: float, seen: int, number: int) -> int:
        """Add the lags of the probes after ``seen`` up to ``number``, which arrived now; return ``number``."""
        if not self._stopping.is_set():
            lags_s += [now_s - self._sent_s[each] for each in range(seen + 1, number + 1)]
        return number


def max_rate(context: Context, cluster: Causeway, operation: str) -> ClosedLoopResult:
    """Measure the maximum rate of ``operation`` in a closed loop. The half load is half of it."""
    result = context.driver.run(cluster.load(operation), context.connections, max(1.0, context.seconds / 2))
    if result.errors:
        raise BenchmarkError(f"{result.errors} of {result.requests} requests failed")
    return result


def measure(context: Context) -> list[Figure]:
    """Measure the lag in a cluster of three, alternately idle and at half of the maximum PUT rate."""
    idle: list[list[float]] = []
    loaded: list[list[float]] = []
    rates: list[float] = []
    with Causeway(context, 3, 60) as cluster:
        addresses = [cluster.address(i) for i in range(3)]
        for number in range(context.rounds):
            context.progress(f"round {number + 1} of {context.rounds}: replication lag, idle and at half load")
            cluster.settle()
            idle.append(Probe(addresses).run(2 * context.seconds))
            rate = max_rate(context, cluster, "put").rate / 2
            rates.append(rate)
            cluster.settle()
            with half_load(context, cluster, rate):
                loaded.append(Probe(addresses).run(2 * context.seconds))
    return [
        *_figures("lag, idle", idle, IDLE),
        *_figures("lag, half load of PUT", loaded, HALF_LOAD),
        Figure("lag", "half load of PUT", "PUT/s", rates),
    ]


@contextmanager
def half_load(context: Context, cluster: Causeway, rate: float) -> Iterator[None]:
    """Send ``rate`` PUTs per second while the block runs. Raises ``BenchmarkError`` if one fails."""
    # The load starts 0.7 s before the probe and ends after it, so that it covers the probe's start and end.
    with context.bundled.start_paced(
        cluster.load("put"), rate, 2 * context.seconds + 1.5, context.connections
    ) as running:
        time.sleep(0.7)
        yield
        result = running.result()
    if result.errors:
        raise BenchmarkError(f"{result.errors} of {len(result.due_s)} requests failed")


def _figures(name: str, rounds: Sequence[Sequence[float]], limits: tuple[float, float]) -> list[Figure]:
    if not all(rounds):
        raise BenchmarkError(f"{name}: no probe reached another replica")
    return [
        Figure(
            "lag",
            f"{name}, {title}",
            "ms",
            [1000 * percentile(lags, share) for lags in rounds],
            target=at_most(limit),
            chart="lag",
            series=name,
            x=title,
        )
        for share, title, limit in ((0.5, "p50", limits[0]), (0.99, "p99", limits[1]))
    ]
