"""The page of one replica: everything that it shows, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvsite.dashboard.cards import Card, Fact, Queue, card, queue
from kvsite.dashboard.charts import Chart, charts
from kvsite.dashboard.cluster_state import AsOf, Clock, Member, Replica, Snapshot, Status
from kvsite.dashboard.formatting import ago, short_labels, size, span
from kvsite.dashboard.lag import highest_of
from kvsite.dashboard.tables import Column, origin_column
from kvsite.dashboard.timeline import Timeline, timeline

MAX_QUEUED = 100
"""Pending updates shown one by one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of its clock. ``missing``: how many updates of the origin are known elsewhere and not here."""

    origin: Column
    counter: int
    missing: int
    is_own: bool


@dataclass(frozen=True, slots=True)
class Seen:
    """A member of its view."""

    address: str
    state: str
    contact: str
    lacks: str
    is_self: bool
    incarnation: str


@dataclass(frozen=True, slots=True)
class ReplicaPage:
    """``as_of``: by whom and when it was asked; ``facts``: what the card leaves out."""

    address: str
    as_of: AsOf
    card: Card
    facts: tuple[Fact, ...]
    clock: tuple[Entry, ...]
    view: tuple[Seen, ...]
    queue: Queue | None
    charts: tuple[Chart, ...]
    events: Timeline


def replica_page(snapshot: Snapshot, replica: Replica) -> ReplicaPage:
    """Return the page of ``replica``: of ``snapshot``, or as it has told since with its history."""
    labels = short_labels(each.address for each in snapshot.replicas)
    highest = highest_of(snapshot)
    status = replica.status
    return ReplicaPage(
        address=replica.address,
        as_of=snapshot.as_of,
        card=card(replica, highest),
        facts=_facts(status) if status else (),
        clock=_clock(replica, highest, labels),
        view=tuple(_seen(member, replica) for member in status.view) if status else (),
        queue=queue(replica, status, labels, MAX_QUEUED) if status else None,
        charts=charts(status.history, snapshot.wall_us) if status and replica.answers else (),
        events=_events(snapshot, replica),
    )


def _events(snapshot: Snapshot, replica: Replica) -> Timeline:
    """Return what it noted itself: that need not be said at each event."""
    told = timeline(Snapshot(snapshot.asked, snapshot.wall_us, (replica,)))
    return replace(told, entries=tuple(replace(entry, by="") for entry in told.entries))


def _facts(status: Status) -> tuple[Fact, ...]:
    return (
        Fact("Deferred requests", f"{status.deferred_requests:,}", "they wait for their causal past"),
        Fact("Watchers", f"{status.watchers:,}", "they wait for a key to change"),
        Fact("Keys in conflict", f"{status.conflicts:,}", "they hold concurrent values"),
        Fact("Log", f"{status.log.updates:,}", "updates kept for members that lack them"),
        Fact("Log size", size(status.log.bytes)),
        Fact("Data size", size(status.data_bytes), "keys, values and what belongs to them"),
        Fact("Clock lead", span(status.clock_lead_s), "of its hybrid clock before its wall clock"),
        Fact("Refused", f"{status.throughput.get('refused', 0):,.0f}", "requests, since it started"),
        Fact("Exchanges", f"{status.throughput.get('exchanges', 0):,.0f}", "that it began, since it started"),
        Fact("Failed exchanges", f"{status.throughput.get('exchange_failures', 0):,.0f}", "since it started"),
    )


def _clock(replica: Replica, highest: Clock, labels: dict[str, str]) -> tuple[Entry, ...]:
    clock = replica.clock or {}
    present = {member.replica_id for member in replica.status.view} if replica.status else set()
    entries = [
        Entry(
            origin=origin_column(id_, labels, is_superseded=bool(present) and id_ not in present),
            counter=clock.get(id_, 0),
            missing=max(0, highest.get(id_, 0) - clock.get(id_, 0)),
            is_own=id_ == replica.replica_id,
        )
        for id_ in {*clock, *highest}
    ]
    return tuple(sorted(entries, key=lambda entry: (bool(entry.origin.note), entry.origin.title)))


def _seen(member: Member, replica: Replica) -> Seen:
    is_self = member.address == replica.address
    late_s = 0.0 if replica.answers else replica.age_s or 0.0
    contact = None if member.last_contact_s is None else member.last_contact_s + late_s
    return Seen(
        address=member.address,
        state="itself" if is_self and member.state == "alive" else member.state,
        contact="" if is_self else ago(contact),
        lacks="" if is_self else f"{member.missing_updates:,}",
        is_self=is_self,
        incarnation=(member.replica_id or "").rpartition("@")[2],
    )
