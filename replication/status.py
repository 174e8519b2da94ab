"""The content of ``/replication/status``: what a replica reports about itself to operators and to the dashboard.

Everything is from the view of this replica. What it says about another member is the last that this replica received:
the member may have applied more updates since, and may not have failed although it counts as down. ``drained`` is True
if at least one other member has acknowledged all updates of this replica, or if there is no other member.
"""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from replication.history import COUNTERS
from replication.refusals import describe_one
from replication.rejected_senders import REJECTED_TEXTS, RejectedSender
from replication.replica import Replica
from replication.unreached import Unreached
from store.causal import MAX_RECENT_UPDATES
from store.clock import Instant, count_missing, incarnation_of
from store.version import VERSION

MAX_RECENT = MAX_RECENT_UPDATES
"""Upper bound of the query parameter ``recent``: the number of applied updates that a replica remembers."""

MAX_CHANGES_SEARCHED = 2000
"""Changed keys of each origin that are looked at for the keys of recent updates. A transaction changes many."""

MAX_PENDING_LISTED = 1000
"""Pending updates that the status lists. ``pending_count`` counts all of them."""

MAX_EVENTS_LISTED = 50
"""Events that the status lists: the latest ones."""

MAX_KEYS_LISTED = 10
"""Keys that the status lists of one pending update."""

MAX_KEY_CHARS_LISTED = 256 * 1024
"""Characters of all keys that the status lists. Further pending updates are listed without keys."""

MAX_CLOCK_ENTRIES_LISTED = 50_000
"""Entries of all members' clocks that the status lists. The clocks of further members are empty."""


def replica_status(
    replica: Replica,
    counters: Mapping[str, int],
    now: Instant,
    unreached: Iterable[Unreached] = (),
    rejected: Iterable[RejectedSender] = (),
) -> dict[str, Any]:
    """Return the status as JSON-able data. The caller holds the lock.

    ``counters``: the totals of the engine and the node, by name. ``unreached``: the addresses that were never reached.
    ``rejected``: the senders whose messages were rejected.
    """
    store = replica.store
    return {
        "replica_id": replica.id,
        "version": VERSION,
        "address": replica.address,
        "incarnation": f"{incarnation_of(replica.id):016x}",
        "uptime_s": round(now.mono_s - replica.started_s, 3),
        "state": replica.state,
        "ready": not replica.recovery.not_ready_reason,
        "not_ready_reason": replica.recovery.not_ready_reason,
        "refusals": _refusals(replica, now),
        "never_reached": _never_reached(unreached, now),
        "rejected_senders": _rejected_senders(rejected, now),
        "expected_members": replica.membership.met.expected,
        "met_members": replica.membership.met.most,
        "clock": dict(store.clock),
        "view": _view(replica, now),
        "pending": _pending(replica, now),
        "pending_count": len(store.pending),
        "deferred_requests": counters["deferred_now"],
        "watchers": counters["watchers"],
        "ack_waits": counters["ack_waits"],
        "streams": counters["streams"],
        "keys": counters["keys"],
        "conflicts": counters["conflicts"],
        "log": {"updates": counters["log_updates"], "bytes": counters["log_bytes"]},
        "snapshots": {
            "taken": replica.recovery.taken,
            "given": replica.snapshots.given,
            "taking_from": pull.address if (pull := replica.recovery.pull) is not None else None,
            "giving_to": replica.snapshots.receivers,
        },
        "data_bytes": counters["bytes"],
        "memory_bytes": resident_bytes(),
        "clock_lead_s": round(store.hybrid_clock.lead_us / 1e6, 6),
        "drained": replica.acks.unreplicated() == 0,
        "throughput": {name: counters[name] for name in COUNTERS},
        "events": [event._asdict() for event in list(replica.event_log.events)[-MAX_EVENTS_LISTED:]],
    }


def _refusals(replica: Replica, now: Instant) -> list[dict[str, Any]]:
    return [
        {
            "address": address,
            "kind": standing.refusal.kind,
            "text": describe_one(standing.refusal),
            "clock_ahead_s": round(standing.refusal.ahead_s, 3),
            "since_s": round(now.mono_s - standing.since_s, 3),
        }
        for address, standing in replica.recovery.refusals.live(now.mono_s).items()
        if standing.refusal is not None
    ]


