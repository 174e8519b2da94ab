"""``make demo``: the Unicode character database in a cluster of three, with a crash half-way and an audit at the end.

What it shows is in tools/demo. Exit code 1 when a read went back in time, or a key is missing or differs anywhere.
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
from tools.demo.load import EventLog, Follower, LagProbe, Observer, Reader, Writer

REPOSITORY = Path(__file__).resolve().parents[3]
BASE_PORT = 8190
CRASH_AT, RESTART_AT = 0.5, 0.6
SETTLE_S = 60
VICTIM = 2


class Command(BaseCommand):
    """Builds the cluster, runs the load, and tells what came of it."""

    help = "Load the Unicode character database into a cluster of three, crash a replica half-way, and check all of it."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--limit", type=int, metavar="N", help="only the first N characters (default: all)")
        parser.add_argument(
            "--base-port", type=int, default=BASE_PORT, help=f"first of three ports (default: {BASE_PORT})"
        )
        parser.add_argument("--seed", type=int, default=1, help="of the readers' hops (default: 1)")
        parser.add_argument("--log-dir", type=Path, help="keep the replicas' logs here")
        parser.add_argument("--stay", action="store_true", help="leave the cluster running at the end, until Ctrl-C")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it all."""
        plan = list(steps(options["limit"]))
        keys = sum(len(step.records) for step in plan if step.is_block)
        self.stdout.write(
            f"Unicode {unicodedata.unidata_version}: {keys:,} named characters, written in {len(plan):,} requests"
        )
        try:
            with LocalCluster(3, options["base_port"], log_dir=options["log_dir"]) as cluster:
                self._show(cluster, plan, keys, options)
        except (ClusterError, ClientError, requests.RequestException) as exc:
            raise CommandError(str(exc)) from exc
        except KeyboardInterrupt:
            raise CommandError("interrupted") from None

    def _show(self, cluster: LocalCluster, plan: Sequence[Step], keys: int, options: dict[str, Any]) -> None:
        run = Run(self, cluster, plan, options["seed"])
        run.load()
        audits = run.audit(options["limit"])
        problems = run.tell(keys, audits)
        if not problems:
            self.stdout.write(self.style.SUCCESS("Nothing is missing, nothing differs, no read went back in time."))
        if options["stay"]:
            self._stay(cluster)
        if problems:
            raise CommandError("\n  ".join(["The demo has failed:", *problems]))

    def _stay(self, cluster: LocalCluster) -> None:
        self.stdout.write(f"\nThe cluster stays up: {cluster.url(0)}/admin/ shows it. Ctrl-C ends it.")
        self.stdout.flush()
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            self.stdout.write("")


