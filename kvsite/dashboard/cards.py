"""The data of a replica's card and of its pending queue."""

from __future__ import annotations

from dataclasses import dataclass

from kvsite.dashboard.cluster_state import ClusterState, ObservedReplica, PendingUpdate, Status
from kvsite.dashboard.disagreements import is_alone
from kvsite.dashboard.formatting import ago, listed, rate, short_labels, size, span, update_name, update_query
from kvsite.dashboard.tables import status_age
from store.clock import Clock, count_missing

MAX_QUEUE_ITEMS = 6
"""Pending updates that the overview lists of one replica. The others are counted."""

MAX_KEY_CHARS = 40
"""Characters shown of a key."""

TONES = {"serving": "good", "joining": "busy", "leaving": "busy", "unreachable": "warn", "suspect": "warn"}
"""State -> tone of the card. Any other state is ``bad``."""

STATE_TEXTS = {"joining": "catching up", "unreachable": "no response"}
"""State -> its text on the card, where the two differ."""

OPERATIONS = ("reads", "writes", "deletes", "transactions", "lists")


@dataclass(frozen=True, slots=True)
class Fact:
    """A name and a value. ``is_wide``: the value is long; ``is_alert``: highlight it."""

    name: str
    value: str
    tooltip: str = ""
    is_wide: bool = False
    is_alert: bool = False


@dataclass(frozen=True, slots=True)
class ReplicaCard:
    """One replica. ``tone``: ``good``, ``busy``, ``warn`` or ``bad``.

    ``stale_reason``: why the facts may be out of date and are greyed; empty if they are current.
    ``not_ready_reason``: why live peers keep the replica from being ready; empty if none does.
    """

    address: str
    state: str
    tone: str
    is_local: bool
    facts: tuple[Fact, ...]
    stale_reason: str = ""
    not_ready_reason: str = ""


@dataclass(frozen=True, slots=True)
class QueueItem:
    """One pending update in words. ``effect``: the keys that it writes, or on the page of a key, what it does to it.

    ``update_query``, ``waits_for_query``: query strings of the pages of the two updates.
    """

    update: str
    effect: str
    waits_for: str
    duration: str
    update_query: str
    waits_for_query: str


@dataclass(frozen=True, slots=True)
class PendingQueue:
    """The pending updates of one replica: their ``count``, the first ``items`` and how many ``more`` there are.

    ``stale_age``: the age of the data; empty if they are current.
    """

    address: str
    count: int
    items: tuple[QueueItem, ...]
    more: int
    stale_age: str = ""


def replica_card(replica: ObservedReplica, highest: Clock) -> ReplicaCard:
    """Return the card of ``replica``. ``highest``: see ``highest_known``."""
    status = replica.status
    reason = status.not_ready_reason if replica.is_reachable and status and status.refusals else ""
    state, tone = STATE_TEXTS.get(replica.state, replica.state), TONES.get(replica.state, "bad")
    if reason:
        state, tone = "not ready", "warn"
    elif replica.state == "serving" and replica.is_reachable and status and is_alone(status):
        state, tone = "alone", "warn"
    return ReplicaCard(
        address=replica.address,
        state=state,
        tone=tone,
        is_local=replica.is_local,
        facts=(*_status_facts(replica.status), *_observed_facts(replica, highest)),
        stale_reason=_stale_reason(replica),
        not_ready_reason=reason,
    )


def _stale_reason(replica: ObservedReplica) -> str:
    if replica.status_error:
        return f"Invalid status: {replica.status_error}"
    if replica.is_reachable:
        return ""
    if replica.status is None:
        text = "It has not responded to any status request yet"
        return text if replica.silent_for_s is None else f"{text}. No sign of life for {span(replica.silent_for_s)}"
    text = f"No sign of life for {span(replica.silent_for_s)}. The figures are the last known ones"
    return text if replica.status_age_s == replica.silent_for_s else f"{text}, from {ago(replica.status_age_s)}"


def _status_facts(status: Status | None) -> tuple[Fact, ...]:
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
            is_alert=status.pending_count > 0,
        ),
    )


def _observed_facts(replica: ObservedReplica, highest: Clock) -> tuple[Fact, ...]:
    status, clock = replica.status, replica.clock
    # A card that is not current has the time of the last contact as its heading.
    exchanged = ago(replica.member.last_contact_s if replica.member else None)
    contact = "this replica" if replica.is_local else exchanged if replica.is_reachable else ""
    incarnation = (replica.replica_id or "").rpartition("@")[2]
    lag = 0 if clock is None else count_missing(clock, highest)
    lag_text = "unknown" if clock is None else f"{lag:,}"
    facts = [Fact("Lag", lag_text, "updates known elsewhere and missing here", is_alert=lag > 0)]
    if status:
        facts.append(Fact("Memory", size(status.memory_bytes), "resident memory of the process"))
        facts.append(Fact("Uptime", span(status.uptime_s)))
        facts.append(Fact("Version", status.version or "unknown"))
    if contact:
        facts.append(Fact("Last contact", contact, is_wide=True))
    facts.append(Fact("Incarnation", incarnation or "unknown", is_wide=True))
    return tuple(facts)


def pending_queues(cluster: ClusterState) -> tuple[PendingQueue, ...]:
    """Return the pending queue of each replica whose status is known."""
    labels = short_labels(replica.address for replica in cluster.replicas)
    return tuple(pending_queue(replica, status, labels) for replica in cluster.replicas if (status := replica.status))


def pending_queue(
    replica: ObservedReplica, status: Status, labels: dict[str, str], limit: int = MAX_QUEUE_ITEMS
) -> PendingQueue:
    """Return the pending queue of ``replica``, with at most ``limit`` items. ``status``: the status of ``replica``."""
    return PendingQueue(
        address=replica.address,
        count=status.pending_count,
        items=tuple(_queue_item(pending, labels) for pending in status.pending[:limit]),
        more=max(0, status.pending_count - min(len(status.pending), limit)),
        stale_age=status_age(replica),
    )


def _queue_item(pending: PendingUpdate, labels: dict[str, str]) -> QueueItem:
    keys = [key if len(key) <= MAX_KEY_CHARS else f"{key[:MAX_KEY_CHARS]}…" for key in pending.keys]
    return QueueItem(
        update=update_name(pending.dot, labels),
        effect=listed(keys) or "no keys",
        waits_for=update_name(pending.waits_for, labels),
        duration=span(pending.since_s),
        update_query=update_query(pending.dot),
        waits_for_query=update_query(pending.waits_for),
    )
