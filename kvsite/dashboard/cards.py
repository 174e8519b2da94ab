"""A card and a pending queue per replica."""

from __future__ import annotations

from dataclasses import dataclass

from kvsite.dashboard.cluster_state import Clock, Pending, Replica, Snapshot, Status
from kvsite.dashboard.formatting import ago, listed, named, rate, short_labels, size, span
from kvsite.dashboard.lag import missing

MAX_QUEUED = 6
"""Pending updates shown of one replica; how many more there are is told."""

SHOWN_KEY = 40
"""Characters shown of a key."""

TONES = {"serving": "good", "joining": "busy", "leaving": "busy", "silent": "warn", "suspect": "warn"}
WORDS = {"joining": "catching up", "silent": "no answer"}
OPERATIONS = ("reads", "writes", "deletes", "transactions", "lists")


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of a card. ``more``: for who points at it; ``wide``: it is long; ``alert``: it stands out."""

    name: str
    value: str
    more: str = ""
    wide: bool = False
    alert: bool = False


@dataclass(frozen=True, slots=True)
class Card:
    """One replica. ``tone``: ``good``, ``busy``, ``warn`` or ``bad``; ``stale``: why its facts are greyed, if so."""

    address: str
    state: str
    tone: str
    is_asked: bool
    facts: tuple[Fact, ...]
    stale: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """One pending update, in words. ``what``: which keys it changes, or what it does to the key that is shown."""

    update: str
    what: str
    waits_for: str
    since: str


@dataclass(frozen=True, slots=True)
class Queue:
    """The pending updates of one replica: the first of them, and how many ``more``."""

    address: str
    count: int
    items: tuple[Waiting, ...]
    more: int
    stale: str = ""


def card(replica: Replica, highest: Clock) -> Card:
    """Return the card of ``replica``."""
    return Card(
        address=replica.address,
        state=WORDS.get(replica.state, replica.state),
        tone=TONES.get(replica.state, "bad"),
        is_asked=replica.is_asked,
        facts=(*_own_facts(replica.status), *_observed_facts(replica, highest)),
        stale=_stale(replica),
    )


def _stale(replica: Replica) -> str:
    if replica.problem:
        return f"Its status cannot be read: {replica.problem}"
    if replica.answers:
        return ""
    if replica.status is None:
        return "It does not answer, and has not since this replica was first asked."
    return f"Last known state, {span(replica.age_s)} old"


def _own_facts(status: Status | None) -> tuple[Fact, ...]:
    if status is None:
        return ()
    per_second = {name: status.throughput.get(f"{name}_per_s", 0.0) for name in OPERATIONS}
    split = ", ".join(f"{name} {rate(value)}" for name, value in per_second.items())
    applied = rate(status.throughput.get("applied_per_s", 0.0))
    return (
        Fact("Keys", f"{status.keys:,}", f"{status.conflicts:,} in conflict"),
        Fact("Operations", rate(sum(per_second.values())), f"{split}; updates applied {applied}"),
        Fact(
            "Pending",
            f"{status.pending_count:,}",
            "updates that wait for their causal past",
            alert=status.pending_count > 0,
        ),
    )


def _observed_facts(replica: Replica, highest: Clock) -> tuple[Fact, ...]:
    status, clock = replica.status, replica.clock
    contact = "this replica" if replica.is_asked else ago(replica.seen.last_contact_s if replica.seen else None)
    incarnation = (replica.replica_id or "").rpartition("@")[2]
    lag = 0 if clock is None else missing(clock, highest)
    told = "unknown" if clock is None else f"{lag:,}"
    facts = [Fact("Lag", told, "updates that it lacks", alert=lag > 0)]
    if status:
        facts.append(Fact("Memory", size(status.memory_bytes), "of its process"))
        facts.append(Fact("Uptime", span(status.uptime_s)))
    facts.append(Fact("Last contact", contact, wide=True))
    facts.append(Fact("Incarnation", incarnation or "unknown", wide=True))
    return tuple(facts)


def queues(snapshot: Snapshot) -> tuple[Queue, ...]:
    """Return the queue of each replica whose status is known."""
    labels = short_labels(replica.address for replica in snapshot.replicas)
    return tuple(queue(replica, status, labels) for replica in snapshot.replicas if (status := replica.status))


def queue(replica: Replica, status: Status, labels: dict[str, str], limit: int = MAX_QUEUED) -> Queue:
    """Return the queue of ``replica``, of which ``status`` is; at most ``limit`` of it one by one."""
    return Queue(
        address=replica.address,
        count=status.pending_count,
        items=tuple(_waiting(waiting, labels) for waiting in status.pending[:limit]),
        more=max(0, status.pending_count - min(len(status.pending), limit)),
        stale="" if replica.answers else f"{span(replica.age_s)} old",
    )


def _waiting(waiting: Pending, labels: dict[str, str]) -> Waiting:
    keys = [key if len(key) <= SHOWN_KEY else f"{key[:SHOWN_KEY]}…" for key in waiting.keys]
    return Waiting(
        named(waiting.dot, labels), listed(keys) or "no keys", named(waiting.waits_for, labels), span(waiting.since_s)
    )
