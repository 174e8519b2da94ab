"""``manage.py simulate``: run the protocol under simulated faults, from seeds, and check the outcome."""

from __future__ import annotations

import os
import time
from argparse import ArgumentParser
from collections import Counter
from typing import Any

from django.core.management.base import CommandError

from store.management.base import CausewayCommand
from tools import history
from tools.simulation.campaign import attempt, campaign, fingerprint, shrink
from tools.simulation.run import Outcome

BATCH = 200


class Command(CausewayCommand):
    """Run one seed or many, or shrink one that fails."""

    help = "Simulate replicas under faults of every kind, from seeds; exit 1 if a promise is broken."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "--seed", type=int, default=0, help="the first seed; without --runs and --minutes, the seed to replay"
        )
        parser.add_argument("--runs", type=int, help="number of seeds to run")
        parser.add_argument("--minutes", type=float, help="run seeds for this time instead")
        parser.add_argument("--operations", type=int, default=200, help="client operations per run")
        parser.add_argument("--replicas", type=int, help="their number in every run; without it, the seed says it")
        parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
        parser.add_argument(
            "--shrink", action="store_true", help="make the run of --seed shorter as long as it fails, and explain it"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Run as the flags say. Raises CommandError (exit 1) if a promise is broken."""
        seed, operations, replicas = options["seed"], options["operations"], options["replicas"]
        if replicas is not None and replicas < 2:
            raise CommandError("--replicas must be at least 2")
        if options["shrink"]:
            self._shrink(seed, operations, replicas)
            return
        if options["runs"] is None and options["minutes"] is None:
            self._replay(seed, operations, replicas)
            return
        self._campaign(seed, operations, options)

    def _replay(self, seed: int, operations: int, replicas: int | None) -> None:
        outcome = attempt(seed, operations, replicas)
        self.stdout.write(f"seed {seed}, {operations} operations, history {fingerprint(outcome)[:16]}")
        self.stdout.write(summary(outcome.counts))
        self._fail_on([outcome], _command(operations, replicas))

    def _campaign(self, first: int, operations: int, options: dict[str, Any]) -> None:
        began_s = time.perf_counter()
        limit_s = began_s + 60 * options["minutes"] if options["minutes"] is not None else float("inf")
        runs_left = options["runs"] if options["runs"] is not None else 10**9
        counts: Counter[str] = Counter()
        failed: list[Outcome] = []
        done = 0
        while runs_left > 0 and time.perf_counter() < limit_s:
            seeds = range(first + done, first + done + min(BATCH, runs_left))
            for outcome in campaign(seeds, operations, options["processes"], options["replicas"]):
                counts.update(outcome.counts)
                failed += [outcome] if outcome.violations else []
            done += len(seeds)
            runs_left -= len(seeds)
        seconds = time.perf_counter() - began_s
        self.stdout.write(
            f"{done} runs, {counts['operations']} operations, {seconds:.1f} s in {options['processes']} processes"
        )
        self.stdout.write(
            f"{counts['operations'] / seconds / options['processes']:.0f} operations per second and process"
        )
        self.stdout.write(summary(counts))
        self._fail_on(failed, _command(operations, options["replicas"]))

    def _fail_on(self, outcomes: list[Outcome], command: str) -> None:
        bad = [outcome for outcome in outcomes if outcome.violations]
        if not bad:
            self.stdout.write("no violation")
            return
        for outcome in bad[:10]:
            for violation in outcome.violations[:5]:
                self.stdout.write(f"seed {outcome.seed}: {violation}")
        seed = bad[0].seed
        self.stdout.write(f"replay:  {command} --seed {seed}")
        self.stdout.write(f"shrink:  {command} --seed {seed} --shrink")
        raise CommandError(f"{len(bad)} runs broke a promise")

    def _shrink(self, seed: int, operations: int, replicas: int | None) -> None:
        count, outcome = shrink(seed, operations, replicas)
        if not outcome.violations:
            self.stdout.write("no violation: nothing to shrink")
            return
        self.stdout.write(f"fails with {count} operations: {_command(count, replicas)} --seed {seed}")
        for words in outcome.violations[:5]:
            self.stdout.write(f"  {words}")
        if not history.check(outcome.history, served_in_order=True).ok:
            self.stdout.write("a part of the history that shows it:")
            part = history.shrink(outcome.history, served_in_order=True)
            for violation in history.check(part, served_in_order=True).violations[:3]:
                self.stdout.write(f"  {violation}")
        raise CommandError(f"seed {seed} breaks a promise")


def summary(counts: Counter[str]) -> str:
    """Return what happened, most frequent first."""
    return "  " + ", ".join(f"{name} {number}" for name, number in counts.most_common())


def _command(operations: int, replicas: int | None) -> str:
    """Return the command that runs this many operations at this many replicas."""
    size = "" if replicas is None else f" --replicas {replicas}"
    return f"python manage.py simulate --operations {operations}{size}"
