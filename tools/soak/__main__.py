"""The command line of the soak test: see the package docstring."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import soak as package
from tools.netns.errors import NetnsError
from tools.paths import first_line, say
from tools.soak.report import report, shortcomings
from tools.soak.run import CLIENTS, REPLICAS, check_again, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak, print the report, and return 0 if it passed."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=first_line(package.__doc__))
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to run, in minutes (%(default)g)")
    parser.add_argument("--replicas", type=int, default=REPLICAS, help="number of replicas (%(default)d)")
    parser.add_argument("--clients", type=int, default=CLIENTS, help="number of clients (%(default)d)")
    parser.add_argument("--seed", type=int, help="seed of the random choice of faults and operations")
    parser.add_argument("--directory", type=Path, help="directory for records and logs (default: a temporary one)")
    parser.add_argument("--check", type=Path, metavar="DIRECTORY", help="check the records of an earlier run again")
    options = parser.parse_args(arguments)

    if options.check:
        return check_again(options.check, say)
    try:
        results = soak(
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
    say(report(results))
    short = shortcomings(results)
    if not results.problems and not short:
        say("result                passed")
        return 0
    say(f"result                FAILED: {len(results.problems)} violations, {len(short)} figures too low")
    for text in [*results.problems, *short]:
        say(f"- {text}")
    say(f"Records and logs are in {results.directory}. To check them again:")
    say(f"  python -m tools.soak --check {results.directory}")
    say(f"  python manage.py check_history {results.directory}/round-{results.round}/history.jsonl")
    return 1


if __name__ == "__main__":
    sys.exit(main())
