"""The command: see the package."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools import soak as package
from tools.soak.report import report, shortcomings
from tools.soak.run import CLIENTS, judge_again, soak


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, tell, and return 0 where nothing was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tools.soak", description=_first_line(package.__doc__))
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to run (10)")
    parser.add_argument("--replicas", type=int, default=5)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--seed", type=int, help="of the choice of faults and operations")
    parser.add_argument("--directory", type=Path, help="where records and logs go (default: a temporary one)")
    parser.add_argument("--judge", type=Path, metavar="DIRECTORY", help="judge the records of an earlier run again")
    options = parser.parse_args(arguments)

    if options.judge:
        return judge_again(options.judge, say)
    run = soak(
        options.minutes * 60,
        replicas=options.replicas,
        clients=options.clients,
        seed=options.seed,
        directory=options.directory,
        say=say,
    )
    say(report(run))
    short = shortcomings(run)
    if not run.problems and not short:
        say("verdict               no violation")
        return 0
    say(f"verdict               {len(run.problems)} violations, {len(short)} shortcomings")
    for text in [*run.problems, *short]:
        say(f"- {text}")
    say(f"Records and logs are kept in {run.directory}. To judge them again:")
    say(f"  python -m tools.soak --judge {run.directory}")
    say(f"  python manage.py check_history {run.directory}/round-{run.round}/history.jsonl")
    return 1


def say(text: str) -> None:
    """Print at once: a long run is watched."""
    print(text, flush=True)  # noqa: T201  # a command


def _first_line(text: str | None) -> str:
    return (text or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
