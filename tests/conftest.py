"""Fixtures of all tests: clusters of real processes on free ports of the loopback interface."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from kvsite.cluster import LocalCluster

pytest_plugins = ["tests.support.scenarios_plugin"]

# The duration of one example depends on the machine, and says nothing about the code.
settings.register_profile("causeway", deadline=None)
settings.load_profile("causeway")

PORTS = range(21000, 22000)
_next_port = itertools.cycle(PORTS)

ClusterFactory = Callable[..., LocalCluster]


def is_free(port: int) -> bool:
    """Return whether no process listens on ``port`` of 127.0.0.1."""
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def free_ports(count: int) -> int:
    """Return the first of ``count`` consecutive free ports that no earlier call returned."""
    run: list[int] = []
    for port in itertools.islice(_next_port, 2 * len(PORTS)):
        run = [*run, port] if is_free(port) and (not run or port == run[-1] + 1) else []
        if len(run) == count:
            return run[0]
    raise RuntimeError(f"no {count} free ports in a row among {PORTS}")


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
