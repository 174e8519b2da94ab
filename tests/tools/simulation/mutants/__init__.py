"""Mutants: the protocol with one mistake each. A check that does not catch them proves nothing.

A mutant is a context manager that breaks one rule for all replicas. The mistakes are those of earlier drafts of the
protocol, and those that a later change is likely to make. ``MUTANTS`` are caught by random runs (test_simulation.py),
``DIRECTED`` only by directed tests (test_mutants.py).
"""

from tests.tools.simulation.mutants import delivery, exchange, feed, joining, loss, membership, merging, snapshots
from tests.tools.simulation.mutants.registry import DIRECTED, MUTANTS

__all__ = [
    "DIRECTED",
    "MUTANTS",
    "delivery",
    "exchange",
    "feed",
    "joining",
    "loss",
    "membership",
    "merging",
    "snapshots",
]
