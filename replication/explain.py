"""The content of ``/replication/explain/<key>``: why a read of a key returns what it does on this replica.

It describes the data and the acknowledged clocks of this replica only; it sends no request. So it may say of a member
that it lacks a version which that member has received in the meantime. ``list_keys`` serves the dashboard's list of
keys. Both work in every state of the replica and wait for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate, islice
from typing import Any, Literal

import msgspec

from replication.replica import Replica
from store.clock import Clock, Dot, Instant, incarnation_of, start_us_of
from store.siblings import shown
from store.table import KeyRange
from store.values import (
    Base64Text,
    as_json,
    content_length,
    encoding_of,
    json_length,
    merging_kind,
    state_of,
)
from store.versions import Version, Versions

MAX_VALUE_BYTES_LISTED = 400
"""Bytes of a stored value that a list of keys includes. The cut may fall within a UTF-8 character."""

MAX_VERSIONS_LISTED = 32
"""Versions of one key that are listed. ``version_count`` counts all."""

MAX_VALUES_BYTES = 8 * 1024 * 1024
"""Bytes of all values in one explanation, unless the caller says otherwise. Further values are None."""

MAX_PARTS_LISTED = 100
"""Parts of a value that merges that are listed for each version."""

MAX_PENDING_LISTED = 100
"""Pending updates of one key that are listed."""

MAX_LAST_UPDATES_LISTED = 32
"""Last updates of one key that are listed."""


def explain(replica: Replica, key: str, now: Instant, *, max_values_bytes: int = MAX_VALUES_BYTES) -> dict[str, Any]:
    """Return what this replica knows about ``key``, as JSON-able data. The caller holds the lock; nothing changes.

    Hybrid timestamps are in microseconds, deadlines in Unix seconds as everywhere in the API.
    ``versions``: the winner first; empty if the key is absent. Each version has its dot, its past (which covers the
    dot), its hybrid timestamp, its expiry, and for each member whether it has applied the version. Its ``value`` is
    JSON text, which has yet to be encoded if the kind is not JSON (``Base64Text``). It is None if the values up to this
    one take more than ``max_values_bytes``; the first one is always included.
    A version of a value that merges has its ``parts`` (``_parts``), and ``merged`` is what all of them are together;
    None if clients see several values, or a plain one.
    ``pending``: received updates of the key that wait for their causal past.
    ``last_updates``, ``expired``, ``remembers_all``, ``started``: what is remembered of updates that left no version
    (``_last``).
    ``deletes``: the delete clock. It covers every delete that was applied, so it is the past of every absent key.
    """
    store = replica.store
    addresses = sorted({replica.address, *replica.membership.table.members})
    clocks = {address: _known_clock(replica, address) for address in addresses}
    stored = store.table.get(key)
    versions = [version for version in stored if version.expires is None or version.expires > now.wall_us]
    listed = versions[:MAX_VERSIONS_LISTED]
    values_bytes = accumulate(json_length(version.value) for version in listed)
    return {
        "key": key,
        "replica_id": replica.id,
        "state": replica.state,
        "winner": list(versions[0].dot) if versions else None,
        "versions": [
            _version(replica, version, clocks, now, has_value=i == 0 or up_to <= max_values_bytes)
            for i, (version, up_to) in enumerate(zip(listed, values_bytes, strict=True))
        ],
        "version_count": len(versions),
        "merged": _merged(tuple(versions), max_values_bytes),
        "pending": list(_pending(replica, key, now)),
        **_last(replica, key, stored, now),
        "deletes": dict(store.delete_clock),
        "clock": dict(store.clock),
    }


def list_keys(
    replica: Replica, prefix: str, after: str, limit: int, *, conflicts: bool, before: str = ""
) -> list[dict[str, Any]]:
    """Return up to ``limit`` keys that start with ``prefix`` and sort after ``after``, each with its winning version.

    ``before``: if it is not empty, return the last ones that sort before it instead, in the same order.
    The caller holds the lock. The list shows the replica's own state, whether or not it serves clients: there is no
    client here whose causal past would have to be satisfied. ``conflicts``: list only keys with several versions.
    """
    table = replica.store.table
    wanted = KeyRange(prefix, before or after, reverse=bool(before))
    keys = list(islice((table.conflicting_keys if conflicts else table.keys)(wanted), limit))
    return listed_keys(replica, reversed(keys) if before else keys)


def listed_keys(replica: Replica, keys: Iterable[str]) -> list[dict[str, Any]]:
    """Return the entries of ``keys`` in a list, without those that are absent. The caller holds the lock."""
    table = replica.store.table
    versions_by_key = ((key, table.get(key)) for key in keys)
    return [_listed(key, shown(versions)) for key, versions in versions_by_key if versions]


def count_keys(replica: Replica, prefix: str, *, conflicts: bool) -> int:
    """Return how many keys start with ``prefix``. ``conflicts``: only those with several versions."""
    table = replica.store.table
    if conflicts:
        return sum(1 for _ in table.conflicting_keys(KeyRange(prefix)))
    return table.count(KeyRange(prefix))


KeyOrder = Literal["largest", "oldest", "newest"]
"""By the stored bytes of all versions, or by the time of the winner's write."""


