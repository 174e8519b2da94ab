"""Polls the cluster once for all open pages.

Every open page refreshes once a second. However many pages are open, one thread polls the members at most twice a
second, and all requests share its result. Fifty browsers thus cost the members as much as one.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from django.template.loader import render_to_string

from kvsite.config import current
from kvsite.dashboard.cluster_state import ClusterState, parse_cluster
from kvsite.dashboard.lag import LagTracker
from kvsite.dashboard.overview import Overview, overview
from kvsite.dashboard.status_fetcher import status_fetcher
from replication.node import Node

FRESH_S = 0.5
"""A poll that is younger than this is reused."""

MAX_STALE_S = 0.7
"""While one thread polls, the others reuse the last poll up to this age instead of waiting. A page refreshes once a
second: with this and the duration of a poll, it shows the state of at most two seconds ago."""


@dataclass(frozen=True)
class Poll:
    """The cluster state that was requested at ``at_s``, and the pages made from it. Each page is rendered once.

    ``lag_s``: see ``LagTracker.lag_s``.
    """

    at_s: float
    cluster: ClusterState
    lag_s: dict[str, float]

    @cached_property
    def overview(self) -> Overview:
        """The data of the front page."""
        config = current()
        return overview(self.cluster, self.lag_s, config.security_warnings, is_open=config.is_open)

    @cached_property
    def overview_html(self) -> str:
        """The part of the front page that is refreshed."""
        return render_to_string("dashboard/_overview.html", {"overview": self.overview})


class ClusterPoller:
    """Polls the cluster when the last poll is too old. Thread-safe.

    ``poll`` returns the cluster state as a node sees it, and may block. ``monotonic`` returns monotonic
    seconds.
    """

    def __init__(
        self, poll: Callable[[Node | None], ClusterState], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._poll = poll
        self._monotonic = monotonic
        self._polling = threading.Lock()
        """Held by the thread that polls. It also guards ``_lag``."""
        self._lag = LagTracker()
        self._last: Poll | None = None

    def latest(self, node: Node | None) -> Poll:
        """Return a fresh poll, or a slightly older one while another thread polls."""
        last = self._last
        age_s = math.inf if last is None else self._age_s(last)
        if last is not None and age_s < FRESH_S:
            return last
        if not self._polling.acquire(blocking=age_s >= MAX_STALE_S) and last is not None:
            return last
        try:
            is_new = self._last is not last  # Another thread polled while this one waited for the lock.
            last = self._last
            if last is None or not is_new:
                # The age counts from the request: a member that hangs must not make the other statuses look newer.
                requested_s, cluster = self._monotonic(), self._poll(node)
                last = self._last = Poll(requested_s, cluster, self._lag.lag_s(cluster, requested_s))
            return last
        finally:
            self._polling.release()

    def _age_s(self, poll: Poll) -> float:
        return self._monotonic() - poll.at_s


def poll_cluster(node: Node | None, *, recent: int = 0) -> ClusterState:
    """Fetch the status of every member that ``node`` knows; without a node, return an empty cluster state.

    ``recent``: how many of the last applied updates each status should include.
    """
    wall_us = time.time_ns() // 1000
    if node is None:
        return ClusterState("", wall_us)
    return parse_cluster(status_fetcher.fetch_all(node, recent=recent), node.replica.address, wall_us)


poller = ClusterPoller(poll_cluster)
