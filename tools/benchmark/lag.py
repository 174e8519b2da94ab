"""Replication lag: from the sending of a PUT at one replica to the answer that shows it at another.

So it has two requests in it and the way between the replicas: it is what a user waits, and more than the replicas'
own part. A writer sends a probe every ``PAUSE_S``; at each other replica a request watches the key (``If-None-Match``
and ``wait``) and is answered the moment it changes.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from tools.benchmark.drivers import Measured
from tools.benchmark.figures import Figure, at_most
from tools.benchmark.processes import BenchmarkError
from tools.benchmark.stats import percentile
from tools.benchmark.systems import Causeway, Lab

KEY: Final = "/kvs/probe"
PAUSE_S: Final = 0.025
IDLE: Final = (4.0, 20.0)
HALF_LOAD: Final = (15.0, 60.0)
"""p50 and p99 that the lag may have, milliseconds."""


class Probe:
    """Writes at the first of ``addresses`` and watches at the others. One connection and one thread for each.

    ``lags_s``: one of each probe and watching replica. A probe that was overwritten before it was seen counts until
    its successor was seen.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._sent_s: list[float] = []
        self._ending = threading.Event()
        self._failures: list[BaseException] = []
        self.lags_s: list[float] = []

    def run(self, seconds: float) -> list[float]:
        """Probe for so long; return the lags. Raises ``BenchmarkError`` where a request fails."""
        writer = http.client.HTTPConnection(self._addresses[0], timeout=10)
        etag = self._put(writer)
        watchers = [threading.Thread(target=self._watch, args=(address, etag)) for address in self._addresses[1:]]
        time.sleep(0.2)  # The first is there everywhere: only what comes from here on counts.
        for watcher in watchers:
            watcher.start()
        end_s = time.monotonic() + seconds
        try:
            while time.monotonic() < end_s and not self._failures:
                time.sleep(PAUSE_S)
                self._put(writer)
        finally:
            time.sleep(PAUSE_S)
            self._ending.set()
            self._put(writer)  # Wakes the watchers, which then see that it is over.
            for watcher in watchers:
                watcher.join()
            writer.close()
        if self._failures:
            raise BenchmarkError(f"the probe of the lag failed: {self._failures[0]!r}")
        return self.lags_s

    def _put(self, writer: http.client.HTTPConnection) -> str:
        number = len(self._sent_s)
        self._sent_s.append(time.monotonic())
        writer.request("PUT", KEY, json.dumps({"value": number}), {"Content-Type": "application/json"})
        response = writer.getresponse()
        response.read()
        if response.status not in (200, 201):
            raise BenchmarkError(f"a probe was answered with {response.status}")
        return response.getheader("ETag") or ""

    def _watch(self, address: str, etag: str) -> None:
        try:
            self._watch_on(http.client.HTTPConnection(address, timeout=30), etag)
        except BaseException as exc:  # noqa: BLE001  # told by whoever waits for this thread
            self._failures.append(exc)

    def _watch_on(self, connection: http.client.HTTPConnection, etag: str) -> None:
        seen = 0
        while not self._ending.is_set():
            connection.request("GET", f"{KEY}?wait=5", headers={"If-None-Match": etag})
            response = connection.getresponse()
            body = response.read()
            now_s = time.monotonic()
            if response.status == 304:
                continue
            if response.status != 200:
                raise BenchmarkError(f"a watcher was answered with {response.status}")
            etag = response.getheader("ETag") or ""
            shown = json.loads(body)["value"]
            if not self._ending.is_set():
                self.lags_s += [now_s - self._sent_s[number] for number in range(seen + 1, shown + 1)]
            seen = shown
        connection.close()


def greatest(lab: Lab, cluster: Causeway, operation: str) -> Measured:
    """Return what ``cluster`` can take of ``operation``: half of it is the half load."""
    measured = lab.driver.run(cluster.load(operation), lab.connections, max(1.0, lab.seconds / 2))
    if measured.errors:
        raise BenchmarkError(f"{measured.errors} of {measured.requests} requests failed")
    return measured


def measure(lab: Lab) -> list[Figure]:
    """Measure the lag in a cluster of three, idle and at half of the greatest PUT load, in turn."""
    idle: list[list[float]] = []
    loaded: list[list[float]] = []
    rates: list[float] = []
    with Causeway(lab, 3, 60) as cluster:
        addresses = [cluster.address(i) for i in range(3)]
        for number in range(lab.rounds):
            lab.say(f"round {number + 1} of {lab.rounds}: replication lag, idle and at half load")
            cluster.settle()
            idle.append(Probe(addresses).run(2 * lab.seconds))
            rate = greatest(lab, cluster, "put").rate / 2
            rates.append(rate)
            cluster.settle()
            with half_load(lab, cluster, rate):
                loaded.append(Probe(addresses).run(2 * lab.seconds))
    return [
        *_figures("lag idle", idle, IDLE),
        *_figures("lag at half of the greatest PUT load", loaded, HALF_LOAD),
        Figure("lag", "that half load", "PUT/s", rates),
    ]


@contextmanager
def half_load(lab: Lab, cluster: Causeway, rate: float) -> Iterator[None]:
    """Let ``rate`` PUTs a second come while the block runs. Raises ``BenchmarkError`` where one fails."""
    # One second more than the probe needs, with what its start and its end take.
    with lab.bundled.pacing(cluster.load("put"), rate, 2 * lab.seconds + 1.5, lab.connections) as running:
        time.sleep(0.7)
        yield
        paced = running.result()
    if paced.errors:
        raise BenchmarkError(f"{paced.errors} of {len(paced.due_s)} requests failed")


def _figures(name: str, rounds: Sequence[Sequence[float]], limits: tuple[float, float]) -> list[Figure]:
    if not all(rounds):
        raise BenchmarkError(f"{name}: no probe arrived")
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
