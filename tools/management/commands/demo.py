"""``make demo``: load the Unicode character database into three replicas, kill one half-way, and audit all at the end.

tools/demo documents the parts. The exit code is 1 in each of these cases:

* a read broke a causal promise;
* the audit found a key that is missing, unexpected, different or out of order at a replica;
* some replica lacked writes ``SETTLE_S`` after the last one, or the restarted replica did not serve by then;
* the demo could not run to its end.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from django.core.management.base import BaseCommand, CommandError, CommandParser

from kvsite.cluster import ClusterError, LocalCluster
from store.client import ClientError
from tools.demo import report
from tools.demo.characters import Step, steps
from tools.demo.load import Acknowledged, Follower, LagProbe, Observer, Reader, Writer
from tools.paths import REPOSITORY

BASE_PORT = 8190
CRASH_AT, RESTART_AT = 0.5, 0.6
SETTLE_S = 60
VICTIM = 2


class Command(BaseCommand):
    """Starts a cluster, runs the load, and prints the results."""

    help = "Load the Unicode character database into three replicas, kill one half-way, and check every key."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--limit", type=int, metavar="N", help="load only the first N characters (default: all)")
        parser.add_argument(
            "--base-port", type=int, default=BASE_PORT, help=f"first of three ports to use (default: {BASE_PORT})"
        )
        parser.add_argument("--seed", type=int, default=1, help="random seed of the readers (default: 1)")
        parser.add_argument("--log-dir", type=Path, help="keep the logs of the replicas in this directory")
        parser.add_argument("--stay", action="store_true", help="keep the cluster running at the end, until Ctrl-C")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the demo. Raises ``CommandError`` if a promise was broken or the demo cannot run."""
        plan = list(steps(options["limit"]))
        keys = sum(len(step.records) for step in plan if step.is_block)
        self.stdout.write(
            f"Unicode {unicodedata.unidata_version}: {keys:,} named characters, to be written in {len(plan):,} requests"
        )
        try:
            with LocalCluster(3, options["base_port"], log_dir=options["log_dir"]) as cluster:
                self._run(cluster, plan, keys, options)
        except (ClusterError, ClientError, requests.RequestException) as exc:
            raise CommandError(str(exc)) from exc
        except KeyboardInterrupt:
            raise CommandError("interrupted") from None

    def _run(self, cluster: LocalCluster, plan: Sequence[Step], keys: int, options: dict[str, Any]) -> None:
        run = Run(self, cluster, plan, options["seed"])
        run.load()
        audits = run.audit(options["limit"])
        problems = run.report(keys, audits)
        if not problems:
            self.stdout.write(self.style.SUCCESS("No key is missing, no value differs, and no read went back in time."))
        if options["stay"]:
            self._stay(cluster)
        if problems:
            raise CommandError("\n  ".join(["The demo failed:", *problems]))

    def _stay(self, cluster: LocalCluster) -> None:
        self.stdout.write(f"\nThe cluster keeps running: see {cluster.url(0)}/admin/. Press Ctrl-C to stop it.")
        self.stdout.flush()
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            self.stdout.write("")


class Run:
    """One run: the cluster, its clients, and the measured times."""

    def __init__(self, command: Command, cluster: LocalCluster, plan: Sequence[Step], seed: int) -> None:
        self.command, self.cluster, self.plan = command, cluster, plan
        self.started = time.monotonic()
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
        self.empty_bytes = [self.memory_bytes(i) for i in range(len(urls))]
        self.restarted_s: float | None = None
        self.catch_up_s: float | None = None
        self.caught_up_keys = 0
        self.settled_s: float | None = None

    def progress(self, text: str) -> None:
        """Print one line of progress."""
        self.command.stdout.write(f"[{time.monotonic() - self.started:5.1f} s] {text}")
        self.command.stdout.flush()  # A person watches the output, also through a pipe.

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
        self.restarted_s = time.monotonic()
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
        last_line = time.monotonic()
        total = sum(len(step.records) for step in self.plan)
        while self.writer.is_alive():
            self.writer.join(0.02)
            self._look_for_catch_up()
            if time.monotonic() - last_line > 2:
                last_line = time.monotonic()
                reads = sum(reader.reads for reader in self.readers)
                done = self.acknowledged.writes
                self.progress(
                    f"{done:7,} records written ({done / total:4.0%}), {reads:6,} reads by clients that change replicas"
                )
        if self.writer.failure is not None:
            raise self.writer.failure
        written = time.monotonic()
        self.progress(f"{self.acknowledged.writes:7,} records written; all are acknowledged")
        while time.monotonic() - written < SETTLE_S and self.settled_s is None:
            self._look_for_catch_up()
            if self.catch_up_s is not None and self._agree():
                self.settled_s = time.monotonic() - written
                self.progress("all replicas have all writes")
            time.sleep(0.02)

    def _look_for_catch_up(self) -> None:
        if self.restarted_s is None or self.catch_up_s is not None or not self.cluster.is_ready(VICTIM):
            return
        self.catch_up_s = time.monotonic() - self.restarted_s
        self.caught_up_keys = int(self.status(VICTIM)["keys"])
        self.progress(f"{self.cluster.addresses[VICTIM]} has caught up and serves {self.caught_up_keys:,} keys")

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
            raise CommandError(f"the audit failed (exit code {done.returncode})")
        return audits

    def report(self, keys: int, audits: Sequence[dict[str, Any]]) -> list[str]:
        """Print the results; return the problems."""
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
            ("settled", f"{self.settled_s:.2f} s after the last write" if self.settled_s is not None else "never"),
        ]
        for i, audit in enumerate(audits):
            used = self.memory_bytes(i)
            memory = f"{report.megabytes(used)}, {(used - self.empty_bytes[i]) / max(1, keys):,.0f} bytes per key"
            found = f"{audit['keys']:,} keys, {audit['keys'] / max(audit['seconds'], 1e-3):,.0f}/s"
            result = "all correct" if audit["ok"] else "NOT all correct"
            rows.append((audit["replica"], f"{found}, {result}; {memory}"))
        self.command.stdout.write(f"\n{report.table(rows)}\n")
        return [*self._broken_promises(), *audit_problems(audits)]

    def _catch_up_text(self) -> str:
        if self.catch_up_s is None:
            return "never"
        return f"{self.catch_up_s:.2f} s from the start of the empty replica to serving {self.caught_up_keys:,} keys"

    def _broken_promises(self) -> list[str]:
        problems = [violation for reader in self.readers for violation in reader.violations]
        unanswered = sum(reader.unanswered for reader in self.readers)
        if unanswered:
            self.command.stdout.write(self.command.style.WARNING(f"  {unanswered} reads timed out"))
        if self.settled_s is None:
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
