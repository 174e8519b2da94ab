"""The cost of an open dashboard: throughput of a replica with the overview page open and refreshing, and without.

    python -m tools.benchmark.overview_cost --pairs 10       # needs wrk (Debian: apt-get install wrk)

The program starts a cluster on loopback and writes some keys. In each measurement, wrk reads one key at the first
replica for ``--seconds``. Meanwhile ``--viewers`` simulated pages, or none, request ``/admin/overview/`` once a second
each, as a browser does. Measurements come in pairs, with and without viewers. Each pair has the reverse order of the
one before, so that a drift of the machine's speed favours neither side. The result is the median of the pairs' ratios;
the target is at least 0.95. On a shared machine two other numbers vary less: requests per second of CPU time of the
replica, and the CPU time of one refresh.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import requests

from kvsite.cluster import LocalCluster
from tools.benchmark.processes import cpu_s
from tools.paths import first_line, say

PORT = 27900
KEYS = 300
REFRESH_S = 1.0
"""The refresh interval of the pages (templates/dashboard/live.html)."""

TARGET = 0.95

# wrk sends the same request on all connections.
SCRIPTS = {
    "get": 'wrk.path = "/kvs/key-0"',
    "put": 'wrk.method = "PUT"; wrk.path = "/kvs/key-0"; wrk.body = \'{"value": "some value"}\'; '
    'wrk.headers["Content-Type"] = "application/json"',
}
CONNECTIONS = 8


@dataclass(frozen=True)
class Rates:
    """Requests per second of elapsed time, and per second of the replica's CPU time."""

    per_s: float
    per_cpu_s: float


@dataclass(frozen=True)
class Pair:
    """Rates without viewers, and with the overview open."""

    without: Rates
    watched: Rates

    @property
    def ratio(self) -> float:
        """The rate with viewers relative to that without."""
        return self.watched.per_s / self.without.per_s

    @property
    def cpu_ratio(self) -> float:
        """The same ratio per CPU time."""
        return self.watched.per_cpu_s / self.without.per_cpu_s


class Viewer(threading.Thread):
    """An open page: requests the refreshing part once per second, as a browser does."""

    def __init__(self, url: str) -> None:
        super().__init__(name="viewer", daemon=True)
        self._url = f"{url}/admin/overview/"
        self._closed = threading.Event()

    def run(self) -> None:
        """Refresh the page until ``close``."""
        with closing(requests.Session()) as http:
            while not self._closed.is_set():
                began_s = time.monotonic()
                http.get(self._url, timeout=5).raise_for_status()
                self._closed.wait(max(0.0, REFRESH_S - (time.monotonic() - began_s)))

    def close(self) -> None:
        """Close the page and wait for its last request."""
        self._closed.set()
        self.join()


def throughput(url: str, seconds: float, script: Path) -> float:
    """Return the requests per second of wrk. Raises ``RuntimeError`` if a request failed."""
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "-s", str(script), url]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"Requests/sec:\s*([0-9.]+)", output)
    if found is None or "Non-2xx" in output or "Socket errors" in output:
        raise RuntimeError(f"wrk reports errors:\n{output}")
    return float(found[1])


def measure(cluster: LocalCluster, seconds: float, script: Path, viewers: int) -> Rates:
    """Return the throughput of the first replica while ``viewers`` of its pages are open."""
    watching = [Viewer(cluster.url(0)) for _ in range(viewers)]
    for viewer in watching:
        viewer.start()
    try:
        before_s = cpu_s([cluster.pid(0)])
        per_s = throughput(cluster.url(0), seconds, script)
        return Rates(per_s, per_s * seconds / (cpu_s([cluster.pid(0)]) - before_s))
    finally:
        for viewer in watching:
            viewer.close()


def pairs(cluster: LocalCluster, count: int, seconds: float, script: Path, viewers: int) -> list[Pair]:
    """Measure ``count`` pairs after a short warm-up."""
    measure(cluster, 1.0, script, viewers)
    found = []
    for n in range(count):
        order = (0, viewers) if n % 2 == 0 else (viewers, 0)
        rates = {watching: measure(cluster, seconds, script, watching) for watching in order}
        pair = Pair(rates[0], rates[viewers])
        found.append(pair)
        say(
            f"  pair {n + 1:2}: {pair.without.per_s:7.0f}/s, with overview {pair.watched.per_s:7.0f}/s: "
            f"{pair.ratio:.3f}; by CPU time {pair.cpu_ratio:.3f}"
        )
    return found


def cost_of_refreshes(cluster: LocalCluster, count: int) -> list[float]:
    """Return for each replica the CPU milliseconds of one refresh at the first one, minus those of an idle replica."""

    def spent(refreshes: int) -> list[float]:
        before = [cpu_s([cluster.pid(i)]) for i in range(len(cluster.addresses))]
        with closing(requests.Session()) as http:
            for _ in range(count):
                if refreshes:
                    http.get(f"{cluster.url(0)}/admin/overview/", timeout=5).raise_for_status()
                time.sleep(REFRESH_S)
        return [cpu_s([cluster.pid(i)]) - before_s for i, before_s in enumerate(before)]

    idle, watched = spent(0), spent(count)
    return [1000 * (with_s - without_s) / count for with_s, without_s in zip(watched, idle, strict=True)]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; return 0 if the target is met, 1 if not, 2 without wrk."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark.overview_cost", description=first_line(__doc__))
    parser.add_argument("--replicas", type=int, default=3, help="size of the cluster (default: 3)")
    parser.add_argument("--pairs", type=int, default=10, help="pairs for each kind of request (default: 10)")
    parser.add_argument("--seconds", type=float, default=3.0, help="duration of one measurement (default: 3)")
    parser.add_argument("--viewers", type=int, default=1, help="open pages (default: 1)")
    parser.add_argument("--port", type=int, default=PORT, help=f"port of the first replica (default: {PORT})")
    options = parser.parse_args(arguments)
    if shutil.which("wrk") is None:
        say("This needs wrk (Debian: apt-get install wrk)")
        return 2

    is_met = True
    with LocalCluster(options.replicas, options.port) as cluster:
        with closing(requests.Session()) as http:
            for n in range(KEYS):
                url = f"{cluster.url(n % options.replicas)}/kvs/key-{n}"
                http.put(url, json={"value": n}, timeout=5).raise_for_status()
        say(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {options.replicas} replicas")
        costs = cost_of_refreshes(cluster, 15)
        say(f"CPU of a refresh: {costs[0]:.1f} ms at its replica, {max(costs[1:], default=0.0):.1f} ms at the others")
        for kind, text in SCRIPTS.items():
            script = cluster.log_dir / f"{kind}.lua"
            script.write_text(text, encoding="utf-8")
            say(f"{kind}:")
            found = pairs(cluster, options.pairs, options.seconds, script, options.viewers)
            ratio = statistics.median(pair.ratio for pair in found)
            cpu_ratio = statistics.median(pair.cpu_ratio for pair in found)
            without = statistics.median(pair.without.per_s for pair in found)
            is_met = is_met and ratio >= TARGET
            say(f"  median {without:.0f}/s; with the overview open {ratio:.1%}, by CPU time {cpu_ratio:.1%} of that")
        say(f"load average {os.getloadavg()[0]:.1f}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
