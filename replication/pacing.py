"""Pacing: how long new writes wait, so that one exchange carries many of them when the CPU is short. Pure.

An exchange costs about a hundred times as much CPU as one update in it. With spare CPU that does not matter: a write is
sent as soon as possible. When clients compete for the CPU, fewer and larger exchanges leave more of it to them. Two
signals set the interval between exchanges:

* *Round trip time.* A long round trip means that the peer is busy with its own clients. The interval is at least a
  multiple of the round trip (``pace_round_trips``).
* *Wakeup delay.* A peer thread sleeps until its next exchange is due. How much later it runs shows how long threads of
  this process wait for the CPU. The interval is at least a multiple of that delay (``pace_times_late``).

A thread may also wake late because of a garbage collection or another process. That delays some wakeups, whereas a busy
process delays nearly all of them. So the delay that counts is the lower quartile of the recent wakeups. Between half
and full load it grows three to seven times; the mean delay and the mean round trip grow less than two times
(docs/decisions/0016-pace-exchanges-by-load.md).

Sources: the low end of a window tells lasting delay from a burst: Nichols and Jacobson, ACM Queue 2012 (CoDel). Time
spent waiting to run as the signal of overload: Zhou et al., SoCC 2018 (DAGOR).
"""

from __future__ import annotations

from collections import deque

from replication.settings import ReplicationSettings

WINDOW_S = 1.0
"""Wakeups older than this do not count."""

MAX_WAKEUPS = 32
"""Number of recent wakeups that count, of all peer threads together."""

MIN_WAKEUPS = 4
"""With fewer recent wakeups there is no quartile, and the wakeup delay counts as 0."""


class Pacing:
    """Computes the interval between exchanges that carry writes to one peer. Not thread-safe.

    Times are monotonic seconds.
    """

    def __init__(self, settings: ReplicationSettings) -> None:
        self._settings = settings
        self._wakeups: deque[tuple[float, float]] = deque(maxlen=MAX_WAKEUPS)
        """(time, delay in seconds) of recent wakeups, oldest first."""

    def record_wakeup(self, delay_s: float, now_s: float) -> None:
        """Record that a peer thread woke ``delay_s`` after the time that it had set."""
        self._wakeups.append((now_s, delay_s))

    def wakeup_delay_s(self, now_s: float) -> float:
        """Return the lower quartile of the recent wakeup delays; 0 if there are fewer than ``MIN_WAKEUPS``."""
        wakeups = self._wakeups
        while wakeups and wakeups[0][0] < now_s - WINDOW_S:
            wakeups.popleft()
        if len(wakeups) < MIN_WAKEUPS:
            return 0.0
        return sorted([delay_s for _, delay_s in wakeups])[len(wakeups) // 4]

    def interval_s(self, round_trip_s: float, now_s: float) -> float:
        """Return the least time from the start of one exchange with a peer to the start of the next.

        ``round_trip_s``: the present round trip time of exchanges with that peer. The result is between ``pace_s`` and
        ``max_pace_s``.
        """
        settings = self._settings
        wanted_s = max(settings.pace_round_trips * round_trip_s, settings.pace_times_late * self.wakeup_delay_s(now_s))
        return max(settings.pace_s, min(wanted_s, settings.max_pace_s))
