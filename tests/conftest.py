"""Fixtures of all tests: clusters of real processes on free ports of the loopback interface."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from kvsite.cluster import LocalCluster
from kvsite.logs import queue_handler
from tests.support.ports import free_ports

pytest_plugins = ["tests.support.scenarios_plugin", "tests.support.parallel"]

# The duration of one example depends on the machine, and says nothing about the code.
settings.register_profile("causeway", deadline=None)
settings.load_profile("causeway")

ClusterFactory = Callable[..., LocalCluster]


@pytest.fixture(autouse=True)
def log_of_this_process() -> None:
    """Keep log lines of the code under test for pytest: its own thread would write them to the terminal later.

    A test that sets up Django, or its logging, adds the handler again.
    """
    while handler := queue_handler():
        logging.getLogger().removeHandler(handler)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[ClusterFactory]:
    """Return ``make(replicas=3, start=True, **environment)``. It makes clusters that are stopped after the test.

    The replicas are ready unless ``start`` is false. Their logs are in ``tmp_path``, which pytest keeps for a while.
    """
    with ExitStack() as stack:

        def make(replicas: int = 3, *, start: bool = True, **environment: Any) -> LocalCluster:
            base_port = free_ports(replicas)
            made = LocalCluster(
                replicas,
                base_port,
                environment={name: str(value) for name, value in environment.items()},
                log_dir=tmp_path / f"cluster-{base_port}",
            )
            stack.callback(made.stop, 0)
            if start:
                made.start()
                made.wait_ready()
            return made

        yield make
