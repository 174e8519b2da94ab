"""Vector clocks, dots and hybrid time: the vocabulary of causality.

Theory of operation
-------------------
A *dot* ``(replica id, counter)`` names one update. A *vector clock* maps a replica id to the highest
counter seen **without gaps**: ``{"a": 3}`` stands for the dots (a,1), (a,2) and (a,3). Because updates of
one origin are applied in order, a clock is an exact description of a set of updates, and comparing two
sets costs one pass over the smaller description.

Clocks are plain dictionaries. The rules that make that safe:

* an absent entry means 0, and no clock holds an entry of 0;
* a clock is never changed after it was handed to somebody else; ``join`` returns a new one.

Sources: Lamport, CACM 1978; Fidge 1988 and Mattern 1989 (vector clocks); Preguiça et al. 2010 and Almeida
et al. 2014 (dots); Kulkarni et al., OPODIS 2014 (hybrid logical clocks).
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

Clock = dict[str, int]
"""Replica id -> highest counter seen without gaps; an absent entry means 0."""

Dot = tuple[str, int]
"""One update: (replica id, counter); counters of an id start at 1."""

MAX_COUNTER = 2**53
"""Counters stay below this, so that every JSON reader keeps them exact (RFC 8259, section 6)."""

INCARNATION_RANDOM_BITS = 21
"""Low bits of an incarnation that are random; the others are the start time in milliseconds."""

MAX_INCARNATION = 2**63 - 1
"""No incarnation is above this: 42 bits of milliseconds (until the year 2109) and the random bits."""


class Instant(msgspec.Struct, frozen=True, gc=False):
    """One reading of the clocks, handed in by the shell: the protocol has no clock of its own.

    ``mono_s``: seconds of a clock that never goes back (ages, timeouts).
    ``wall_us``: microseconds since 1970 as this machine believes (order of concurrent writes, expiry).
    """

    mono_s: float
    wall_us: int


def replica_id(address: str, incarnation: int) -> str:
    """Return the id of one process: its address and its incarnation, the latter as 16 hex digits."""
    return f"{address}@{incarnation:016x}"


def address_of(replica: str) -> str:
    """Return the ``host:port`` part of a replica id; an id without ``@`` is returned whole."""
    return replica.rpartition("@")[0] or replica


def incarnation_of(replica: str) -> int:
    """Return the incarnation of a replica id; 0 where the text is not one of ours (clients may send any)."""
    digits = replica.rpartition("@")[2]
    try:
        return int(digits, 16) if len(digits) == 16 else 0
    except ValueError:
        return 0


def covers(clock: Mapping[str, int], past: Mapping[str, int]) -> bool:
    """Return whether ``clock`` has seen every update that ``past`` names."""
    for replica, counter in past.items():
        if clock.get(replica, 0) < counter:
            return False
    return True


def missing(clock: Mapping[str, int], past: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Return replica id -> (counter that ``clock`` has, counter that ``past`` needs) where it has too little."""
    return {
        replica: (clock.get(replica, 0), counter)
        for replica, counter in past.items()
        if clock.get(replica, 0) < counter
    }


def count_missing(clock: Mapping[str, int], past: Mapping[str, int]) -> int:
    """Return the number of updates in ``past`` that ``clock`` does not cover."""
    return sum(needed - known for known, needed in missing(clock, past).values())


def join(left: Mapping[str, int], right: Mapping[str, int]) -> Clock:
    """Return the least clock that covers both: the entry-wise maximum, as a new dictionary."""
    joined = dict(left)
    merge_into(joined, right)
    return joined


def merge_into(clock: Clock, other: Mapping[str, int]) -> None:
    """Raise the entries of ``clock``, which the caller still owns alone, to those of ``other``."""
    for replica, counter in other.items():
        if clock.get(replica, 0) < counter:
            clock[replica] = counter


class HybridClock:
    """Timestamps that follow causality even where wall clocks do not.

    The time is the wall clock plus the largest *lead* over it seen so far. A replica whose wall clock is
    wrong pushes the others' lead up once and they all go on flowing at the pace of real time; nothing has to
    wait. The time orders concurrent versions and nothing else.

    Source: Kulkarni et al., OPODIS 2014, with the counter folded into the microseconds.
    """

    __slots__ = ("_last", "lead_us")

    def __init__(self) -> None:
        self.lead_us = 0
        self._last = 0

    def read(self, now: Instant) -> int:
        """Return the hybrid time at ``now`` in microseconds, never below one returned before."""
        time = now.wall_us + self.lead_us
        if time < self._last:  # The wall clock went back: keep flowing from where time was.
            self.lead_us = self._last - now.wall_us
            time = self._last
        self._last = time
        return time

    def stamp(self, now: Instant) -> int:
        """Return a timestamp above every one returned or observed before, for one new update."""
        time = now.wall_us + self.lead_us
        if time <= self._last:  # Also where the wall clock went back: keep flowing from where time was.
            time = self._last + 1
            self.lead_us = time - now.wall_us
        self._last = time
        return time

    def observe(self, timestamp: int, now: Instant) -> None:
        """Take in a timestamp of another replica: what is issued from now on is above it."""
        if timestamp > self._last and timestamp > self.read(now):
            self.lead_us = timestamp - now.wall_us
            self._last = timestamp
