"""What a replica tells people of itself: the content of ``/replication/status``."""

from __future__ import annotations

import resource
from collections import deque
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from replication.replica import Replica
from store.causal import LATEST_KEPT
from store.clock import Instant, incarnation_of

MAX_RECENT = LATEST_KEPT
"""Of the updates applied last, so many can be asked for."""

LISTED_PENDING = 1000
"""Pending updates that the status lists; their number is told in full."""


def describe(replica: Replica, counters: Mapping[str, int], now: Instant) -> dict[str, Any]:
    """Return the status as JSON-able data; called under the lock. ``counters``: of the engine and the node."""
    store = replica.store
    return {
        "replica_id": replica.id,
        "address": replica.address,
        "incarnation": f"{incarnation_of(replica.id):016x}",
        "uptime_s": round(now.mono_s - replica.started_s, 3),
        "state": replica.state,
        "clock": dict(store.clock),
        "view": [_member(replica, address, now) for address in sorted(replica.membership.table)],
        "pending": _pending(replica, now),
        "pending_count": len(store.pending),
        "deferred_requests": counters["deferred_now"],
        "watchers": counters["watchers"],
        "keys": counters["keys"],
        "conflicts": counters["conflicts"],
        "log": {"updates": counters["log_updates"], "bytes": counters["log_bytes"]},
        "data_bytes": counters["bytes"],
        "memory_bytes": resident_bytes(),
        "clock_lead_s": round(store.hybrid.lead_us / 1e6, 6),
        "drained": replica.unreplicated() == 0,
        "throughput": {name: counters[name] for name in _COUNTERS},
        "events": [event._asdict() for event in list(replica.event_log.events)[-50:]],
    }


_COUNTERS = (
    "reads",
    "writes",
    "deletes",
    "transactions",
    "lists",
    "applied",
    "deferred",
    "refused",
    "exchanges",
    "exchanges_answered",
    "exchange_failures",
    "messages_refused",
)


def _member(replica: Replica, address: str, now: Instant) -> dict[str, Any]:
    view = replica.membership
    is_self = address == replica.address
    peer = replica.peer(address)
    present = view.present_id(address)
    known = dict(replica.store.clock) if is_self else dict(peer.known) if peer and peer.replica == present else {}
    contact = view.last_contact(address)
    return {
        "address": address,
        "replica_id": present,
        "incarnation": f"{view.table[address].incarnation:016x}",
        "state": view.state(address, now.mono_s),
        "self": is_self,
        "last_contact_s": 0.0 if is_self else None if contact is None else round(now.mono_s - contact, 3),
        "clock": known,
        "lacks_updates": sum(n - min(n, known.get(id_, 0)) for id_, n in replica.store.clock.items()),
    }


def _pending(replica: Replica, now: Instant) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = []
    for update, waits_for, since_s in replica.store.pending:
        if len(listed) >= LISTED_PENDING:
            break
        listed.append(
            {
                "dot": list(update.dot),
                "keys": [write.key for write in update.writes[:10]],
                "waits_for": list(waits_for),
                "since_s": round(now.mono_s - since_s, 3),
            }
        )
    return listed


def resident_bytes() -> int | None:
    """Return the memory of this process (resident set), None where the system does not tell it: macOS has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except OSError:
        return None


HISTORY_RATES = ("reads", "writes", "deletes", "transactions", "lists", "applied")
HISTORY_GAUGES = ("pending", "lacking")


def latest(replica: Replica, limit: int) -> list[dict[str, Any]]:
    """Return the ``limit`` updates that were applied last, oldest first; called under the lock.

    ``key``: the first that it wrote; None for a marker, and once every member has the update and the log forgot it.
    """
    log, told = replica.store.log, []
    for wall_us, origin, counter in list(replica.store.latest)[-limit:]:
        update = log.get((origin, counter))
        key = update.writes[0].key if update and update.writes else None
        told.append({"dot": [origin, counter], "wall_us": wall_us, "key": key})
    return told


def lacking(replica: Replica) -> int:
    """Return how many updates peers are known to have that ``replica`` lacks; called under the lock, once a second."""
    clock = replica.store.clock
    highest: dict[str, int] = {}
    for address in replica.membership.others():
        peer = replica.peer(address)
        for id_, counter in peer.known.items() if peer else ():
            if counter > max(clock.get(id_, 0), highest.get(id_, 0)):
                highest[id_] = counter
    return sum(counter - clock.get(id_, 0) for id_, counter in highest.items())


class Rates:
    """Counters sampled once a second, for rates and for charts of the last ten minutes."""

    def __init__(self, keep: int = 600) -> None:
        self.samples: deque[tuple[float, dict[str, int]]] = deque(maxlen=keep)

    def sample(self, now_s: float, read: Callable[[], dict[str, int]]) -> None:
        """Take a sample when the last one is a second old."""
        if not self.samples or now_s - self.samples[-1][0] >= 1.0:
            self.samples.append((now_s, read()))

    def per_second(self) -> dict[str, float]:
        """Return the rates of the last two samples, by name of counter with ``_per_s``."""
        if len(self.samples) < 2:
            return {f"{name}_per_s": 0.0 for name in _COUNTERS}
        (then_s, then), (now_s, now) = self.samples[-2], self.samples[-1]
        return {f"{name}_per_s": round((now[name] - then[name]) / (now_s - then_s), 1) for name in _COUNTERS}

    def history(self, now_s: float) -> list[dict[str, float]]:
        """Return a point per sample, oldest first: its age, the rates since the one before, and what waited then."""
        points = []
        samples = list(self.samples)
        for (then_s, then), (at_s, now) in pairwise(samples):
            passed_s = at_s - then_s
            point = {name: round((now[name] - then[name]) / passed_s, 1) for name in HISTORY_RATES}
            gauges = {name: float(now[name]) for name in HISTORY_GAUGES}
            points.append({"age_s": round(now_s - at_s, 1), **point, **gauges})
        return points
