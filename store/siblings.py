"""The versions of one key as clients see them: those of one kind that merges are one value (contract 2.10).

The key table holds each version by itself, so that delivery, deletes and joins of snapshots treat all kinds alike.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from store.merging import State, join
from store.values import merging_kind, state_of, store_state
from store.versions import Version, Versions


def is_conflict(versions: Versions) -> bool:
    """Return whether clients see several values."""
    if len(versions) < 2:
        return False
    kind = merging_kind(versions[0].value)
    return kind is None or any(merging_kind(version.value) != kind for version in versions)


def behind_winner(versions: Versions) -> Versions:
    """Return the versions that make the value of the winner: those that merge with it, or the winner alone."""
    if len(versions) < 2:
        return versions
    kind = merging_kind(versions[0].value)
    if kind is None:
        return versions[:1]
    return tuple([version for version in versions if merging_kind(version.value) == kind])


def joined(versions: Sequence[Version]) -> State:
    """Return the join of the states of versions of one kind that merges."""
    states = [state_of(version.value) for version in versions]
    return states[0] if len(states) == 1 else join(states)


def shown(versions: Versions) -> Versions:
    """Return one version for each value that clients see, the winner first.

    Versions that merge are shown as the one with the highest rank among them, with the value and the deadline of their
    join.
    """
    if len(versions) < 2:
        return versions
    result: list[Version] = []
    groups: dict[str, list[Version]] = {}
    for version in versions:
        kind = merging_kind(version.value)
        if kind is None:
            result.append(version)
        elif kind in groups:
            groups[kind].append(version)
        else:
            groups[kind] = [version]
            result.append(version)
    if all(len(group) == 1 for group in groups.values()):
        return versions
    return tuple([_merged(groups, version) for version in result])


def _merged(groups: dict[str, list[Version]], version: Version) -> Version:
    kind = merging_kind(version.value)
    group = groups[kind] if kind is not None else [version]
    if len(group) == 1:
        return version
    return structs.replace(version, value=store_state(joined(group)), expires=latest_deadline(group))


def latest_deadline(versions: Sequence[Version]) -> int | None:
    """Return the deadline of versions that merge: of concurrent changes of it, the later wins. None: there is none."""
    if len(versions) == 1:
        return versions[0].expires
    return max(versions, key=lambda version: (state_of(version.value).renewed or (0, ""), version.rank)).expires
