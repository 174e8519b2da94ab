"""The command line of the run with hostile inputs: see the package docstring."""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence

from tools import hostile as package
from tools.hostile.run import SECURED, attack
from tools.paths import first_line, say


def main(arguments: Sequence[str] | None = None) -> int:
    """Send the inputs, print what went wrong, and return 0 if nothing did."""
    parser = argparse.ArgumentParser(prog="python -m tools.hostile", description=first_line(package.__doc__))
    parser.add_argument("--inputs", type=int, default=2000, help="inputs for each of the two clusters (%(default)d)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="seed of the inputs")
    parser.add_argument("--base-port", type=int, default=23800, help="first of three ports on 127.0.0.1 (%(default)d)")
    options = parser.parse_args(arguments)
    faults = []
    for name, environment in (("an open cluster", {}), ("a cluster with a secret and tokens", SECURED)):
        say(f"{options.inputs} inputs to {name}, seed {options.seed}")
        result = attack(options.inputs, options.seed, options.base_port, environment)
        say("  " + result.summary())
        faults += result.faults
    for fault in faults:
        say(f"FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
