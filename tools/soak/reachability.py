"""Decide whether a replica could have had the dependencies for which it rejected a request.

This module knows two things that no replica knows. It knows which links are connected, because the soak cuts them. And
it knows which replica has which updates: the soak asks each replica for its clock twice a second, and the clock of a
replica covers the metadata of each of its responses.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.netns.cluster import CutKind
from tools.soak.timeline import FOREVER, Timeline

LOST = "all replicas that had it were killed"
CUT_OFF = "cut off from all replicas that have it"
JUST_HEALED = "cut off until just before"
PACKETS_LOST = "packets were lost"
RELAYED = "only through other replicas, which had too little time"
NO_EXCUSE = "the replica could have had it"
REASONS = (LOST, CUT_OFF, JUST_HEALED, PACKETS_LOST, RELAYED, NO_EXCUSE)
"""If several apply to one request, the first one counts."""

Cuts = Mapping[tuple[int, int], CutKind]

GRAIN_S = 0.05
"""Changes of a clock within this time count as one."""

HISTORY = 400
"""How many states of a clock are kept: at least 20 s, longer than any request waits."""


@dataclass(frozen=True, slots=True)
class Links:
    """The cuts from ``at_s`` on, and whether packets were lost."""

    at_s: float
    cuts: Cuts
    lossy: bool

    def connects(self, a: int, b: int) -> bool:
        """Return whether one of the two can send the other a request and receive the response."""
        endpoints = (self.cuts.get((a, b)), self.cuts.get((b, a)))
        return "packets" not in endpoints and endpoints != ("requests", "requests")


class Reachability:
    """Which replica could have received what from which, and when. Threads share it."""

    def __init__(self, timeline: Timeline, *, healing_s: float, relay_s: float) -> None:
        self._timeline = timeline
        self._healing_s = healing_s
        self._relay_s = relay_s
        self._everybody = range(timeline.replicas)
        self._lock = threading.Lock()
        self._links = [Links(0.0, {}, lossy=False)]
        self._died_s = [-math.inf] * timeline.replicas
        self._known: list[deque[tuple[float, dict[str, int]]]] = []
        """Per replica: (since when, the clock that it has at least), oldest first."""
        for _ in self._everybody:
            self._known.append(deque([(0.0, {})], maxlen=HISTORY))

    # -- recording ----------------------------------------------------------------------------------

    def record_links(self, cuts: Cuts, *, lossy: bool) -> None:
        """Record the state of the links from now on. While rules change, pass every cut that may be in force."""
        with self._lock:
            self._links.append(Links(time.monotonic(), dict(cuts), lossy))

    def record_death(self, i: int) -> None:
        """Record that the process of replica ``i`` has ended, with all its data."""
        with self._lock:
            self._died_s[i] = time.monotonic()
            self._known[i].clear()
            self._known[i].append((self._died_s[i], {}))

    def record_clock(self, i: int, sent_s: float, clock: Mapping[str, int]) -> None:
        """Record that the clock of replica ``i`` covers ``clock``.

        ``sent_s``: when the request was sent. The response is ignored if the process has ended since then.
        """
        with self._lock:
            if sent_s > self._died_s[i]:
                since_s, known = self._known[i][-1]
                if time.monotonic() - since_s >= GRAIN_S:
                    known = dict(known)
                    self._known[i].append((time.monotonic(), known))
                for id_, counter in clock.items():
                    if counter > known.get(id_, 0):
                        known[id_] = counter

    # -- deciding ---------------------------------------------------------------------------------

    def reason(self, i: int, began_s: float, ended_s: float, missing: Mapping[str, int]) -> str:
        """Return which of ``REASONS`` explains that replica ``i`` lacked ``missing`` (replica id -> counter needed).

        The request waited from ``began_s`` to ``ended_s``.
        """
        with self._lock:
            reasons = {self._reason_for_one(i, began_s, ended_s, id_, n) for id_, n in missing.items()}
        return next(reason for reason in REASONS if reason in reasons)

    def _reason_for_one(self, i: int, began_s: float, ended_s: float, origin: str, counter: int) -> str:
        holders = self._holders(origin, counter, began_s)
        before_s = began_s - self._healing_s
        if not holders:
            return LOST
        if self._links_between(i, holders, began_s, ended_s) is None:
            return CUT_OFF
        links = self._links_between(i, holders, before_s, ended_s)
        if links is None:
            return JUST_HEALED
        if any(state.lossy for state in self._within(before_s, ended_s)):
            return PACKETS_LOST
        if ended_s - began_s < (links - 1) * self._relay_s:
            return RELAYED
        return NO_EXCUSE

    def connected_for_s(self, i: int, began_s: float, ended_s: float, missing: Mapping[str, int]) -> float:
        """Return how long, until ``ended_s``, replica ``i`` was connected to replicas that have ``missing``."""
        with self._lock:
            holders = [self._holders(id_, n, began_s) for id_, n in missing.items()]
            changes = [links.at_s for links in self._links]
            changes += [end_s for spans in self._timeline.stopped for end_s in spans.ends()]
            for at_s in sorted(changes, reverse=True):
                if any(self._links_between(i, those, at_s - 0.001, ended_s) is None for those in holders):
                    return max(0.0, ended_s - at_s)
        return FOREVER

    def _holders(self, origin: str, counter: int, at_s: float) -> set[int]:
        """Return the replicas that had an update at ``at_s`` or, if there were none, those that have it now.

        If some replica had it when the request came, replicas that received it later do not count: it may have been
        too late for the request.
        """
        for moment_s in (at_s, FOREVER):
            if found := {j for j in self._everybody if self._known_at(j, moment_s).get(origin, 0) >= counter}:
                return found
        return set()

    def _known_at(self, i: int, at_s: float) -> Mapping[str, int]:
        return next((known for since_s, known in reversed(self._known[i]) if since_s <= at_s), {})

    def _links_between(self, i: int, holders: set[int], since_s: float, until_s: float) -> int | None:
        """Return the length in links of the shortest path from one of ``holders`` to ``i``, None if there is none.

        Only paths count that stayed connected all the time, through replicas that ran all the time.
        """
        states = self._within(since_s, until_s)
        up = {j for j in self._everybody if not self._timeline.stopped[j].overlap(since_s, until_s)}
        reached = {i} & up
        for count in range(len(up) + 1):
            if reached & holders:
                return count
            reached |= {b for b in up for a in reached if all(links.connects(a, b) for links in states)}
        return None

    def _within(self, since_s: float, until_s: float) -> Sequence[Links]:
        """Return the states of the links in this period, including the state at its beginning."""
        ends = [links.at_s for links in self._links[1:]] + [FOREVER]
        return [
            links for links, end_s in zip(self._links, ends, strict=True) if links.at_s <= until_s and end_s >= since_s
        ]
