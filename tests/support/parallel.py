"""The pytest plugin for several workers at once (pytest-xdist): some tests run alone, and the slowest files run first.

A test with the mark ``alone`` measures something that other work on the machine would disturb. It starts when no other
test runs, and no other test starts while it runs.

A worker runs a whole file. If a slow file came last, the other workers would have nothing left to do meanwhile.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
"""The name of this worker process; empty if one process runs all tests."""

SECONDS_BY_MARK = {"slow": 15.0, "netns": 5.0, "browser": 4.0, "processes": 2.0}
"""Estimated durations of tests with these marks. All others take next to none."""

# Locks are taken on files that all workers have. Their contents do not matter.
GATE, RUNNING = Path(__file__), Path(__file__).parent / "ports.py"


@contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    """Hold a lock on the file ``path``; ``operation``: ``LOCK_SH`` (shared) or ``LOCK_EX`` (exclusive)."""
    with path.open() as file:
        fcntl.flock(file, operation)
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run one test, with the locks that keep it apart from others."""
    if not WORKER:
        return (yield)
    is_alone = item.get_closest_marker("alone") is not None
    with ExitStack() as stack:
        # Every test passes the gate. A test that has to run alone waits inside, so that no other test overtakes it.
        with _locked(GATE, fcntl.LOCK_EX):
            stack.enter_context(_locked(RUNNING, fcntl.LOCK_EX if is_alone else fcntl.LOCK_SH))
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files first that take longest. Each worker collects all tests, and all in the same order."""
    if not WORKER:
        return
    seconds: dict[Path, float] = {}
    for item in items:
        estimates = [of_mark for mark, of_mark in SECONDS_BY_MARK.items() if item.get_closest_marker(mark)]
        seconds[item.path] = seconds.get(item.path, 0.0) + max(estimates, default=0.05)
    items.sort(key=lambda item: (-seconds[item.path], item.path))
