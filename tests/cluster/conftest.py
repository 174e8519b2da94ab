"""Clusters in network namespaces. The tests of a module share one; each test starts without faults."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.support import heal_and_converge
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import QUICK


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster/" in item.path.as_posix():
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="module")
def shared_trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsCluster]:
    """Three replicas for all tests of a module. Their logs stay in pytest's temporary directory."""
    with NetnsCluster(3, QUICK, tmp_path_factory.mktemp("trio")) as cluster:
        yield cluster


@pytest.fixture
def trio(shared_trio: NetnsCluster) -> NetnsCluster:
    """Three replicas that have no faults and have converged."""
    heal_and_converge(shared_trio)
    return shared_trio