def rank_keys(
    replica: Replica, prefix: str, after: str, limit: int, order: KeyOrder, *, conflicts: bool
) -> tuple[list[tuple[int, str]], str]:
    """Return (rank, key) of the keys among the next ``limit`` ones, and the last key; empty: there are no more.

    The highest rank comes first in ``order``. The caller holds the lock, so ``limit`` must be small.
    """
    table = replica.store.table
    keys = list(islice(table.keys(KeyRange(prefix, after)), limit))
    pairs = ((key, table.get(key)) for key in keys)
    ranks = [(_rank(versions, order), key) for key, versions in pairs if not conflicts or len(versions) > 1]
    return ranks, keys[-1] if len(keys) == limit else ""


def _rank(versions: Versions, order: KeyOrder) -> int:
    if order == "largest":
        return sum(len(version.value) for version in versions)
    timestamp = versions[0].timestamp
    return timestamp if order == "newest" else -timestamp


def _listed(key: str, values: Versions) -> dict[str, Any]:
    """Return an entry of ``list_keys``. ``values``: what clients see of the key, the winner first.

    ``value``: the beginning of the stored value; if it merges, of its JSON text.
    """
    winner = values[0]
    stored = winner.value if merging_kind(winner.value) is None else bytes(as_json(winner.value))
    return {
        "key": key,
        "versions": len(values),
        "dot": winner.dot,
        "timestamp": winner.timestamp,
        "type": winner.kind,
        "value": stored[:MAX_VALUE_BYTES_LISTED],
        "value_bytes": content_length(stored),
    }


def _merged(versions: Versions, max_bytes: int) -> dict[str, Any] | None:
    """Return the value that ``versions`` merge to; None if they are several values, or a plain one.

    ``value`` is None if it takes more than ``max_bytes``.
    """
    values = shown(versions)
    if len(values) != 1 or merging_kind(values[0].value) is None:
        return None
    value = _text(values[0].value) if json_length(values[0].value) <= max_bytes else None
    return {"type": values[0].kind, "value": value, "versions": len(versions)}


def _parts(version: Version) -> dict[str, Any]:
    """Return what a value that merges is made of, at most ``MAX_PARTS_LISTED`` parts; nothing of any other value.

    Of a counter: the sum of the increments of each replica id, from its update ``first`` to ``last``. ``ended``: the
    sum of processes that have ended. Of a set: each element, and the updates that added it. Of a map: each field, and
    the updates that set it, of which the one with the highest timestamp is shown.
    """
    if merging_kind(version.value) is None:
        return {}
    state = state_of(version.value)
    parts: Iterator[dict[str, Any]]
    if state.kind == "counter":
        parts = (
            {"replica": name.origin, "first": name.birth, "last": entry.last, "net": entry.net, "ended": name.is_base}
            for name, entry in sorted(state.entries.items())
        )
    elif state.kind == "set":
        parts = ({"element": each, "added_by": sorted(map(list, item))} for each, item in state.items.items())
    else:
        parts = (
            {"field": name, "set_by": list(dot), "timestamp": field.timestamp, "value": msgspec.Raw(field.value)}
            for name, item in state.items.items()
            for dot, field in item.items()
            if field is not None
        )
    return {"parts": list(islice(parts, MAX_PARTS_LISTED))}


def _known_clock(replica: Replica, address: str) -> Clock | None:
    """Return the last clock received from the member at ``address``; None if its present incarnation sent none yet.

    It is a lower bound: the member has applied everything that the clock covers, and may have applied more since.
    """
    if address == replica.address:
        return replica.store.clock
    peer = replica.peers.find(address)
    return (
        peer.acked.clock
        if peer is not None and peer.acked.replica == replica.membership.table.present_id(address)
        else None
    )


