"""The command line of the soak test: see the package docstring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import soak as package
from tools.netns.errors import NetnsError
from tools.soak.report import report, shortcomings
from tools.soak.run import CLIENTS, check_again, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak, print the report, and return 0 if it passed."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=_first_line(package.__doc__))
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to run, in minutes (10)")
    parser.add_argument("--replicas", type=int, default=5, help="number of replicas (5)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"number of clients ({CLIENTS})")
    parser.add_argument("--seed", type=int, help="seed of the random choice of faults and operations")
    parser.add_argument("--directory", type=Path, help="directory for records and logs (default: a temporary one)")
    parser.add_argument("--check", type=Path, metavar="DIRECTORY", help="check the records of an earlier run again")
    options = parser.parse_args(arguments)

    if options.check:
        return check_again(options.check, say)
    try:
        run = soak(
            options.minutes * 60,
            replicas=options.replicas,
            clients=options.clients,
            seed=options.seed,
            directory=options.directory,
            say=say,
        )
    except NetnsError as exc:
        sys.stderr.write(f"python -m tools.soak: {exc}\n")
        return 2
    say(report(run))
    short = shortcomings(run)
    if not run.problems and not short:
        say("result                passed")
        return 0
    say(f"result                FAILED: {len(run.problems)} violations, {len(short)} figures too low")
    for text in [*run.problems, *short]:
        say(f"- {text}")
    say(f"Records and logs are in {run.directory}. To check them again:")
    say(f"  python -m tools.soak --check {run.directory}")
    say(f"  python manage.py check_history {run.directory}/round-{run.round}/history.jsonl")
    return 1


def say(text: str) -> None:
    """Print a line at once, for those who watch a long run."""
    print(text, flush=True)  # noqa: T201  # a command


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
