"""``manage.py benchmark``: measure Causeway beside its limits and its peers, on this machine, in one run.

What each figure means and how to read it: docs/benchmarks/README.md.
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

from django.core.management.base import BaseCommand, CommandError

from kvsite.cluster import ClusterError
from tools.benchmark import report
from tools.benchmark.drivers import Bundled, choose
from tools.benchmark.figures import Figure, text_table
from tools.benchmark.processes import BenchmarkError, Cores, find_program, version_of
from tools.benchmark.sections import PEERS, SECTIONS, measure
from tools.benchmark.systems import Lab

BASE_PORT = 24000
PROGRAMS = {
    "etcd": [("etcd", "etcd-server")],
    "redis": [("redis-server", "redis-server"), ("webdis", "webdis")],
}
"""Peer -> programs and the Debian packages that have them."""


class Command(BaseCommand):
    """Measures, prints a table, and writes files where it is asked to."""

    help = "Measure speed, lag, memory and growth on clusters of its own; see docs/benchmarks."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument("--only", metavar="SECTION,…", help=f"only these sections: {', '.join(SECTIONS)}")
        parser.add_argument("--peers", metavar="PEER,…", default="", help="measure these beside it: etcd, redis")
        parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds; medians are told (default: 5)")
        parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement (default: 3)")
        parser.add_argument("--quick", action="store_true", help="one short round of small sizes: does it work?")
        parser.add_argument("--full", action="store_true", help="up to a million keys (1.5 GB of memory)")
        parser.add_argument("--driver", choices=("wrk", "bundled"), help="what makes the load (default: wrk, if found)")
        parser.add_argument(
            "--no-history", action="store_true", help="requests carry no causal metadata, as of clients that keep none"
        )
        parser.add_argument(
            "--base-port", type=int, default=BASE_PORT, help=f"the first of a hundred ports (default: {BASE_PORT})"
        )
        parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
        parser.add_argument(
            "--charts", type=Path, metavar="DIR", help="write charts there, and the results in README.md"
        )
        parser.add_argument(
            "--from",
            dest="sources",
            type=Path,
            metavar="FILE",
            action="append",
            default=[],
            help="take sections that are not measured now from --json of an earlier run (repeatable); with --only=none "
            "nothing is measured",
        )
        parser.add_argument("--check", action="store_true", help="exit 1 when a target is missed")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run it. CommandError: it cannot be run, or with --check a target is missed."""
        if not Path("/proc/self/stat").exists():
            raise CommandError("the benchmark needs Linux: it pins processes to cores and reads their times from /proc")
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ends like Ctrl-C: servers in order.
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
        # What is missing is said now, not after ten minutes.
        programs = [find_program(*program) for peer in peers for program in PROGRAMS[peer]]
        how, figures = self._earlier(options["sources"], sections)
        if sections:
            began_s, before = time.monotonic(), report.wanted_and_stolen()
            lab = self._lab(options)
            # webdis would take --version for the name of its settings, and serve.
            how = _how(lab) | {"peers": [version_of(program) for program in programs if "webdis" not in program]}
            os.sched_setaffinity(0, lab.cores.load)
            measure(lab, sections, peers, figures.extend)
            how["core_share"] = _core_share(figures)
            how["took_s"] = round(time.monotonic() - began_s)
            wanted, stolen = (now - then for now, then in zip(report.wanted_and_stolen(), before, strict=True))
            how["stolen"] = stolen / max(1, wanted)
        figures.sort(key=lambda figure: SECTIONS.index(figure.section))
        self._tell(how, figures, options)

    def _earlier(self, sources: Sequence[Path], sections: Sequence[str]) -> tuple[dict[str, Any], list[Figure]]:
        how: dict[str, Any] = {}
        figures: list[Figure] = []
        for source in sources:
            how, told = report.read_json(source)
            # Of two files that have a section, the later one counts.
            have = {figure.section for figure in told}
            figures = [figure for figure in figures if figure.section not in have]
            figures += [figure for figure in told if figure.section not in sections]
        if not sections and not figures:
            raise CommandError("nothing to measure and nothing to tell: --only=none needs --from")
        return how, figures

    def _lab(self, options: dict[str, Any]) -> Lab:
        began_s = time.monotonic()

        def say(text: str) -> None:
            self.stderr.write(f"[{time.monotonic() - began_s:6.1f} s] {text}")
            self.stderr.flush()

        quick = options["quick"]
        cores = Cores.of_machine()
        return Lab(
            cores=cores,
            driver=choose(cores, options["driver"] or ""),
            bundled=Bundled(cores),
            base_port=options["base_port"],
            rounds=1 if quick else max(1, options["rounds"]),
            seconds=min(1.0, options["seconds"]) if quick else options["seconds"],
            warm_up_s=0.2 if quick else 0.5,
            quick=quick,
            full=options["full"],
            history=not options["no_history"],
            say=say,
        )

    def _tell(self, how: dict[str, Any], figures: Sequence[Figure], options: dict[str, Any]) -> None:
        self.stdout.write(report.in_words(how).replace("**", ""))
        self.stdout.write("")
        self.stdout.write(text_table(figures))
        self.stdout.write("")
        if options["json"]:
            report.write_json(options["json"], how, figures)
        if options["charts"]:
            written = report.write_pages(options["charts"], how, figures)
            self.stdout.write(f"wrote {', '.join(str(path) for path in written)}")
        missed = [figure for figure in figures if figure.met is False]
        aimed = sum(figure.target is not None for figure in figures)
        self.stdout.write(f"{aimed - len(missed)} of {aimed} targets met")
        if missed and options["check"]:
            raise CommandError("missed: " + "; ".join(figure.name for figure in missed))


def _chosen(text: str | None, names: Sequence[str], what: str) -> list[str]:
    """Return the names in a comma-separated list. Raises ``CommandError`` for one that is none of ``names``."""
    chosen = [name.strip() for name in (text or "").split(",") if name.strip()]
    for name in chosen:
        if name not in names:
            raise CommandError(f"there is no {what} {name!r}; there are {', '.join(names)}")
    return chosen


def _how(lab: Lab) -> dict[str, Any]:
    return {
        **report.machine(),
        "driver": lab.driver.name,
        "rounds": lab.rounds,
        "seconds": lab.seconds,
        "connections": lab.connections,
        "shared": lab.cores.shared,
        "quick": lab.quick,
        "history": lab.history,
    }


def _core_share(figures: Sequence[Figure]) -> float | None:
    """Return the least share of their core that servers had when they were driven as fast as they go; None: never."""
    return min((figure.details["core"] for figure in figures if "core" in figure.details), default=None)
