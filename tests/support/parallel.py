"""The pytest plugin for two workers at once (pytest-xdist): some tests run alone.

A test with the mark ``alone`` measures something that other work on the machine would disturb. It starts when no other
test runs, and no other test starts while it runs.
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
