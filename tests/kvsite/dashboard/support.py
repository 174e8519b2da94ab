"""Helpers of the dashboard's tests: pages made from constructed statuses, and fakes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from django.test import Client

from kvsite.dashboard.cluster_state import ClusterState, parse_cluster
from kvsite.dashboard.overview import Overview, overview
from store.api.context import CONTEXT
from tests.support.fake_node import FakeNode
from tests.support.statuses import NOW_US, Cluster, id_of

ShowCluster = Callable[[Cluster], None]
A, B, C = (f"10.0.0.{i}:8090" for i in (1, 2, 3))


def state_of(cluster: Cluster, local_address: str = A) -> ClusterState:
    return parse_cluster(cluster, local_address, NOW_US)


def page_of(cluster: Cluster, local_address: str = A, lag_s: dict[str, float] | None = None) -> Overview:
    return overview(state_of(cluster, local_address), lag_s or {})


def texts(page: Overview) -> list[str]:
    return [finding.text for finding in page.health.findings]


def facts(page: Overview, address: str) -> dict[str, str]:
    return next({fact.name: fact.value for fact in card.facts} for card in page.cards if card.address == address)


def numbers(page: Overview) -> list[list[int | None]]:
    return [[cell.counter for cell in row.cells] for row in page.clocks.rows]


class FakeClock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def client_of(node: object) -> Client:
    """Return a client whose requests ``node`` serves."""
    return Client(**{CONTEXT: SimpleNamespace(node=node)})  # type: ignore[arg-type]  # environ may hold any object


class FakeMember(FakeNode):
    """The node of one of three members. Its peers respond after ``late_s`` seconds; None: never."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses = [A, B, C]
        self.replica = SimpleNamespace(address=A)
        self.late_s: dict[str, float | None] = {B: 0.0, C: 0.0}
        self.requests: list[tuple[str, str]] = []
        """(address, query) of each status request to a peer."""
        self.ended = threading.Event()

    def status(self, **_options: Any) -> dict[str, Any]:
        return {"of": A}

    def keys(self, *_which: Any, **_more: Any) -> list[dict[str, Any]]:
        written = {"dot": (id_of(B), 1), "timestamp": NOW_US, "versions": 1}
        return [{"key": "k", "type": "json", "value": b"1", "value_bytes": 1, **written}]

    def count_keys(self, _prefix: str, *, conflicts: bool) -> int:
        return 0 if conflicts else 1

    def status_of(self, address: str, query: str = "") -> dict[str, Any] | None:
        self.requests.append((address, query))
        late_s = self.late_s[address]
        if late_s is None:
            self.ended.wait(10)
            return None
        time.sleep(late_s)
        return {"of": address, "late_s": late_s}
