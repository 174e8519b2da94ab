"""The names of all mutants."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Mutant = Callable[[], AbstractContextManager[None]]

MUTANTS: dict[str, Mutant] = {}
DIRECTED: dict[str, Mutant] = {}


def mutant(function: Callable[[], Iterator[None]]) -> Mutant:
    """Add a mutant to ``MUTANTS``, under the name of the function."""
    made = contextmanager(function)
    MUTANTS[function.__name__] = made
    return made


def directed(function: Callable[[], Iterator[None]]) -> Mutant:
    """Add a mutant to ``DIRECTED``, under the name of the function."""
    made = contextmanager(function)
    DIRECTED[function.__name__] = made
    return made
