"""Clusters in network namespaces that the tests of this directory share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.support import heal_and_converge
from tools.netns.cluster import NetnsCluster


@pytest.fixture(scope="package")
def shared_trio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NetnsCluster]:
    """Three replicas with the default timeouts, and a short log."""
    settings = {"KV_MAX_LOG_BYTES": str(80 * 1024)}
    with NetnsCluster(3, settings, tmp_path_factory.mktemp("long")) as cluster:
        yield cluster


@pytest.fixture
def trio(shared_trio: NetnsCluster) -> NetnsCluster:
    heal_and_converge(shared_trio)
    return shared_trio
