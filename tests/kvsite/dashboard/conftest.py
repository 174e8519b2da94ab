"""Fixtures of the dashboard's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from kvsite.dashboard import site as site_module
from kvsite.dashboard.polling import ClusterPoller
from tests.kvsite.dashboard.support import FakeMember, ShowCluster, state_of
from tests.support.statuses import Cluster


@pytest.fixture
def show_cluster(monkeypatch: pytest.MonkeyPatch) -> ShowCluster:
    """Return a function that makes the pages show a cluster."""

    def show(cluster: Cluster) -> None:
        monkeypatch.setattr(site_module, "poller", ClusterPoller(lambda _: state_of(cluster)))

    return show


@pytest.fixture
def fake_node() -> Iterator[FakeMember]:
    node = FakeMember()
    yield node
    node.ended.set()
