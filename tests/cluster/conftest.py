"""Clusters in network namespaces, for the tests of this directory. A module shares one; each test finds it at rest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.support import QUICK, heal_and_converge
from tools.netns.cluster import NetnsCluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/cluster/" in item.path.as_posix():
            item.add_marker(pytest.mark.netns)


@pytest.fixture(scope="module")
def shared_trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsCluster]:
    """Three replicas for all tests of a module; their logs stay in pytest's temporary directory."""
    with NetnsCluster(3, QUICK, tmp_path_factory.mktemp("trio")) as cluster:
        yield cluster


@pytest.fixture
def trio(shared_trio: NetnsCluster) -> NetnsCluster:
    """Three replicas without a fault, and in step."""
    heal_and_converge(shared_trio)
    return shared_trio