class Run:
    """One run: the cluster, the workers, the times."""

    def __init__(self, command: Command, cluster: LocalCluster, plan: Sequence[Step], seed: int) -> None:
        self.command, self.cluster, self.plan = command, cluster, plan
        self.started = time.monotonic()
        self.http = requests.Session()
        self.http.trust_env = False
        self.urls = urls = [cluster.url(i) for i in range(len(cluster.addresses))]
        self.journal = EventLog()
        self.writer = Writer(urls[0], plan, self.journal, [(CRASH_AT, self.crash), (RESTART_AT, self.restart)])
        self.readers: list[Reader] = [
            Follower("follower", urls, self.journal, seed),
            Observer("observer", urls, self.journal, seed + 1),
        ]
        self.probe = LagProbe(urls)
        self.empty_bytes = [self.memory_bytes(i) for i in range(len(urls))]
        self.restarted_s: float | None = None
        self.catch_up_s: float | None = None
        self.caught_up_keys = 0
        self.settled_s: float | None = None

    def say(self, text: str) -> None:
        """One line of progress."""
        self.command.stdout.write(f"[{time.monotonic() - self.started:5.1f} s] {text}")
        self.command.stdout.flush()  # also where it is piped: it is watched as it runs

    def status(self, i: int) -> dict[str, Any]:
        """What replica ``i`` tells about itself."""
        response = self.http.get(f"{self.cluster.url(i)}/replication/status", timeout=10)
        response.raise_for_status()
        return dict(response.json())

    def memory_bytes(self, i: int) -> int:
        """Resident memory of replica ``i``."""
        return int(self.status(i)["memory_bytes"])

    def crash(self) -> None:
        """Kill one replica in the midst of everything. Called by the writer."""
        self.cluster.kill(VICTIM)
        self.say(f"half-way: {self.cluster.addresses[VICTIM]} killed (SIGKILL), the others go on")

    def restart(self) -> None:
        """Start it again with nothing. Called by the writer."""
        self.cluster.start_one(VICTIM)
        self.restarted_s = time.monotonic()
        self.say(f"{self.cluster.addresses[VICTIM]} started again, empty")

    def load(self) -> None:
        """Write and read until all is written, the restarted replica is back, and all replicas have the same."""
        workers = [*self.readers, self.probe]
        self.say(f"cluster of three is ready: {', '.join(self.cluster.addresses)}")
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
        told = time.monotonic()
        total = sum(len(step.records) for step in self.plan)
        while self.writer.is_alive():
            self.writer.join(0.02)
            self._look_for_catch_up()
            if time.monotonic() - told > 2:
                told = time.monotonic()
                reads = sum(reader.reads for reader in self.readers)
                done = self.journal.writes
                self.say(f"{done:7,} records written ({done / total:4.0%}), {reads:6,} reads by the hopping clients")
        if self.writer.failure is not None:
            raise self.writer.failure
        written = time.monotonic()
        self.say(f"{self.journal.writes:7,} records written, all acknowledged")
        while time.monotonic() - written < SETTLE_S and self.settled_s is None:
            self._look_for_catch_up()
            if self.catch_up_s is not None and self._agree():
                self.settled_s = time.monotonic() - written
                self.say("all replicas have the same clock")
            time.sleep(0.02)

    def _look_for_catch_up(self) -> None:
        if self.restarted_s is None or self.catch_up_s is not None or not self.cluster.is_ready(VICTIM):
            return
        self.catch_up_s = time.monotonic() - self.restarted_s
        self.caught_up_keys = int(self.status(VICTIM)["keys"])
        self.say(f"{self.cluster.addresses[VICTIM]} has caught up and serves: {self.caught_up_keys:,} keys")

    def _agree(self) -> bool:
        # The probe goes on writing: what counts is that nobody lacks what the writer was told to be done.
        metadata = self.writer.session.metadata
        clocks = [self.status(i)["clock"] for i in range(len(self.cluster.addresses))]
        return all(clock.get(replica, 0) >= n for clock in clocks for replica, n in metadata.items())

    def audit(self, limit: int | None) -> list[dict[str, Any]]:
        """Let a program that knows nothing of this one compare every replica with the database."""
        self.say("audit: another process recomputes the database and reads every key from every replica")
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
            raise CommandError(f"the audit has failed (exit code {done.returncode})")
        return audits

    def tell(self, keys: int, audits: Sequence[dict[str, Any]]) -> list[str]:
        """Print the figures; return what is wrong."""
        writer, reads = self.writer, sum(reader.reads for reader in self.readers)
        latencies = [latency for reader in self.readers for latency in reader.latencies_s]
        rate = self.journal.writes / max(writer.seconds, 1e-3)
        hops = {url: sum(reader.answered_by[url] for reader in self.readers) for url in self.urls}
        rows = [
            (
                "written",
                f"{self.journal.writes:,} records in {writer.seconds:.1f} s: {rate:,.0f} keys/s through one replica",
            ),
            ("read meanwhile", f"{reads:,} requests by two hopping clients, {report.milliseconds(latencies)}"),
            ("", "answered by " + ", ".join(f"{url.partition('://')[2]}: {count:,}" for url, count in hops.items())),
            ("replication lag", report.milliseconds(self.probe.lags_s) + ", from a PUT here to its reading there"),
            ("catch-up", self._catch_up_text()),
            ("settled", f"{self.settled_s:.2f} s after the last write" if self.settled_s is not None else "never"),
        ]
        for i, audit in enumerate(audits):
            used = self.memory_bytes(i)
            memory = f"{report.megabytes(used)}, {(used - self.empty_bytes[i]) / max(1, keys):,.0f} bytes a key"
            found = f"{audit['keys']:,} keys, {audit['keys'] / max(audit['seconds'], 1e-3):,.0f}/s"
            verdict = "all as they should be" if audit["ok"] else "NOT as they should be"
            rows.append((audit["replica"], f"{found}, {verdict}; {memory}"))
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
            self.command.stdout.write(self.command.style.WARNING(f"  {unanswered} reads got no answer in time"))
        if self.settled_s is None:
            problems.append(f"the replicas did not agree {SETTLE_S} s after the last write")
        return problems


def audit_problems(audits: Sequence[dict[str, Any]]) -> list[str]:
    """What the audit found, a line a replica."""
    return [
        f"{audit['replica']}: {audit['missing']} keys missing, {audit['differing']} differing, {audit['unexpected']} "
        f"unexpected{'' if audit['ordered'] else ', not in order'}; such as {', '.join(audit['examples'])}"
        for audit in audits
        if not audit["ok"]
    ]
