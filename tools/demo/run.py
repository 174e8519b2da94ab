"""One run of the demo: the load, the kill and the restart of a replica, and the audit."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import requests

from kvsite.cluster import LocalCluster
from tools.demo import report
from tools.demo.characters import Step
from tools.demo.load import Acknowledged, Follower, LagProbe, Observer, Reader, Writer
from tools.paths import REPOSITORY

CRASH_AT, RESTART_AT = 0.5, 0.6
"""Shares of the records after which a replica is killed and started again."""

SETTLE_S = 60
"""Time limit for all replicas to have all writes, after the last write."""

VICTIM = 2
"""The replica that is killed."""


class DemoError(Exception):
    """The demo cannot run to its end."""


@dataclass
class Results:
    """What a run measured.

    ``empty_bytes``: resident memory of each replica before the load. ``restarted_at_s``: when the killed replica was
    started again (monotonic); ``catch_up_s``: how long it took from there until it served, with ``caught_up_keys``.
    ``settled_s``: how long after the last write all replicas had all writes. None: it has not happened.
    """

    empty_bytes: Sequence[int]
    restarted_at_s: float | None = None
    catch_up_s: float | None = None
    caught_up_keys: int = 0
    settled_s: float | None = None


class DemoRun:
    """One run: the cluster, its clients, and ``results``. ``progress`` receives lines of progress."""

    def __init__(self, cluster: LocalCluster, plan: Sequence[Step], seed: int, progress: Callable[[str], None]) -> None:
        self.cluster, self.plan, self.progress = cluster, plan, progress
        self.http = requests.Session()
        self.http.trust_env = False
        self.urls = urls = [cluster.url(i) for i in range(len(cluster.addresses))]
        self.acknowledged = Acknowledged()
        self.writer = Writer(urls[0], plan, self.acknowledged, [(CRASH_AT, self.crash), (RESTART_AT, self.restart)])
        self.readers: list[Reader] = [
            Follower("follower", urls, self.acknowledged, seed),
            Observer("observer", urls, self.acknowledged, seed + 1),
        ]
        self.probe = LagProbe(urls)
        self.results = Results([self.memory_bytes(i) for i in range(len(urls))])

    def status(self, i: int) -> dict[str, Any]:
        """Return the status of replica ``i``."""
        response = self.http.get(f"{self.cluster.url(i)}/replication/status", timeout=10)
        response.raise_for_status()
        return dict(response.json())

    def memory_bytes(self, i: int) -> int:
        """Return the resident memory of replica ``i``."""
        return int(self.status(i)["memory_bytes"])

    def crash(self) -> None:
        """Kill one replica during the load. Called by the writer."""
        self.cluster.kill(VICTIM)
        self.progress(f"half-way: {self.cluster.addresses[VICTIM]} was killed (SIGKILL); the others continue")

    def restart(self) -> None:
        """Start the killed replica again, without data. Called by the writer."""
        self.cluster.start_one(VICTIM)
        self.results.restarted_at_s = time.monotonic()
        self.progress(f"{self.cluster.addresses[VICTIM]} was started again, empty")

    def load(self) -> None:
        """Write and read until all is written, the restarted replica serves, and all replicas have all writes."""
        workers = [*self.readers, self.probe]
        self.progress(f"three replicas are ready: {', '.join(self.cluster.addresses)}")
        for worker in [self.writer, *workers]:
            worker.start()
        try:
            self._follow_progress()
        finally:
            for worker in [self.writer, *workers]:
                worker.stopping.set()
        for worker in [self.writer, *workers]:
            worker.stop()

    def _follow_progress(self) -> None:
        last_line_at_s = time.monotonic()
        total = sum(len(step.records) for step in self.plan)
        while self.writer.is_alive():
            self.writer.join(0.02)
            self._look_for_catch_up()
            if time.monotonic() - last_line_at_s > 2:
                last_line_at_s = time.monotonic()
                reads = sum(reader.reads for reader in self.readers)
                done = self.acknowledged.writes
                self.progress(
                    f"{done:7,} records written ({done / total:4.0%}), {reads:6,} reads by clients that change replicas"
                )
        if self.writer.failure is not None:
            raise self.writer.failure
        written_at_s = time.monotonic()
        self.progress(f"{self.acknowledged.writes:7,} records written; all are acknowledged")
        while time.monotonic() - written_at_s < SETTLE_S and self.results.settled_s is None:
            self._look_for_catch_up()
            if self.results.catch_up_s is not None and self._agree():
                self.results.settled_s = time.monotonic() - written_at_s
                self.progress("all replicas have all writes")
            time.sleep(0.02)

    def _look_for_catch_up(self) -> None:
        results = self.results
        if results.restarted_at_s is None or results.catch_up_s is not None or not self.cluster.is_ready(VICTIM):
            return
        results.catch_up_s = time.monotonic() - results.restarted_at_s
        results.caught_up_keys = int(self.status(VICTIM)["keys"])
        self.progress(f"{self.cluster.addresses[VICTIM]} has caught up and serves {results.caught_up_keys:,} keys")

    def _agree(self) -> bool:
        # The probe still writes, so clocks differ: each replica must cover the writer's acknowledged writes.
        metadata = self.writer.session.metadata
        clocks = [self.status(i)["clock"] for i in range(len(self.cluster.addresses))]
        return all(clock.get(replica, 0) >= n for clock in clocks for replica, n in metadata.items())

    def audit(self, limit: int | None) -> list[dict[str, Any]]:
        """Run the independent audit program against every replica; return its results."""
        self.progress("audit: an independent process compares every key of every replica with the database")
        arguments = ["--limit", str(limit)] if limit is not None else []
        done = subprocess.run(
            [sys.executable, "-m", "tools.demo.audit", *arguments, *self.cluster.addresses],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        audits = [json.loads(line) for line in done.stdout.splitlines()]
        if len(audits) != len(self.cluster.addresses):
            raise DemoError(f"the audit failed (exit code {done.returncode})")
        return audits

    def table(self, keys: int, audits: Sequence[dict[str, Any]]) -> str:
        """Return the results as text. ``keys``: how many were loaded."""
        results = self.results
        writer, reads = self.writer, sum(reader.reads for reader in self.readers)
        latencies = [latency for reader in self.readers for latency in reader.latencies_s]
        writes = self.acknowledged.writes
        rate = writes / max(writer.seconds, 1e-3)
        responses = {url: sum(reader.answered_by[url] for reader in self.readers) for url in self.urls}
        rows = [
            ("written", f"{writes:,} records in {writer.seconds:.1f} s, {rate:,.0f} per second at one replica"),
            (
                "read meanwhile",
                f"{reads:,} requests by two clients at all replicas, {report.milliseconds(latencies)}",
            ),
            ("", "served by " + ", ".join(f"{url.partition('://')[2]}: {count:,}" for url, count in responses.items())),
            (
                "replication lag",
                report.milliseconds(self.probe.lags_s) + ", from a PUT to a read at another replica",
            ),
            ("catch-up", self._catch_up_text()),
            (
                "settled",
                f"{results.settled_s:.2f} s after the last write" if results.settled_s is not None else "never",
            ),
        ]
        for i, audit in enumerate(audits):
            used = self.memory_bytes(i)
            memory = f"{report.megabytes(used)}, {(used - results.empty_bytes[i]) / max(1, keys):,.0f} bytes per key"
            found = f"{audit['keys']:,} keys, {audit['keys'] / max(audit['seconds'], 1e-3):,.0f}/s"
            result = "all correct" if audit["ok"] else "NOT all correct"
            rows.append((audit["replica"], f"{found}, {result}; {memory}"))
        return report.table(rows)

    def _catch_up_text(self) -> str:
        results = self.results
        if results.catch_up_s is None:
            return "never"
        return (
            f"{results.catch_up_s:.2f} s from the start of the empty replica to serving {results.caught_up_keys:,} keys"
        )

    @property
    def unanswered(self) -> int:
        """How many reads timed out. That breaks no promise."""
        return sum(reader.unanswered for reader in self.readers)

    def problems(self) -> list[str]:
        """Return the promises that the run broke, the audit aside."""
        problems = [violation for reader in self.readers for violation in reader.violations]
        if self.results.settled_s is None:
            problems.append(f"{SETTLE_S} s after the last write, some replica still lacks writes")
        return problems


def audit_problems(audits: Sequence[dict[str, Any]]) -> list[str]:
    """Return the problems that the audit found, one line per replica."""
    return [
        f"{audit['replica']}: {audit['missing']} keys missing, {audit['differing']} differing, {audit['unexpected']} "
        f"unexpected{'' if audit['ordered'] else ', not in order'}; for example {', '.join(audit['examples'])}"
        for audit in audits
        if not audit["ok"]
    ]
