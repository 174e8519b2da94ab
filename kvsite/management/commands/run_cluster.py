"""``run_cluster``: a cluster on this machine, to try things with."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
import urllib3
from django.core.management.base import BaseCommand, CommandError, CommandParser

from kvsite import signals
from kvsite.cluster import ClusterError, LocalCluster
from kvsite.config import current
from kvsite.server import StartError, bind
from kvsite.signals import StopRequest

HOST = "127.0.0.1"
REFRESH_S = 1.0
PER_REPLICA = frozenset({"KV_BIND"})
"""Variables that cannot be the same for all replicas of one machine."""

Status = Mapping[str, Any]

WELCOME = """\
Causeway: {count} replicas, in memory, on this machine. Ctrl-C ends them all.

  Dashboard   {url}/admin/
  Write       curl -X PUT  {url}/kvs/greeting -H 'Content-Type: application/json' -d '{{"value": "hello"}}'
  Read        curl {last}/kvs/greeting
  Crash one   kill -9 {pid}
  Restart it  {python} manage.py run_replica --address {crashed} --view {seed}
"""


class Command(BaseCommand):
    """Run a local cluster until Ctrl-C, and show how it fares: a live table in a terminal, else a line per change."""

    help = "Run a cluster of replicas on 127.0.0.1, and show how it fares."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the flags."""
        parser.add_argument("--replicas", type=int, default=3, help="how many (default 3)")
        parser.add_argument("--base-port", type=int, default=8090, help="port of the first (default 8090)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Start, watch, end."""
        replicas, base_port = options["replicas"], options["base_port"]
        if not 1 <= replicas <= 64 or not 0 < base_port <= 65536 - replicas:
            raise CommandError("--replicas is from 1 to 64, and ports end at 65535", returncode=2)
        # Signals are taken where the watching waits, and nowhere else: no child can be left half-started.
        signals.block()
        environment = {k: v for k, v in os.environ.items() if k.startswith("KV_") and k not in PER_REPLICA}
        try:
            for port in range(base_port, base_port + replicas):
                bind(HOST, port).close()
            with LocalCluster(replicas, base_port, HOST, environment) as cluster:
                self._welcome(cluster)
                Watch(cluster, self.stdout, live=sys.stdout.isatty()).run()
                self.stdout.write("Stopping. What they held was in memory, and is gone.")
        except (StartError, ClusterError) as exc:
            raise CommandError(str(exc)) from exc

    def _welcome(self, cluster: LocalCluster) -> None:
        first, last = cluster.addresses[0], len(cluster.addresses) - 1
        self.stdout.write(
            WELCOME.format(
                count=last + 1,
                url=cluster.url(0),
                last=cluster.url(last),
                pid=cluster.pid(last),
                crashed=cluster.addresses[last],
                seed=first,
                python=os.path.relpath(sys.executable),
            )
        )


class Watch:
    """Shows the replicas until a signal comes: ``live`` redraws a table, else each change of a replica is a line."""

    def __init__(self, cluster: LocalCluster, out: Any, *, live: bool) -> None:
        self._cluster = cluster
        self._out = out
        self._live = live
        self._told: dict[int, str] = {}
        self._drawn = 0
        tokens = current().api_tokens
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # see _row
        self._headers = {"Authorization": f"Bearer {tokens[0].token}"} if tokens else {}

    def run(self) -> None:
        """Show and wait; returns when a signal asks for the end."""
        count = len(self._cluster.addresses)
        stop = StopRequest()
        with ThreadPoolExecutor(count, "status") as pool:
            while True:
                began = time.monotonic()
                rows = list(pool.map(self._row, range(count)))
                self._draw(rows) if self._live else self._tell(rows)
                if stop.wait(max(0.0, began + REFRESH_S - time.monotonic())):
                    return

    def _row(self, i: int) -> tuple[str, ...]:
        """Return what the table says of replica ``i``: state first, numbers after it."""
        try:
            # Any certificate will do: the question goes to a child of this process.
            answer = requests.get(
                f"{self._cluster.url(i)}/replication/status",
                headers=self._headers,
                timeout=1,
                verify=False,  # noqa: S501
            )
            status: Status = answer.json()
            alive = sum(member["state"] == "alive" for member in status["view"])
            rates = status["throughput"]
            return (
                status["state"],
                f"{alive} of {len(status['view'])}",
                str(status["keys"]),
                str(status["pending_count"]),
                f"{rates['reads_per_s']:.0f}",
                f"{rates['writes_per_s']:.0f}",
            )
        except (requests.RequestException, KeyError, ValueError):
            # Asked first all the same: one that was started anew by hand is no child of this process.
            return ("no answer" if self._cluster.is_running(i) else "ended", "", "", "", "", "")

    def _draw(self, rows: list[tuple[str, ...]]) -> None:
        head = ("REPLICA", "STATE", "ALIVE", "KEYS", "PENDING", "READS/S", "WRITES/S")
        table = [head, *((address, *row) for address, row in zip(self._cluster.addresses, rows, strict=True))]
        widths = [max(len(row[column]) for row in table) + 3 for column in range(len(head))]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        lines = ["".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
        self._out.write(up + "".join(f"\x1b[2K{line}\n" for line in lines), ending="")
        self._out.flush()
        self._drawn = len(lines)

    def _tell(self, rows: list[tuple[str, ...]]) -> None:
        for i, (state, alive, *_) in enumerate(rows):
            text = f"{self._cluster.addresses[i]} {state}" + (f", alive {alive}" if alive else "")
            if self._told.get(i) != text:
                self._told[i] = text
                self._out.write(text)
        self._out.flush()
