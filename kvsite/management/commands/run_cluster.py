"""``run_cluster``: run a cluster on this machine, to try Causeway."""

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

from kvsite import cli, signals
from kvsite.cluster import DEFAULT_BASE_PORT, DEFAULT_HOST, DEFAULT_REPLICAS, ClusterError, LocalCluster
from kvsite.config import current
from kvsite.server import StartError, bind
from kvsite.signals import StopRequest

MAX_REPLICAS = 64
REFRESH_S = 1.0
PER_REPLICA = frozenset({"KV_BIND"})
"""Variables that cannot have the same value for all replicas of one machine."""

Status = Mapping[str, Any]

WELCOME = """\
Causeway: {count} replicas, in memory, on this machine. Press Ctrl-C to stop them.

  Dashboard   {url}/admin/
  Write       curl -X PUT  {url}/kvs/greeting -H 'Content-Type: application/json' -d '{{"value": "hello"}}'
  Read        curl {last}/kvs/greeting
  Crash one   kill -9 {pid}
  Restart it  {program} run_replica --address {crashed} --view {seed}
"""


class Command(BaseCommand):
    """Run a local cluster until Ctrl-C and print its state: a live table in a terminal, otherwise a line per change."""

    help = "Run a cluster of replicas on 127.0.0.1 and print its state until Ctrl-C."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "--replicas",
            type=int,
            default=DEFAULT_REPLICAS,
            help=f"number of replicas, at most {MAX_REPLICAS} (default: {DEFAULT_REPLICAS})",
        )
        parser.add_argument(
            "--base-port",
            type=int,
            default=DEFAULT_BASE_PORT,
            help=f"port of the first replica; the others use the ports after it (default: {DEFAULT_BASE_PORT})",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Start the replicas, print their state until a signal arrives, and stop them."""
        replicas, base_port = options["replicas"], options["base_port"]
        if not 1 <= replicas <= MAX_REPLICAS or not 0 < base_port <= 65536 - replicas:
            raise CommandError(f"--replicas must be from 1 to {MAX_REPLICAS}, and ports end at 65535", returncode=2)
        # Only StopRequest.wait reads signals, so none can interrupt the start of a child half way.
        signals.block()
        environment = {k: v for k, v in os.environ.items() if k.startswith("KV_") and k not in PER_REPLICA}
        try:
            for port in range(base_port, base_port + replicas):
                bind(DEFAULT_HOST, port).close()
            with LocalCluster(replicas, base_port, environment=environment) as cluster:
                self._welcome(cluster)
                StatusPrinter(cluster, self.stdout, is_live=sys.stdout.isatty()).run()
                self.stdout.write("Stopping. The data was in memory and is lost.")
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
                program=cli.shown_program(),
            )
        )


class StatusPrinter:
    """Prints the state of the replicas every ``REFRESH_S`` seconds.

    ``is_live``: redraw a table in place; otherwise print a line when the state of a replica changes.
    """

    def __init__(self, cluster: LocalCluster, out: Any, *, is_live: bool) -> None:
        self._cluster = cluster
        self._out = out
        self._is_live = is_live
        self._printed: dict[int, str] = {}
        self._drawn_lines = 0
        tokens = current().api_tokens
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # see _row
        self._headers = {"Authorization": f"Bearer {tokens[0].token}"} if tokens else {}

    def run(self) -> None:
        """Print until a signal asks this process to stop."""
        count = len(self._cluster.addresses)
        stop = StopRequest()
        with ThreadPoolExecutor(count, "status") as pool:
            while True:
                began = time.monotonic()
                rows = list(pool.map(self._row, range(count)))
                self._draw_table(rows) if self._is_live else self._print_changes(rows)
                if stop.wait(max(0.0, began + REFRESH_S - time.monotonic())):
                    return

    def _row(self, i: int) -> tuple[str, ...]:
        """Return the cells of the table for replica ``i``: its state first, then numbers."""
        try:
            # The certificate is not verified: the request goes to a child of this process.
            response = requests.get(
                f"{self._cluster.url(i)}/replication/status",
                headers=self._headers,
                timeout=1,
                verify=False,  # noqa: S501
            )
            status: Status = response.json()
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
            # The request comes before this check, because a replica that was restarted by hand is not a child.
            return ("no answer" if self._cluster.is_running(i) else "ended", "", "", "", "", "")

    def _draw_table(self, rows: list[tuple[str, ...]]) -> None:
        head = ("REPLICA", "STATE", "ALIVE", "KEYS", "PENDING", "READS/S", "WRITES/S")
        table = [head, *((address, *row) for address, row in zip(self._cluster.addresses, rows, strict=True))]
        widths = [max(len(row[column]) for row in table) + 3 for column in range(len(head))]
        cursor_up = f"\x1b[{self._drawn_lines}A" if self._drawn_lines else ""
        lines = ["".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in table]
        self._out.write(cursor_up + "".join(f"\x1b[2K{line}\n" for line in lines), ending="")
        self._out.flush()
        self._drawn_lines = len(lines)

    def _print_changes(self, rows: list[tuple[str, ...]]) -> None:
        for i, (state, alive, *_) in enumerate(rows):
            text = f"{self._cluster.addresses[i]} {state}" + (f", alive {alive}" if alive else "")
            if self._printed.get(i) != text:
                self._printed[i] = text
                self._out.write(text)
        self._out.flush()