def _version(
    replica: Replica, version: Version, clocks: Mapping[str, Clock | None], now: Instant, *, has_value: bool
) -> dict[str, Any]:
    is_plain = merging_kind(version.value) is None
    return {
        "dot": list(version.dot),
        "etag": version.etag,
        "value": _text(version.value) if has_value else None,
        "type": version.kind,
        **_encoding(version),
        **(_parts(version) if has_value else {}),
        "value_bytes": content_length(version.value if is_plain else bytes(as_json(version.value))),
        "origin": version.origin,
        "past": version.past,
        "timestamp": version.timestamp,
        "expires": None if version.expires is None else version.expires / 1_000_000,
        "expires_in_s": None if version.expires is None else round((version.expires - now.wall_us) / 1e6, 3),
        "members": [_member(replica, address, clock, version.dot, now) for address, clock in clocks.items()],
    }


def _text(stored: bytes) -> msgspec.Raw | Base64Text:
    text = as_json(stored)
    return msgspec.Raw(text) if isinstance(text, bytes) else text


def _encoding(version: Version) -> dict[str, str]:
    encoding = encoding_of(version.value)
    return {} if encoding is None else {"encoding": encoding}


def _member(replica: Replica, address: str, clock: Clock | None, dot: Dot, now: Instant) -> dict[str, Any]:
    """Return whether a member has applied ``dot``. ``has`` is None if the clock of the member is not known."""
    origin, counter = dot
    is_self = address == replica.address
    contact_s = replica.membership.last_contact(address)
    return {
        "address": address,
        "state": replica.membership.state(address, now.mono_s),
        "self": is_self,
        "has": None if clock is None else clock.get(origin, 0) >= counter,
        "last_contact_s": 0.0 if is_self else None if contact_s is None else round(now.mono_s - contact_s, 3),
    }


def _pending(replica: Replica, key: str, now: Instant) -> Iterator[dict[str, Any]]:
    listed = 0
    for update, waits_for, since_s in replica.store.pending:
        writes = [write for write in update.writes if write.key == key]
        if not writes:
            continue
        listed += 1
        if listed > MAX_PENDING_LISTED:
            return
        yield {
            "dot": list(update.dot),
            "past": update.past,
            "timestamp": update.timestamp,
            "deletes": writes[0].value is None,
            "waits_for": list(waits_for),
            "since_s": round(now.mono_s - since_s, 3),
        }


def _last(replica: Replica, key: str, stored: Versions, now: Instant) -> dict[str, Any]:
    """Return what is remembered of updates and expiries of ``key`` that left no version (store/recent.py).

    ``last_updates``: the last updates of the key, without those that a version follows or is of. ``deletes``: whether
    the update deleted the key. ``expired``: whether its value has expired; None: it was deleted or has expired since.
    ``wall_us``: when it was applied here; None if it is not one of the updates applied last.
    ``expired``: when a version of the key expired last, Unix seconds; None: no expiry is remembered.
    ``remembers_all``: this replica has forgotten no update of any key, and got none in a snapshot. ``started``: when
    its memory began, Unix seconds; None if its incarnation does not say, because it is ahead of the wall clock.
    """
    store = replica.store
    remembered = store.recent.of_key(key)
    is_over = [each.expires is not None and each.expires <= now.wall_us for each in stored]
    times_us = [each.expires for each, over in zip(stored, is_over, strict=True) if over and each.expires is not None]
    expired_us = max([*times_us, *([] if remembered.expired_us is None else [remembered.expired_us])], default=None)
    versions = [each for each, over in zip(stored, is_over, strict=True) if not over]
    # A version may name a marker in place of an update of an ended incarnation. So it cannot be told whether it follows
    # that update. It does not matter if there is no version.
    updates = [each for each in remembered.updates.items() if not versions or each[0][0] in store.present_ids]
    last = [
        (dot, deletes)
        for dot, deletes in updates
        if not any(version.past.get(dot[0], 0) >= dot[1] for version in versions)
    ]
    applied = {(origin, counter): wall_us for wall_us, origin, counter in store.recent_updates}
    started_us = start_us_of(incarnation_of(replica.id))
    return {
        "last_updates": [
            {
                "dot": list(dot),
                "deletes": deletes,
                # Nothing is forgotten: a delete of this value would have taken the place of the update. A delete that
                # names a marker in place of the update would not.
                "expired": False if deletes else (remembered.is_complete and dot[0] in store.present_ids) or None,
                "wall_us": applied.get(dot),
            }
            for dot, deletes in last[:MAX_LAST_UPDATES_LISTED]
        ],
        "expired": None if expired_us is None else expired_us / 1_000_000,
        "remembers_all": remembered.is_complete,
        "started": started_us / 1_000_000 if started_us <= now.wall_us else None,
    }
