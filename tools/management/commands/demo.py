"""``make demo``: load the Unicode character database into three replicas, kill one half-way, and audit all at the end.

tools/demo documents the parts. The exit code is 1 in each of these cases:

* a read broke a causal promise;
* the audit found a key that is missing, unexpected, different or out of order at a replica;
* some replica lacked writes ``SETTLE_S`` after the last one, or the restarted replica did not serve by then;
* the demo could not run to its end.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import requests
from django.core.management.base import CommandError, CommandParser

from causeway_client import ClientError
from kvsite.cluster import DEFAULT_HOST, ClusterError, LocalCluster, other_ports
from kvsite.server import StartError, bind
from store.management.base import CausewayCommand
from tools.demo.characters import Step, steps
from tools.demo.run import DemoError, DemoRun, audit_problems

BASE_PORT = 8190
REPLICAS = 3


class Command(CausewayCommand):
    """Starts a cluster, runs the load, and prints the results."""

    help = "Load the Unicode character database into three replicas, kill one half-way, and check every key."

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
        base_port = options["base_port"]
        try:
            for port in range(base_port, base_port + REPLICAS):
                bind(DEFAULT_HOST, port).close()
        except StartError as exc:
            raise CommandError(f"{exc}. {other_ports(base_port, REPLICAS, 'demo', 'demo')}") from exc
        try:
            with LocalCluster(REPLICAS, base_port, log_dir=options["log_dir"]) as cluster:
                self._run(cluster, plan, keys, options)
        except (ClusterError, ClientError, DemoError, requests.RequestException) as exc:
            raise CommandError(str(exc)) from exc
        except KeyboardInterrupt:
            raise CommandError("interrupted") from None

    def _run(self, cluster: LocalCluster, plan: Sequence[Step], keys: int, options: dict[str, Any]) -> None:
        began_s = time.monotonic()

        def progress(text: str) -> None:
            self.stdout.write(f"[{time.monotonic() - began_s:5.1f} s] {text}")
            self.stdout.flush()  # A person watches the output, also through a pipe.

        run = DemoRun(cluster, plan, options["seed"], progress)
        run.load()
        audits = run.audit(options["limit"])
        self.stdout.write(f"\n{run.table(keys, audits)}\n")
        if run.unanswered:
            self.stdout.write(self.style.WARNING(f"  {run.unanswered} reads timed out"))
        problems = [*run.problems(), *audit_problems(audits)]
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
