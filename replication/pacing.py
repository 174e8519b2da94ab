"""How long new writes wait for company, so that one exchange carries many of them where the CPU is short.

An exchange costs a hundred times as much as an update in it. Where there is CPU to spare that does not matter, and the
sooner a write leaves the better; where clients wait for the CPU, exchanges are to leave it to them. Two signs tell:

* *A round trip takes long*: the peer has its own clients to serve. It is left as much time as it takes, at least.
* *Threads wake late*: whoever talks to a peer sleeps until an exchange is due, and how much later it runs is how long
  this process makes its threads wait. With few requests at a time a thread runs at once, with many it stands in line.

A thread may wake late for other reasons: a collection, or somebody else on the machine. That makes some of them late,
and a busy process nearly all. So what counts is what a quarter of the last ones stayed below: it tells full load from
half of it by three to seven times, and the mean of lateness or of round trips by less than two (docs/benchmarks).

Sources: a delay that lasts tells load from a burst, and the low end of a window shows it: Nichols and Jacobson, ACM
Queue 2012 (CoDel). Time spent waiting to run as the sign of overload: Zhou et al., SoCC 2018 (DAGOR).
"""

from __future__ import annotations

from collections import deque

from replication.settings import ReplicationSettings

WINDOW_S = 1.0
"""How old a wake may be to count."""

MAX_WAKEUPS = 32
"""How many of the last wakes count, of all threads that talk to peers."""

MIN_WAKEUPS = 4
"""With fewer there is no quarter to look at: somebody who talks so seldom is not to be slowed down."""


class Pacing:
    """How far apart exchanges with one peer that carry writes are. Times are monotonic seconds."""

    def __init__(self, settings: ReplicationSettings) -> None:
        self._settings = settings
        self._wakeups: deque[tuple[float, float]] = deque(maxlen=MAX_WAKEUPS)

    def record_wakeup(self, delay_s: float, now_s: float) -> None:
        """Note that a thread woke ``delay_s`` after the time that it had set."""
        self._wakeups.append((now_s, delay_s))

    def wakeup_delay_s(self, now_s: float) -> float:
        """Return what a quarter of the last wakes were late by at most; 0 where there were too few."""
        wakes = self._wakeups
        while wakes and wakes[0][0] < now_s - WINDOW_S:
            wakes.popleft()
        if len(wakes) < MIN_WAKEUPS:
            return 0.0
        return sorted([delay_s for _, delay_s in wakes])[len(wakes) // 4]

    def interval_s(self, round_trip_s: float, now_s: float) -> float:
        """Return how long after the beginning of an exchange the next one begins; ``round_trip_s``: as one takes."""
        settings = self._settings
        wanted_s = max(settings.pace_round_trips * round_trip_s, settings.pace_times_late * self.wakeup_delay_s(now_s))
        return max(settings.pace_s, min(wanted_s, settings.max_pace_s))
