"""``run_cluster``: run a cluster on this machine, to try Causeway."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import requests
import urllib3
from django.core.management.base import CommandError, CommandParser

from kvsite import cli, signals
from kvsite.cluster import (
    DEFAULT_BASE_PORT,
    DEFAULT_HOST,
    DEFAULT_REPLICAS,
    ClusterError,
    LocalCluster,
    other_ports,
)
from kvsite.config import current
from kvsite.server import StartError, bind
from kvsite.signals import StopRequest
from store.management.base import CausewayCommand

MAX_REPLICAS = 64
REFRESH_S = 1.0

CONFIRM_S: Final = 10.0
"""A second Ctrl-C within this time stops the cluster although keys are lost with it."""

MAX_NAMED: Final = 3
"""How many replicas that go on the last line names."""

HEAD: Final = ("REPLICA", "STATE", "ALIVE", "KEYS", "PENDING", "READS/S", "WRITES/S")
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


class Command(CausewayCommand):
    """Run a local cluster until Ctrl-C and print its state: a live table in a terminal, otherwise a line per change."""

    help = "Run a cluster of replicas on 127.0.0.1 and print its state until Ctrl-C."
    exit_codes = {0: "stopped", 1: "a port is in use, or a replica did not start", 2: "wrong arguments or settings"}
    environment = {"KV_*": "settings of all replicas (docs/settings.md)"}

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
        except StartError as exc:
            raise CommandError(f"{exc}. {other_ports(base_port, replicas)}") from exc
        try:
            with LocalCluster(replicas, base_port, environment=environment) as cluster:
                self._welcome(cluster)
                others = StatusPrinter(cluster, self.stdout, is_live=sys.stdout.isatty()).run()
                self.stdout.write(farewell(others))
        except ClusterError as exc:
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


class Row(NamedTuple):
    """What is shown of one replica.

    ``keys``: how many it has, 0 if it does not answer. ``alive``: addresses of the members that it sees alive.
    """

    cells: tuple[str, ...]
    keys: int = 0
    alive: frozenset[str] = frozenset()


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
        self._asked_s = float("-inf")
        tokens = current().api_tokens
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)  # see _row
        self._headers = {"Authorization": f"Bearer {tokens[0].token}"} if tokens else {}

    def run(self) -> list[str]:
        """Print until a signal asks this process to stop. Return the addresses of replicas that go on after it."""
        count = len(self._cluster.addresses)
        stop = StopRequest()
        with ThreadPoolExecutor(count, "status") as pool:
            while True:
                began = time.monotonic()
                rows = list(pool.map(self._row, range(count)))
                self._draw_table([row.cells for row in rows]) if self._is_live else self._print_changes(rows)
                if stop.wait(max(0.0, began + REFRESH_S - time.monotonic())):
                    others = self._others(rows)
                    if self._may_stop(stop.signum, 0 if others else max(row.keys for row in rows)):
                        return others
                    stop.withdraw()

    def _others(self, rows: Sequence[Row]) -> list[str]:
        """Return the addresses of ready members that somebody else has started, or has restarted by hand."""
        addresses = self._cluster.addresses
        own = {address for i, address in enumerate(addresses) if self._cluster.is_running(i)}
        return [other for other in sorted(_alive(rows) - own) if self._cluster.answers_ready(other)]

    def _may_stop(self, signum: int | None, keys: int) -> bool:
        """Return whether to stop now. On a terminal, the first Ctrl-C only says that ``keys`` keys would be lost."""
        now_s = time.monotonic()
        is_confirmed = now_s - self._asked_s < CONFIRM_S
        if signum != signal.SIGINT or not self._is_live or not keys or is_confirmed:
            return True
        self._asked_s = now_s
        lost = "1 key is" if keys == 1 else f"{keys:,} keys are"
        self._out.write(f"\r\x1b[2K{lost} in memory only. Press Ctrl-C again within {CONFIRM_S:.0f} s to lose them.")
        self._drawn_lines = 0  # Draw the table anew, below this line.
        return False

    def _row(self, i: int) -> Row:
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
            states = [member["state"] for member in status["view"] if member["state"] != "left"]
            alive = frozenset(member["address"] for member in status["view"] if member["state"] == "alive")
            rates = status["throughput"]
            cells = (
                status["state"],
                f"{states.count('alive')} of {len(states)}",
                str(status["keys"]),
                str(status["pending_count"]),
                f"{rates['reads_per_s']:.0f}",
                f"{rates['writes_per_s']:.0f}",
            )
            return Row(cells, int(status["keys"]), alive)
        except (requests.RequestException, KeyError, ValueError):
            # The request comes before this check, because a replica that was restarted by hand is not a child.
            return Row(("no answer" if self._cluster.is_running(i) else "ended", "", "", "", "", ""))

    def _draw_table(self, rows: Sequence[tuple[str, ...]]) -> None:
        table = [HEAD, *((address, *row) for address, row in zip(self._cluster.addresses, rows, strict=True))]
        size = shutil.get_terminal_size()
        lines = table_lines(table, size.columns, size.lines)
        cursor_up = f"\x1b[{self._drawn_lines}A" if self._drawn_lines else ""
        self._out.write("\r" + cursor_up + "".join(f"\x1b[2K{line}\n" for line in lines), ending="")
        self._out.flush()
        self._drawn_lines = len(lines)

    def _print_changes(self, rows: Sequence[Row]) -> None:
        for i, ((state, alive, *_), *_) in enumerate(rows):
            text = f"{self._cluster.addresses[i]} {state}" + (f", alive {alive}" if alive else "")
            if self._printed.get(i) != text:
                self._printed[i] = text
                self._out.write(text)
        self._out.flush()


def _alive(rows: Iterable[Row]) -> set[str]:
    return {address for row in rows for address in row.alive}


def farewell(others: Sequence[str]) -> str:
    """Return what to print at the end. ``others``: addresses of replicas that go on."""
    if not others:
        return "Stopping. The data was in memory and is lost."
    named = ", ".join(others[:MAX_NAMED])
    more = f" and {len(others) - MAX_NAMED} more" if len(others) > MAX_NAMED else ""
    return f"Stopping. The data is still in the memory of {named}{more}, which this command has not started."


def table_lines(table: Sequence[Sequence[str]], columns: int, lines: int) -> list[str]:
    """Return the lines of a table that fit a terminal: with narrower gaps, or without the last columns.

    A line that is too long would be wrapped, and the table could not be redrawn in place; neither could more lines than
    the terminal has.
    """
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    shown = len(widths)
    while shown > 1 and sum(widths[:shown]) + shown - 1 >= columns:
        shown -= 1
    gap = max(1, min(3, (columns - 1 - sum(widths[:shown])) // max(1, shown - 1)))
    text = [
        (" " * gap).join(f"{cell:<{width}}" for cell, width in zip(row[:shown], widths[:shown], strict=True)).rstrip()
        for row in table
    ]
    room = max(2, lines - 1)
    if len(text) > room:
        text = [*text[: room - 1], f"and {len(text) - room + 1} more"]
    return [line[: max(1, columns - 1)] for line in text]
