"""``python manage.py check_history FILE``: judge a recorded history of client operations."""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from tools import history


class Command(BaseCommand):
    """Exit 0: nothing wrong. 1: a violation, or a file that cannot be judged."""

    help = "Judge a recorded history (JSON lines, see tools/history) and print the smallest counterexample found."
    # A file is judged, no replica is touched.
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the file, the ways of judging, and how much to report."""
        parser.add_argument("file", help='JSON lines, one operation each; "-" reads standard input')
        parser.add_argument(
            "--no-arbitration",
            action="store_true",
            help="do not ask for one order of conflicting writes (for stores whose clocks do not observe each other)",
        )
        parser.add_argument(
            "--exact", action="store_true", help='every write has "update" and "replaces": judge deletes by them'
        )
        parser.add_argument(
            "--served-in-order",
            action="store_true",
            help="operations of one replica stand in the order in which it served them",
        )
        parser.add_argument("--limit", type=int, default=20, help="report at most this many violations (20)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Judge; a violation ends in ``CommandError``, which is exit code 1."""
        endpoints = {
            "arbitration": not options["no_arbitration"],
            "exact": options["exact"],
            "served_in_order": options["served_in_order"],
        }
        try:
            operations = history.load(_read(options["file"]))
            report = history.check(operations, limit=max(1, options["limit"]), **endpoints)
            if report.ok:
                self.stdout.write(str(report))
                return
            example = history.shrink(operations, **endpoints)
        except (OSError, history.HistoryError) as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(str(report))
        if report.truncated:
            self.stdout.write("… and more")
        self.stdout.write(f"\nSmallest counterexample found ({len(example)} of {report.checked} operations):")
        for operation in example:
            self.stdout.write("  " + history.describe(operation))
        self.stdout.write("\nThe same as JSON lines:")
        self.stdout.write(history.dump(example).decode(), ending="")
        raise CommandError("The history is not causally consistent")


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
