"""Snapshots: all versions and the exact clock of one replica at one moment, and the rule that joins them.

A replica that is empty, or behind the log of its peer, takes over a snapshot instead of updates. The join is
sound for any two replicas at any time, because both clocks are exact and causally closed: of every key stay

* the versions that both sides hold, and
* those of either side whose dot the other side's clock does not cover: the other has never seen them.

A version that the other side has seen and no longer holds was replaced or deleted there, and goes. So
tombstones are not needed. Everything must come from **one moment** of the giver: a clock read later than the
versions would claim updates that the versions lack, and throw away what only the receiver still had.

Source: Almeida et al., "Delta state replicated data types", 2018 (causal contexts of dot stores).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from store.clock import Clock
from store.markers import Marker
from store.versions import Version, Versions


class Snapshot(NamedTuple):
    """One replica at one moment. ``timestamp``: its hybrid time, microseconds. ``delete_clock``: see ``CausalStore``.
    ``markers``: what stands for old entries of the clock (store/markers.py)."""

    timestamp: int
    clock: Clock
    delete_clock: Clock
    markers: list[Marker]
    table: Mapping[str, Versions]


def join_tables(
    mine: Mapping[str, Versions], my_clock: Clock, theirs: Mapping[str, Versions], their_clock: Clock
) -> dict[str, Versions]:
    """Return what every key holds after the join, the winner first; keys that hold nothing are left out."""
    if not my_clock:
        return dict(theirs)
    joined: dict[str, Versions] = {}
    for key, held in mine.items():
        offered = theirs.get(key, ())
        versions = held if held == offered else join_versions(held, my_clock, offered, their_clock)
        if versions:
            joined[key] = versions
    for key, offered in theirs.items():
        if key not in mine:
            versions = join_versions((), my_clock, offered, their_clock)
            if versions:
                joined[key] = versions
    return joined


def join_versions(held: Versions, my_clock: Clock, offered: Versions, their_clock: Clock) -> Versions:
    """Return the versions of one key that both sides agree on after the join, the winner first."""
    my_dots = {version.dot for version in held}
    their_dots = {version.dot for version in offered}
    kept = [version for version in held if version.dot in their_dots or _unseen(version, their_clock)]
    kept += [version for version in offered if version.dot not in my_dots and _unseen(version, my_clock)]
    kept.sort(key=lambda version: version.rank, reverse=True)
    return tuple(kept)


def _unseen(version: Version, clock: Clock) -> bool:
    return clock.get(version.origin, 0) < version.counter
