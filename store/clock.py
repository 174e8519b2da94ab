"""Dots, vector clocks and hybrid time.

Theory of operation
-------------------
A *dot* ``(replica id, counter)`` names one update. A *vector clock* maps each replica id to the highest counter
applied **without gaps**: ``{"a": 3}`` stands for the dots (a,1), (a,2) and (a,3). A replica applies the updates of
one origin in order, so a clock describes a set of updates exactly, and it takes one pass over clock ``b`` to decide
whether clock ``a`` covers it.

Clocks are plain dictionaries. Two rules make that safe:

* An absent entry means 0. No clock stores an entry of 0.
* A clock is never changed after other code has a reference to it. ``join`` returns a new clock. ``join_into``
  changes its first argument, so only the function that created that clock may call it.

A wall clock cannot order updates: the clocks of two machines differ, and a machine can set its clock back. Hybrid
time keeps close to the wall clock and still gives every update a higher timestamp than the updates in its causal
past. See ``HybridClock``.

Sources: Lamport, CACM 1978 (happened-before); Fidge 1988 and Mattern 1989 (vector clocks); Preguiça et al. 2010 and
Almeida et al. 2014 (dots); Kulkarni et al., OPODIS 2014 (hybrid logical clocks).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

Clock = dict[str, int]
"""Replica id -> highest counter applied without gaps. An absent entry means 0."""

Dot = tuple[str, int]
"""The name of one update: (replica id, counter). The counters of a replica id start at 1."""

Gaps = dict[str, tuple[int, int]]
"""What a clock lacks: replica id -> (counter that is here, counter that is needed). The first is the lower one."""

MAX_COUNTER = 2**53
"""Counters stay below this limit, because a JSON reader may store numbers as doubles (RFC 8259, section 6)."""

INCARNATION_RANDOM_BITS = 21
"""An incarnation has this many random low bits. Its high bits are the start time in milliseconds."""

MAX_INCARNATION = 2**63 - 1
"""The highest incarnation: 42 bits of milliseconds (enough until the year 2109), then the random bits."""


MAX_LEAD_US = 12 * 3600 * 1_000_000
"""Default of the lead above which hybrid time stands still: half of what replicas accept by default."""


JUMP_US = 3600 * 1_000_000
"""Hybrid time that advances by more than this at once may have followed a jump of the wall clock."""


class Instant(msgspec.Struct, frozen=True, gc=False):
    """One reading of the machine's clocks. The caller passes it in, because pure modules read no clock.

    ``mono_s``: seconds on a clock that never goes back. Used for ages and timeouts.
    ``wall_us``: microseconds since 1970 on this machine's wall clock. Used for hybrid time and expiry.
    """

    mono_s: float
    wall_us: int


def replica_id(address: str, incarnation: int) -> str:
    """Return the id of one process: its address, ``@``, and its incarnation as 16 hex digits."""
    return f"{address}@{incarnation:016x}"


def address_of(replica: str) -> str:
    """Return the ``host:port`` part of a replica id. Return an id without ``@`` unchanged."""
    return replica.rpartition("@")[0] or replica


def start_us_of(incarnation: int) -> int:
    """Return the start time in an incarnation, in microseconds of the wall clock of the process that took it."""
    return (incarnation >> INCARNATION_RANDOM_BITS) * 1000


def incarnation_of(replica: str) -> int:
    """Return the incarnation in a replica id, or 0 if there is none: clients may send any text as a replica id."""
    digits = replica.rpartition("@")[2]
    try:
        return int(digits, 16) if len(digits) == 16 else 0
    except ValueError:
        return 0


def covers(clock: Mapping[str, int], past: Mapping[str, int]) -> bool:
    """Return whether ``clock`` contains every update that ``past`` names."""
    for replica, counter in past.items():
        if clock.get(replica, 0) < counter:
            return False
    return True


def missing(clock: Mapping[str, int], past: Mapping[str, int]) -> Gaps:
    """Return what ``clock`` lacks of ``past``; empty if it covers ``past``."""
    return {
        replica: (clock.get(replica, 0), counter)
        for replica, counter in past.items()
        if clock.get(replica, 0) < counter
    }


def count_missing(clock: Mapping[str, int], past: Mapping[str, int]) -> int:
    """Return the number of updates in ``past`` that ``clock`` does not cover."""
    return sum(needed - known for known, needed in missing(clock, past).values())


def join(left: Mapping[str, int], right: Mapping[str, int]) -> Clock:
    """Return the least clock that covers both: for each replica id the higher counter. The result is a new clock."""
    joined = dict(left)
    join_into(joined, right)
    return joined


def join_into(clock: Clock, other: Mapping[str, int]) -> None:
    """Join ``other`` into ``clock``: raise each entry to the higher counter. No other code may refer to ``clock``."""
    for replica, counter in other.items():
        if clock.get(replica, 0) < counter:
            clock[replica] = counter


class HybridClock:
    """Timestamps that respect causality even if wall clocks are wrong.

    Hybrid time is the wall clock plus a *lead*, the largest one needed so far. If one replica's wall clock is fast,
    the other replicas raise their lead once. Then hybrid time advances everywhere at the rate of real time, and no
    replica has to wait. Hybrid time decides which of several concurrent writes wins. Whether an update may be applied
    is decided by clocks alone, so a wrong wall clock never breaks causal order.

    Above a lead of ``max_lead_us``, hybrid time stands still, but for the order of updates, until the wall clock has
    come close enough. Replicas reject times too far ahead of their own wall clocks (replication/time_limits.py). If
    hybrid time went on at that limit, a replica whose wall clock is a little slower would reject it for ever.

    A jump. If the wall clock of a running process jumps ahead, hybrid time gets at most ``max_lead_us`` ahead of the
    time by the *anchor*, and then advances at the rate of real time: the jump may be a mistake, and an update that was
    stamped in the far future would be rejected by every other replica until that time has come. The anchor is the wall
    clock when other replicas last confirmed it (``trust``), or when this process had its first update. It is earlier if
    a replica whose clock is far behind this one accepts its times (``limit_jumps``). Before there is an anchor, hybrid
    time follows every jump: a machine may start before its clock is set.

    ``lead_us``: how far hybrid time is ahead of the wall clock, microseconds. Up to ``max_lead_us`` it never decreases,
    except by ``trust`` and ``forget_lead``. It is negative after a jump that was not followed.
    ``highest_kept_us``: the highest timestamp of an update that was issued or applied here; 0 if there is none.
    ``_last``: the highest time that was returned or observed. Every new timestamp is above it.
    ``_anchor_us``: wall clock minus monotonic clock at the anchor; None before the first one.

    Source: Kulkarni et al., OPODIS 2014. The paper's logical counter is part of the microseconds here.
    """

    __slots__ = ("_anchor_us", "_last", "highest_kept_us", "lead_us", "max_lead_us")

    def __init__(self, max_lead_us: int = MAX_LEAD_US) -> None:
        self.lead_us = 0
        self.max_lead_us = max_lead_us
        self.highest_kept_us = 0
        self._last = 0
        self._anchor_us: int | None = None

    def read(self, now: Instant) -> int:
        """Return the hybrid time at ``now`` in microseconds, never below an earlier result."""
        if self.lead_us > self.max_lead_us:  # noqa: PLR1730  # min() would be slower
            self.lead_us = self.max_lead_us
        time = now.wall_us + self.lead_us
        if time < self._last:  # The wall clock was set back, or hybrid time stands still: raise the lead by as much.
            self.lead_us = self._last - now.wall_us
            time = self._last
        elif time - self._last > JUMP_US:
            time = self._limit_jump(time, now)
        self._last = time
        return time

    def stamp(self, now: Instant) -> int:
        """Return a timestamp for a new update: above every timestamp returned or observed before."""
        if self.lead_us > self.max_lead_us:  # noqa: PLR1730  # min() would be slower
            self.lead_us = self.max_lead_us
        time = now.wall_us + self.lead_us
        if time <= self._last:  # A second update in the same microsecond, or the wall clock was set back.
            time = self._last + 1
            self.lead_us = time - now.wall_us
        elif time - self._last > JUMP_US:
            time = self._limit_jump(time, now)
        self._last = self.highest_kept_us = time
        if self._anchor_us is None:
            self._set_anchor(now)
        return time

    def observe(self, timestamp: int, now: Instant) -> None:
        """Take account of another replica's time: later results are not below it, unless it is a jump (see class)."""
        if timestamp > self._last and timestamp > self.read(now):
            if timestamp - self._last > JUMP_US:
                timestamp = self._limit_jump(timestamp, now)
            self.lead_us = timestamp - now.wall_us
            self._last = timestamp

    def observe_kept(self, timestamp: int, now: Instant) -> None:
        """Take account of an update that is applied here: later results of ``stamp`` are above its ``timestamp``."""
        if timestamp > self._last and timestamp > self.read(now):
            self.lead_us = timestamp - now.wall_us
            self._last = timestamp
        if timestamp > self.highest_kept_us:  # noqa: PLR1730  # max() would be slower
            self.highest_kept_us = timestamp
        if self._anchor_us is None:
            self._set_anchor(now)

    def trust(self, now: Instant) -> None:
        """Follow the wall clock again after a jump: other replicas have confirmed it, or there are none."""
        self._set_anchor(now)
        if self.read(now) < now.wall_us:
            self._last = now.wall_us
            self.lead_us = 0

    def limit_jumps(self, earliest_us: int, now: Instant) -> None:
        """Limit later jumps so that no replica that accepts the times of this one rejects what it gets to.

        ``earliest_us``: what the slowest of their wall clocks shows now, microseconds. They accept times that are up to
        twice ``max_lead_us`` ahead of that. An eighth is left for messages that are under way and for clocks that run
        at different rates.
        """
        latest_us = earliest_us + self.max_lead_us - self.max_lead_us // 8
        anchor_us = min(now.wall_us, latest_us) - round(now.mono_s * 1_000_000)
        if self._anchor_us is None or self._anchor_us > anchor_us:
            self._anchor_us = anchor_us

    def forget_lead(self, now: Instant) -> None:
        """Let hybrid time go back to the wall clock, but not below the timestamp of any update that is here.

        Call it only if no other replica has accepted a later time: it comes from a wall clock that has been set right.
        """
        self._last = max(now.wall_us, self.highest_kept_us)
        self.lead_us = self._last - now.wall_us

    def _set_anchor(self, now: Instant) -> None:
        self._anchor_us = now.wall_us - round(now.mono_s * 1_000_000)

    def _limit_jump(self, time: int, now: Instant) -> int:
        """Return the hybrid time to use instead of ``time``, which is more than ``JUMP_US`` above the last one."""
        if self._anchor_us is None:
            return time
        limit = max(self._last, self._anchor_us + round(now.mono_s * 1_000_000) + self.max_lead_us)
        if time <= limit:
            return time
        self.lead_us = limit - now.wall_us
        return limit
