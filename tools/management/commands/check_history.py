"""``manage.py check_history FILE``: check a recorded history of client operations for causal consistency."""

import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError

from store.management.base import CausewayCommand
from tools import history


class Command(CausewayCommand):
    """Exit code 0: no violation. Exit code 1: a violation, or a file that cannot be read or checked."""

    help = "Check a recorded history for causal consistency; print violations and a small counterexample."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument(
            "file",
            help='a history as JSON lines, one operation per line (format: tools/history); "-" is standard input',
        )
        parser.add_argument(
            "--no-arbitration",
            action="store_true",
            help="do not check that all reads agree on one order of conflicting writes "
            "(for stores whose clocks do not observe each other)",
        )
        parser.add_argument(
            "--exact",
            action="store_true",
            help='every write has "update" and "replaces": use them to decide what a delete removed',
        )
        parser.add_argument(
            "--served-in-order",
            action="store_true",
            help="operations of one replica appear in the order in which it served them: check that order too",
        )
        parser.add_argument(
            "--plume",
            action="store_true",
            help="the file has the text format of Plume: r(key,value,session,transaction) or w(…) in each line",
        )
        parser.add_argument(
            "--write-plume",
            metavar="FILE",
            help="write the history in Plume's text format too, so that other checkers can judge it",
        )
        parser.add_argument("--limit", type=int, default=20, help="report at most this many violations (default: 20)")

    def handle(self, *args: Any, **options: Any) -> None:
        """Check the file. Raises ``CommandError`` (exit code 1) if there is a violation."""
        flags = {
            "arbitration": not options["no_arbitration"],
            "exact": options["exact"],
            "served_in_order": options["served_in_order"],
        }
        try:
            content = _read(options["file"])
            operations = history.load_plume(content.decode()) if options["plume"] else history.load(content)
            if options["write_plume"]:
                Path(options["write_plume"]).write_text(history.dump_plume(operations), "ascii")
            report = history.check(operations, limit=max(1, options["limit"]), **flags)
            if report.ok:
                self.stdout.write(str(report))
                return
            example = history.shrink(operations, **flags)
        except (OSError, UnicodeDecodeError, history.HistoryError) as exc:
            raise CommandError(str(exc)) from exc
        self.stdout.write(str(report))
        if report.truncated:
            self.stdout.write("More violations were found; --limit reports more.")
        self.stdout.write(f"\nA small counterexample ({len(example)} of {report.checked} operations):")
        for operation in example:
            self.stdout.write("  " + history.describe(operation))
        self.stdout.write("\nThe counterexample as JSON lines:")
        self.stdout.write(history.dump(example).decode(), ending="")
        raise CommandError("The history is not causally consistent")


def _read(name: str) -> bytes:
    return sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
