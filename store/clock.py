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

    ``lead_us``: how far hybrid time is ahead of the wall clock, microseconds. Up to ``max_lead_us`` it never decreases.
    ``_last``: the highest time that was returned or observed. Every new timestamp is above it.

    Source: Kulkarni et al., OPODIS 2014. The paper's logical counter is part of the microseconds here.
    """

    __slots__ = ("_last", "lead_us", "max_lead_us")

    def __init__(self, max_lead_us: int = MAX_LEAD_US) -> None:
        self.lead_us = 0
        self.max_lead_us = max_lead_us
        self._last = 0

    def read(self, now: Instant) -> int:
        """Return the hybrid time at ``now`` in microseconds, never below an earlier result."""
        if self.lead_us > self.max_lead_us:  # noqa: PLR1730  # min() would be slower
            self.lead_us = self.max_lead_us
        time = now.wall_us + self.lead_us
        if time < self._last:  # The wall clock was set back, or hybrid time stands still: raise the lead by as much.
            self.lead_us = self._last - now.wall_us
            time = self._last
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
        self._last = time
        return time

    def observe(self, timestamp: int, now: Instant) -> None:
        """Take account of another replica's timestamp: later results of ``stamp`` are above it."""
        if timestamp > self._last and timestamp > self.read(now):
            self.lead_us = timestamp - now.wall_us
            self._last = timestamp
