"""Could the replica have had it? Why a request was refused that waited for its client's causal past.

Two things are known here that no replica knows. Which links are whole, since the soak cuts them. And who has which
updates: replicas are asked for their clocks twice a second, and what an answer's metadata names is covered by the clock
of the replica that gave it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.netns.cluster import CutKind
from tools.soak.tally import FOREVER, Tally

DIED = "all who had it were killed since"
CUT_OFF = "cut off from all who have it"
JUST_HEALED = "cut off until just before"
PACKETS_LOST = "packets are lost on the way"
OVER_OTHERS = "only over others, who were given no time"
NO_EXCUSE = "could have had it"
REASONS = (DIED, CUT_OFF, JUST_HEALED, PACKETS_LOST, OVER_OTHERS, NO_EXCUSE)
"""Of several that apply to one request, the first one counts."""

Cuts = Mapping[tuple[int, int], CutKind]

GRAIN_S = 0.05
"""CutKind a replica has is remembered as of so many seconds."""

KEPT = 400
"""So many times: 20 s at least, longer than any request waits."""


@dataclass(frozen=True, slots=True)
class Links:
    """CutKind of the links was cut from ``at_s`` on, and whether packets were lost."""

    at_s: float
    cuts: Cuts
    lossy: bool

    def connects(self, a: int, b: int) -> bool:
        """Whether one of the two can make a request of the other and be answered."""
        endpoints = (self.cuts.get((a, b)), self.cuts.get((b, a)))
        return "packets" not in endpoints and endpoints != ("requests", "requests")


class Reach:
    """Which replica could have got what from whom, and when. Threads share it."""

    def __init__(self, tally: Tally, *, healing_s: float, relay_s: float) -> None:
        self._tally = tally
        self._healing_s = healing_s
        self._relay_s = relay_s
        self._everybody = range(tally.replicas)
        self._lock = threading.Lock()
        self._links = [Links(0.0, {}, lossy=False)]
        self._lives = [0] * tally.replicas
        self._known: list[deque[tuple[float, dict[str, int]]]] = []
        """Per replica what it was known to have of late, and since when; the present last."""
        for _ in self._everybody:
            self._known.append(deque([(0.0, {})], maxlen=KEPT))

    # -- what is told ----------------------------------------------------------------------------------

    def links_become(self, cuts: Cuts, *, lossy: bool) -> None:
        """Note the links as they are from now on. While rules change, tell of all that may be cut."""
        with self._lock:
            self._links.append(Links(time.monotonic(), dict(cuts), lossy))

    def died(self, i: int) -> None:
        """Note that replica ``i`` has lost its memory."""
        with self._lock:
            self._lives[i] += 1
            self._known[i].clear()
            self._known[i].append((time.monotonic(), {}))

    def life(self, i: int) -> int:
        """Return which life of replica ``i`` this is; to be told with ``has``."""
        return self._lives[i]

    def has(self, i: int, life: int, past: Mapping[str, int]) -> None:
        """Note that replica ``i``, asked in its ``life``, has shown that its clock covers ``past``."""
        with self._lock:
            if life == self._lives[i]:
                since_s, known = self._known[i][-1]
                if time.monotonic() - since_s >= GRAIN_S:
                    known = dict(known)
                    self._known[i].append((time.monotonic(), known))
                for id_, counter in past.items():
                    if counter > known.get(id_, 0):
                        known[id_] = counter

    # -- what is asked ---------------------------------------------------------------------------------

    def why(self, i: int, began_s: float, ended_s: float, missing: Mapping[str, int]) -> str:
        """Return for which of ``REASONS`` replica ``i`` did not get ``missing`` (replica id -> counter needed)."""
        with self._lock:
            reasons = {self._why_one(i, began_s, ended_s, id_, n) for id_, n in missing.items()}
        return next(reason for reason in REASONS if reason in reasons)

    def _why_one(self, i: int, began_s: float, ended_s: float, origin: str, counter: int) -> str:
        holders = self._holders(origin, counter, began_s)
        before_s = began_s - self._healing_s
        if not holders:
            return DIED
        if self._links_between(i, holders, began_s, ended_s) is None:
            return CUT_OFF
        links = self._links_between(i, holders, before_s, ended_s)
        if links is None:
            return JUST_HEALED
        if any(state.lossy for state in self._within(before_s, ended_s)):
            return PACKETS_LOST
        if ended_s - began_s < (links - 1) * self._relay_s:
            return OVER_OTHERS
        return NO_EXCUSE

    def whole_for_s(self, i: int, began_s: float, ended_s: float, missing: Mapping[str, int]) -> float:
        """Return for how long a way has been whole from those that have ``missing``, until ``ended_s``."""
        with self._lock:
            holders = [self._holders(id_, n, began_s) for id_, n in missing.items()]
            changes = [links.at_s for links in self._links]
            changes += [end_s for spans in self._tally.standstills for end_s in spans.ends()]
            for at_s in sorted(changes, reverse=True):
                if any(self._links_between(i, those, at_s - 0.001, ended_s) is None for those in holders):
                    return max(0.0, ended_s - at_s)
        return FOREVER

    def _holders(self, origin: str, counter: int, at_s: float) -> set[int]:
        """Return the replicas that were known to have an update at ``at_s``, or else have got it since.

        Where somebody had it when the request came, those do not count who got it while that waited: they may have got
        it too late.
        """
        for moment_s in (at_s, FOREVER):
            if found := {j for j in self._everybody if self._known_at(j, moment_s).get(origin, 0) >= counter}:
                return found
        return set()

    def _known_at(self, i: int, at_s: float) -> Mapping[str, int]:
        return next((known for since_s, known in reversed(self._known[i]) if since_s <= at_s), {})

    def _links_between(self, i: int, holders: set[int], since_s: float, until_s: float) -> int | None:
        """Return how many links the shortest way from one of ``holders`` to ``i`` has; None where there is none.

        A way is one that stayed the same and whole all the time.
        """
        states = self._within(since_s, until_s)
        up = {j for j in self._everybody if not self._tally.standstills[j].touch(since_s, until_s)}
        reached = {i} & up
        for count in range(len(up) + 1):
            if reached & holders:
                return count
            reached |= {b for b in up for a in reached if all(links.connects(a, b) for links in states)}
        return None

    def _within(self, since_s: float, until_s: float) -> Sequence[Links]:
        """Return the states of the links in a stretch of time, the one that it began with included."""
        ends = [links.at_s for links in self._links[1:]] + [FOREVER]
        return [
            links for links, end_s in zip(self._links, ends, strict=True) if links.at_s <= until_s and end_s >= since_s
        ]
