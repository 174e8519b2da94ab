"""``manage.py benchmark``: measure Causeway beside baselines and other stores, on this machine, in one run.

docs/benchmarks/README.md explains each figure.
"""

from __future__ import annotations

import http.client
import os
import signal
import subprocess
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from kvsite.cluster import ClusterError
from store.management.base import CausewayCommand
from tools.benchmark import report
from tools.benchmark.drivers import Bundled, choose
from tools.benchmark.figures import Figure, text_table
from tools.benchmark.processes import BenchmarkError, Cores, find_program, version_of
from tools.benchmark.sections import PEERS, SECTIONS, measure
from tools.benchmark.systems import Context

BASE_PORT = 24000
PROGRAMS = {
    "etcd": [("etcd", "etcd-server")],
    "redis": [("redis-server", "redis-server"), ("webdis", "webdis")],
}
"""Peer -> its programs, each with its Debian package."""


class Command(CausewayCommand):
    """Measures, prints a table, and writes files on request."""

    help = "Measure speed, replication lag, memory and growth on clusters that it starts; see docs/benchmarks."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--only", metavar="SECTION,…", help=f"measure only these sections: {', '.join(SECTIONS)}")
        parser.add_argument("--peers", metavar="PEER,…", default="", help="measure these stores too: etcd, redis")
        parser.add_argument(
            "--rounds", type=int, default=5, help="interleaved rounds; results are medians (default: 5)"
        )
        parser.add_argument("--seconds", type=float, default=3.0, help="duration of one measurement (default: 3)")
        parser.add_argument("--quick", action="store_true", help="one short round with small sizes, as a trial")
        parser.add_argument("--full", action="store_true", help="measure up to a million keys too (1.5 GB of memory)")
        parser.add_argument("--driver", choices=("wrk", "bundled"), help="load generator (default: wrk if installed)")
        parser.add_argument("--no-metadata", action="store_true", help="send requests without causal metadata")
        parser.add_argument(
            "--base-port",
            type=int,
            default=BASE_PORT,
            help=f"first of a hundred ports to use (default: {BASE_PORT})",
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
        parser.add_argument(
            "--charts",
            type=Path,
            metavar="DIR",
            help="write charts and the results in README.md to this directory",
        )
        parser.add_argument(
            "--from",
            dest="sources",
            type=Path,
            metavar="FILE",
            action="append",
            default=[],
            help="take the other sections from a --json file of an earlier run (repeatable); with --only=none nothing "
            "is measured",
        )
        parser.add_argument("--check", action="store_true", help="exit with code 1 if a target is missed")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the benchmark. Raises ``CommandError`` if it cannot run, or with --check if a target is missed."""
        if not Path("/proc/self/stat").exists():
            raise CommandError("the benchmark needs Linux: it pins processes to cores and reads their times from /proc")
        # SIGTERM stops the servers in order, like Ctrl-C.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        affinity = os.sched_getaffinity(0)
        try:
            self._run(options)
        except (
            BenchmarkError,
            ClusterError,
            OSError,
            http.client.HTTPException,
            subprocess.SubprocessError,
        ) as exc:
            raise CommandError(str(exc) or repr(exc)) from exc
        except KeyboardInterrupt:
            raise CommandError("interrupted", returncode=130) from None
        finally:
            os.sched_setaffinity(0, affinity)
            signal.signal(signal.SIGTERM, before)

    def _run(self, options: dict[str, Any]) -> None:
        sections = [] if options["only"] == "none" else _chosen(options["only"], SECTIONS, "section") or list(SECTIONS)
        peers = _chosen(options["peers"], PEERS, "peer")
        # Look for the programs now, so that a missing one is reported before the measurements.
        programs = [find_program(*program) for peer in peers for program in PROGRAMS[peer]]
        how, figures = self._earlier(options["sources"], sections)
        if sections:
            began_s, before = time.monotonic(), report.busy_and_stolen_ticks()
            context = self._context(options)
            # webdis has no --version: it takes the argument as its settings file, and starts.
            how = _how(context) | {"peers": [version_of(program) for program in programs if "webdis" not in program]}
            os.sched_setaffinity(0, context.cores.load)
            measure(context, sections, peers, figures.extend)
            how["core_share"] = _core_share(figures)
            how["took_s"] = round(time.monotonic() - began_s)
            wanted, stolen = (now - then for now, then in zip(report.busy_and_stolen_ticks(), before, strict=True))
            how["stolen"] = stolen / max(1, wanted)
        figures.sort(key=lambda figure: SECTIONS.index(figure.section))
        self._write_results(how, figures, options)

    def _earlier(self, sources: Sequence[Path], sections: Sequence[str]) -> tuple[dict[str, Any], list[Figure]]:
        how: dict[str, Any] = {}
        figures: list[Figure] = []
        for source in sources:
            how, earlier = report.read_json(source)
            # If two files have the same section, the later file counts.
            have = {figure.section for figure in earlier}
            figures = [figure for figure in figures if figure.section not in have]
            figures += [figure for figure in earlier if figure.section not in sections]
        if not sections and not figures:
            raise CommandError("nothing to measure and nothing to report: --only=none needs --from")
        return how, figures

    def _context(self, options: dict[str, Any]) -> Context:
        began_s = time.monotonic()

        def progress(text: str) -> None:
            self.stderr.write(f"[{time.monotonic() - began_s:6.1f} s] {text}")
            self.stderr.flush()

        quick = options["quick"]
        cores = Cores.of_machine()
        return Context(
            cores=cores,
            driver=choose(cores, options["driver"] or ""),
            bundled=Bundled(cores),
            base_port=options["base_port"],
            rounds=1 if quick else max(1, options["rounds"]),
            seconds=min(1.0, options["seconds"]) if quick else options["seconds"],
            warm_up_s=0.2 if quick else 0.5,
            quick=quick,
            full=options["full"],
            metadata=not options["no_metadata"],
            progress=progress,
        )

    def _write_results(self, how: dict[str, Any], figures: Sequence[Figure], options: dict[str, Any]) -> None:
        self.stdout.write(report.describe_run(how).replace("**", ""))
        self.stdout.write("")
        self.stdout.write(text_table(figures))
        self.stdout.write("")
        if options["json"]:
            report.write_json(options["json"], how, figures)
        if options["charts"]:
            written = report.write_pages(options["charts"], how, figures)
            self.stdout.write(f"wrote {', '.join(str(path) for path in written)}")
        missed = [figure for figure in figures if figure.met is False]
        targets = sum(figure.target is not None for figure in figures)
        self.stdout.write(f"{targets - len(missed)} of {targets} targets met")
        if missed and options["check"]:
            raise CommandError("missed targets: " + "; ".join(figure.name for figure in missed))


def _chosen(text: str | None, names: Sequence[str], what: str) -> list[str]:
    """Split a comma-separated list. Raises ``CommandError`` if an entry is not in ``names``."""
    chosen = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in chosen:
        if name not in names:
            raise CommandError(f"unknown {what} {name!r}; choose from {', '.join(names)}")
    return chosen


def _how(context: Context) -> dict[str, Any]:
    return {
        **report.machine(),
        "driver": context.driver.name,
        "rounds": context.rounds,
        "seconds": context.seconds,
        "connections": context.connections,
        "shared": context.cores.shared,
        "quick": context.quick,
        "metadata": context.metadata,
    }


def _core_share(figures: Sequence[Figure]) -> float | None:
    """Return the smallest share of their core that servers used under full load; None if there was no full load."""
    return min((figure.details["core"] for figure in figures if "core" in figure.details), default=None)
