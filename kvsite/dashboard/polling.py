"""One look at the cluster for all who watch it.

Every open page asks once a second. However many there are, the members are asked at most twice a second, by one
request; the others get what it found. So watching costs the same for one browser as for fifty.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from django.template.loader import render_to_string

from kvsite.dashboard.cluster_state import Snapshot, read
from kvsite.dashboard.lag import Lag
from kvsite.dashboard.members import members
from kvsite.dashboard.overview import Overview, overview
from replication.api import context

FRESH_S = 0.5
"""A look younger than this is handed out again."""

USABLE_S = 0.7
"""While somebody looks anew, others get the last look, up to this age, and do not wait. A page asks once a second:
with this, and with what asking takes, it shows what was so at most two seconds ago."""


@dataclass(frozen=True)
class Look:
    """A snapshot, asked for at ``at_s``, and the pages made from it: each made once."""

    at_s: float
    snapshot: Snapshot
    behind_s: dict[str, float]

    @cached_property
    def overview(self) -> Overview:
        """The front page's data."""
        return overview(self.snapshot, self.behind_s)

    @cached_property
    def overview_html(self) -> str:
        """The part of the front page that is refreshed."""
        return render_to_string("dashboard/_overview.html", {"overview": self.overview})


class Keeper:
    """Keeps the last look. ``ask`` returns a snapshot and may block; ``clock`` tells monotonic seconds."""

    def __init__(self, ask: Callable[[], Snapshot], clock: Callable[[], float] = time.monotonic) -> None:
        self._ask = ask
        self._clock = clock
        self._looking = threading.Lock()
        self._lag = Lag()
        self._last: Look | None = None

    def look(self) -> Look:
        """Return a look that is fresh, or the best there is while another thread gets one."""
        last = self._last
        age_s = math.inf if last is None else self._age_s(last)
        if last is not None and age_s < FRESH_S:
            return last
        if not self._looking.acquire(blocking=age_s >= USABLE_S) and last is not None:
            return last
        try:
            is_found = self._last is not last  # by the thread that this one waited for
            last = self._last
            if last is None or not is_found:
                asked_s, snapshot = self._clock(), self._ask()
                # Its age counts from when members were asked: waiting for one that hangs makes nothing newer.
                last = self._last = Look(asked_s, snapshot, self._lag.behind_s(snapshot, asked_s))
            return last
        finally:
            self._looking.release()

    def _age_s(self, look: Look) -> float:
        return self._clock() - look.at_s


def ask_cluster() -> Snapshot:
    """Ask the members through the node of this process; an empty snapshot where none is context."""
    wall_us = time.time_ns() // 1000
    if not context.bound():
        return Snapshot("", wall_us)
    node = context.node()
    return read(members.cluster(node), node.replica.address, wall_us)


keeper = Keeper(ask_cluster)
