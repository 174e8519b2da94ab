"""Why a key reads as it does here: the content of ``/replication/explain/<key>``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import msgspec

from replication.replica import Replica
from store.clock import Clock, Dot, Instant
from store.versions import Version

LISTED_VALUE_BYTES = 400
"""Of a value in a list of keys; it may end within a character."""

LISTED_PENDING = 100
"""Pending updates of the key that are listed; who has more of them has another problem."""


def explain(replica: Replica, key: str, now: Instant) -> dict[str, Any]:
    """Return what this replica knows of ``key``, as JSON-able data; called under the lock, changes nothing.

    ``versions``: the winner first; empty where the key is absent. A version tells its dot, its past (which covers the
    dot), its hybrid timestamp, when it expires, and which members have applied it. ``pending``: updates of the key
    that have arrived but wait for their causal past. ``deletes``: the delete clock, which stands for every absence.
    """
    store = replica.store
    clocks = {address: _known(replica, address) for address in sorted({replica.address, *replica.membership.members()})}
    held = [version for version in store.table.get(key) if version.expires is None or version.expires > now.wall_us]
    return {
        "key": key,
        "replica_id": replica.id,
        "state": replica.state,
        "winner": list(held[0].dot) if held else None,
        "versions": [_version(replica, version, clocks, now) for version in held],
        "pending": list(_pending(replica, key, now)),
        "deletes": dict(store.delete_clock),
        "clock": dict(store.clock),
    }


def list_keys(replica: Replica, prefix: str, after: str, limit: int, *, conflicts: bool) -> list[dict[str, Any]]:
    """Return up to ``limit`` keys from ``prefix`` on, after ``after``, and their winners; called under the lock.

    What is here, whatever the gate: no client asks, so there is no past to reach. ``conflicts``: only keys that hold
    several versions.
    """
    table = replica.store.table
    found = (table.conflicting_keys if conflicts else table.keys)(prefix, after)
    held = ((key, table.get(key)) for key in islice(found, limit))
    return [
        {
            "key": key,
            "versions": len(versions),
            "dot": versions[0].dot,
            "timestamp": versions[0].timestamp,
            "value": versions[0].value[:LISTED_VALUE_BYTES],
            "value_bytes": len(versions[0].value),
        }
        for key, versions in held
    ]


def _known(replica: Replica, address: str) -> Clock | None:
    """Return the clock of the member at ``address`` as it was last told; None where it has not talked yet.

    It is a lower bound: what it covers has been applied there, what it lacks may have arrived since.
    """
    if address == replica.address:
        return replica.store.clock
    peer = replica.peer(address)
    return peer.known if peer is not None and peer.replica == replica.membership.present_id(address) else None


def _version(replica: Replica, version: Version, clocks: Mapping[str, Clock | None], now: Instant) -> dict[str, Any]:
    return {
        "dot": list(version.dot),
        "etag": version.etag,
        "value": msgspec.Raw(version.value),
        "origin": version.origin,
        "past": version.past,
        "timestamp": version.timestamp,
        "expires": version.expires,
        "expires_in_s": None if version.expires is None else round((version.expires - now.wall_us) / 1e6, 3),
        "members": [_member(replica, address, known, version.dot, now) for address, known in clocks.items()],
    }


def _member(replica: Replica, address: str, known: Clock | None, dot: Dot, now: Instant) -> dict[str, Any]:
    """Tell whether a member has applied ``dot``: ``has`` is None where it has not told any clock yet."""
    origin, counter = dot
    is_self = address == replica.address
    contact = replica.membership.last_contact(address)
    return {
        "address": address,
        "state": replica.membership.state(address, now.mono_s),
        "self": is_self,
        "has": None if known is None else known.get(origin, 0) >= counter,
        "last_contact_s": 0.0 if is_self else None if contact is None else round(now.mono_s - contact, 3),
    }


def _pending(replica: Replica, key: str, now: Instant) -> Iterator[dict[str, Any]]:
    listed = 0
    for update, waits_for, since_s in replica.store.pending:
        writes = [write for write in update.writes if write.key == key]
        if not writes:
            continue
        listed += 1
        if listed > LISTED_PENDING:
            return
        yield {
            "dot": list(update.dot),
            "past": update.past,
            "timestamp": update.timestamp,
            "deletes": writes[0].value is None,
            "waits_for": list(waits_for),
            "since_s": round(now.mono_s - since_s, 3),
        }
