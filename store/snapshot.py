"""Snapshots: all data of one replica at one moment, and the rule that joins two of them.

A replica that is empty, or too far behind for its peer's log, receives a snapshot instead of updates and joins it with
its own data. The join is correct for any two replicas at any time, because both clocks are exact and causally closed.
For each key, these versions stay:

* the versions that both sides have;
* the versions of one side whose dot the other side's clock does not cover: the other side has never applied them.

If the other side's clock covers the dot of a version and the other side does not have the version, then it was replaced
or deleted there. It is removed. That is why no tombstones are needed.

**Partial snapshots.** A receiver that has data names its clock, ``since``, and gets only what it can lack. The join
looks at the *value* of a received version only if the receiver's clock does not cover its dot. So a partial snapshot
has all versions of each key that has a version above ``since``, and only the dots of the other keys (``covered``). The
result is the same as with the whole snapshot, because the receiver's clock covers ``since`` from its request on.

If ``since`` covers the sender's delete clock too, the other keys are left out altogether (``rest_unchanged``): they
stay as they are at the receiver. Proof: assume that the sender has applied an update u of such a key, above ``since``.

* If u deleted the key's versions, u is in the delete clock, which is then not covered. So u wrote a version.
* That version is not in the table: the key has no version above ``since``. So it expired, or an update replaced it.
* If it expired, its dot is in the delete clock, which is then not covered.
* If an update replaced it, that update follows u. So it is above ``since``, as clocks are causally closed. It takes the
  place of u in this proof, and the updates of a key are finitely many.

So there is no such u: the receiver has applied all updates of the key that the sender has. (Entries of the delete clock
may be replaced by a marker's dot. A clock that covers that dot covers these entries.)

All parts of a snapshot must be from **one moment**. If the clock were read later than the versions, it would claim
updates whose versions are not in the snapshot, and the join would delete these versions at the receiver.

Source: Almeida et al., "Delta state replicated data types", 2018 (causal contexts of dot stores).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from store.clock import Clock, Dot, covers
from store.markers import Marker
from store.versions import Version, Versions


class Snapshot(NamedTuple):
    """All data of one replica at one moment; if it is partial, only what its receiver can lack.

    ``timestamp``: its hybrid time in microseconds. ``clock``, ``delete_clock``, ``table``: see ``CausalStore``.
    ``markers``: all markers that it has applied (store/markers.py).
    ``since``: if it is partial, a clock that the receiver's clock covers; empty for a whole snapshot.
    ``covered``: if it is partial, key -> dots of its versions, for keys without a version above ``since``.
    ``rest_unchanged``: if it is partial, whether keys in neither ``table`` nor ``covered`` stay as they are at the
    receiver.
    """

    timestamp: int
    clock: Clock
    delete_clock: Clock
    markers: list[Marker]
    table: dict[str, Versions]
    since: Clock = {}
    covered: Mapping[str, Collection[Dot]] = {}
    rest_unchanged: bool = False


def rest_is_unchanged(delete_clock: Clock, since: Clock) -> bool:
    """Return whether a partial snapshot may leave out the keys without a version above ``since``."""
    return bool(since) and covers(since, delete_clock)


def has_version_above(versions: Versions, since: Clock) -> bool:
    """Return whether ``since`` does not cover the dot of some version."""
    for version in versions:
        if since.get(version.origin, 0) < version.counter:
            return True
    return False


def join_partial(own: Mapping[str, Versions], own_clock: Clock, partial: Snapshot) -> Iterator[tuple[str, Versions]]:
    """Yield the keys that a partial snapshot changes, with their versions after the join, the winner first, or none.

    ``own_clock`` must cover ``partial.since``.
    """
    for key, received in partial.table.items():
        versions = own.get(key, ())
        joined = join_versions(versions, own_clock, received, partial.clock)
        if joined != versions:
            yield key, joined
    if partial.rest_unchanged:
        return
    for key, versions in own.items():
        if key not in partial.table:
            dots = partial.covered.get(key, ())
            kept = tuple([v for v in versions if v.dot in dots or not _is_covered(v, partial.clock)])
            if len(kept) < len(versions):
                yield key, kept


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