def _never_reached(unreached: Iterable[Unreached], now: Instant) -> list[dict[str, Any]]:
    return [
        {
            "address": each.address,
            "kind": each.kind,
            "text": each.text,
            "since_s": round(now.mono_s - each.since_s, 3),
            "setting": each.setting,
        }
        for each in unreached
    ]


def _rejected_senders(rejected: Iterable[RejectedSender], now: Instant) -> list[dict[str, Any]]:
    return [
        {
            "claimed_address": each.address,
            "kind": each.kind,
            "text": REJECTED_TEXTS[each.kind],
            "source": each.source,
            "last_s": round(max(0.0, now.mono_s - each.at_s), 3),
        }
        for each in rejected
    ]


def _view(replica: Replica, now: Instant) -> list[dict[str, Any]]:
    members = []
    entries = 0
    for address in sorted(replica.membership.table.entries):
        member = _member(replica, address, now)
        entries += len(member["clock"])
        if entries > MAX_CLOCK_ENTRIES_LISTED:
            member["clock"] = {}
        members.append(member)
    return members


def _member(replica: Replica, address: str, now: Instant) -> dict[str, Any]:
    membership = replica.membership
    is_self = address == replica.address
    peer = replica.peers.find(address)
    present_id = membership.table.present_id(address)
    # A clock that an earlier incarnation acknowledged does not describe the present one.
    peer_clock = peer.acked.clock if peer and peer.acked.replica == present_id else {}
    clock = dict(replica.store.clock if is_self else peer_clock)
    contact_s = membership.last_contact(address)
    return {
        "address": address,
        "replica_id": present_id,
        "incarnation": f"{membership.table.entries[address].incarnation:016x}",
        "state": membership.state(address, now.mono_s),
        "self": is_self,
        "last_contact_s": 0.0 if is_self else None if contact_s is None else round(now.mono_s - contact_s, 3),
        "clock": clock,
        "missing_updates": count_missing(clock, replica.store.clock),
    }


def _pending(replica: Replica, now: Instant) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    characters = 0
    for update, waits_for, since_s in replica.store.pending:
        if len(listed) >= MAX_PENDING_LISTED:
            break
        keys = [write.key for write in update.writes[:MAX_KEYS_LISTED]]
        characters += sum(map(len, keys))
        listed.append(
            {
                "dot": list(update.dot),
                "keys": keys if characters <= MAX_KEY_CHARS_LISTED else [],
                "waits_for": list(waits_for),
                "since_s": round(now.mono_s - since_s, 3),
            }
        )
    return listed


def hide_keys(status: dict[str, Any], is_hidden: Callable[[str], bool]) -> None:
    """Remove from ``status`` the keys that its reader may not know. Nothing else in it names a key."""
    for update in status["pending"]:
        update["keys"] = [key for key in update["keys"] if not is_hidden(key)]
    for update in status.get("recent", ()):
        if update["key"] is not None and is_hidden(update["key"]):
            update["key"] = None


def resident_bytes() -> int | None:
    """Return the resident set size of this process. None where the system has no /proc, as on macOS."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return None


def recent_updates(replica: Replica, limit: int) -> list[dict[str, Any]]:
    """Return the last ``limit`` updates that were applied, oldest first. The caller holds the lock.

    ``key``: the first key that the update wrote. If the log has dropped the update, because every member has it or the
    log has reached its limit: the first one that no later update has written (store/recent.py). It is None if there is
    none, and for a marker.
    """
    store = replica.store
    applied = list(store.recent_updates)[-limit:]
    keys = store.recent.keys_of([(origin, counter) for _, origin, counter in applied], MAX_CHANGES_SEARCHED)
    recent = []
    for wall_us, origin, counter in applied:
        update = store.log.get((origin, counter))
        key = update.writes[0].key if update and update.writes else keys.get((origin, counter))
        recent.append({"dot": [origin, counter], "wall_us": wall_us, "key": key})
    return recent


def missing_updates(replica: Replica) -> int:
    """Return how many updates at least one peer is known to have and ``replica`` does not.

    The caller holds the lock. The node calls this once a second.
    """
    clock = replica.store.clock
    highest: dict[str, int] = {}
    for address in replica.membership.table.others:
        peer = replica.peers.find(address)
        for id_, counter in peer.acked.clock.items() if peer else ():
            if counter > max(clock.get(id_, 0), highest.get(id_, 0)):
                highest[id_] = counter
    return count_missing(clock, highest)
