"""Snapshots: all data of one replica at one moment, and the rule that joins two of them.

A replica that is empty, or too far behind for its peer's log, receives a snapshot instead of updates and joins it with
its own data. The join is correct for any two replicas at any time, because both clocks are exact and causally closed.
For each key, these versions stay:

* the versions that both sides have;
* the versions of one side whose dot the other side's clock does not cover: the other side has never applied them.

If the other side's clock covers the dot of a version and the other side does not have the version, then it was replaced
or deleted there. It is removed. That is why no tombstones are needed.

All parts of a snapshot must be from **one moment**. If the clock were read later than the versions, it would claim
updates whose versions are not in the snapshot, and the join would delete these versions at the receiver.

Source: Almeida et al., "Delta state replicated data types", 2018 (causal contexts of dot stores).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from store.clock import Clock
from store.markers import Marker
from store.versions import Version, Versions


class Snapshot(NamedTuple):
    """All data of one replica at one moment.

    ``timestamp``: its hybrid time in microseconds. ``clock``, ``delete_clock``, ``table``: see ``CausalStore``.
    ``markers``: all markers that it has applied (store/markers.py).
    """

    timestamp: int
    clock: Clock
    delete_clock: Clock
    markers: list[Marker]
    table: Mapping[str, Versions]


def join_tables(
    own: Mapping[str, Versions], own_clock: Clock, other: Mapping[str, Versions], other_clock: Clock
) -> dict[str, Versions]:
    """Return key -> versions after the join, the winner first. Keys without a version are left out."""
    if not own_clock:  # A replica that starts: it has nothing to keep.
        return dict(other)
    joined: dict[str, Versions] = {}
    for key, versions in own.items():
        received = other.get(key, ())
        if versions != received:
            versions = join_versions(versions, own_clock, received, other_clock)
        if versions:
            joined[key] = versions
    for key, received in other.items():
        if key not in own:
            versions = join_versions((), own_clock, received, other_clock)
            if versions:
                joined[key] = versions
    return joined


def join_versions(own: Versions, own_clock: Clock, other: Versions, other_clock: Clock) -> Versions:
    """Return the versions of one key after the join, the winner first."""
    own_dots = {version.dot for version in own}
    other_dots = {version.dot for version in other}
    kept = [version for version in own if version.dot in other_dots or not _is_covered(version, other_clock)]
    kept += [version for version in other if version.dot not in own_dots and not _is_covered(version, own_clock)]
    kept.sort(key=lambda version: version.rank, reverse=True)
    return tuple(kept)


def _is_covered(version: Version, clock: Clock) -> bool:
    return clock.get(version.origin, 0) >= version.counter
