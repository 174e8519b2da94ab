"""The data of the page of one replica."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvsite.dashboard.cards import Fact, PendingQueue, ReplicaCard, pending_queue, replica_card
from kvsite.dashboard.charts import Chart, charts
from kvsite.dashboard.cluster_state import AsOf, ClusterState, ObservedReplica, Status, ViewMember
from kvsite.dashboard.formatting import ago, short_labels, size, span
from kvsite.dashboard.lag import highest_known
from kvsite.dashboard.tables import Column, origin_column
from kvsite.dashboard.timeline import Timeline, timeline
from store.clock import Clock

MAX_QUEUE_ITEMS = 100
"""Pending updates that the page lists. The others are counted."""


@dataclass(frozen=True, slots=True)
class ClockEntry:
    """An entry of the replica's clock. ``missing``: known updates of the origin that it has not applied."""

    origin: Column
    counter: int
    missing: int
    is_own: bool


@dataclass(frozen=True, slots=True)
class MemberRow:
    """A member in the replica's view. ``missing``: updates of the replica that the member is not known to have."""

    address: str
    state: str
    contact: str
    missing: str
    is_self: bool
    incarnation: str


@dataclass(frozen=True, slots=True)
class ReplicaPage:
    """Everything that the page shows. ``facts``: figures that the card does not include."""

    address: str
    as_of: AsOf
    card: ReplicaCard
    facts: tuple[Fact, ...]
    clock: tuple[ClockEntry, ...]
    view: tuple[MemberRow, ...]
    queue: PendingQueue | None
    charts: tuple[Chart, ...]
    events: Timeline


def replica_page(cluster: ClusterState, replica: ObservedReplica) -> ReplicaPage:
    """Return the page of ``replica``, a replica of ``cluster``. The charts need a status that includes the history."""
    labels = short_labels(each.address for each in cluster.replicas)
    highest = highest_known(cluster)
    status = replica.status
    return ReplicaPage(
        address=replica.address,
        as_of=cluster.as_of,
        card=replica_card(replica, highest),
        facts=_facts(status) if status else (),
        clock=_clock_entries(replica, highest, labels),
        view=tuple(_member_row(member, replica) for member in status.view) if status else (),
        queue=pending_queue(replica, status, labels, MAX_QUEUE_ITEMS) if status else None,
        charts=charts(status.history, cluster.wall_us) if status and replica.is_reachable else (),
        events=_own_events(cluster, replica),
    )


def _own_events(cluster: ClusterState, replica: ObservedReplica) -> Timeline:
    """Return the events that the replica itself recorded, without the names of the replicas that recorded them."""
    events = timeline(replace(cluster, replicas=(replica,)))
    return replace(events, entries=tuple(replace(entry, recorded_by="") for entry in events.entries))


def _facts(status: Status) -> tuple[Fact, ...]:
    return (
        Fact("Deferred requests", f"{status.deferred_requests:,}", "requests that wait for their causal past"),
        Fact("Watchers", f"{status.watchers:,}", "requests that wait for a key to change"),
        Fact("Keys in conflict", f"{status.conflicts:,}", "keys with concurrent values"),
        Fact("Log", f"{status.log.updates:,}", "updates kept for members that do not have them yet"),
        Fact("Log size", size(status.log.bytes)),
        Fact("Data size", size(status.data_bytes), "keys, values and their metadata"),
        Fact("Clock lead", span(status.clock_lead_s), "hybrid clock ahead of the wall clock"),
        Fact(
            "Rejected",
            f"{status.throughput.get('refused', 0):,.0f}",
            "requests whose causal past did not arrive in time, or that gave their place to another, since the start",
        ),
        Fact("Exchanges", f"{status.throughput.get('exchanges', 0):,.0f}", "exchanges initiated since the start"),
        Fact(
            "Failed exchanges",
            f"{status.throughput.get('exchange_failures', 0):,.0f}",
            "initiated exchanges that failed since the start",
        ),
    )


def _clock_entries(replica: ObservedReplica, highest: Clock, labels: dict[str, str]) -> tuple[ClockEntry, ...]:
    clock = replica.clock or {}
    present = {member.replica_id for member in replica.status.view} if replica.status else set()
    entries = [
        ClockEntry(
            origin=origin_column(id_, labels, is_ended=bool(present) and id_ not in present),
            counter=clock.get(id_, 0),
            missing=max(0, highest.get(id_, 0) - clock.get(id_, 0)),
            is_own=id_ == replica.replica_id,
        )
        for id_ in {*clock, *highest}
    ]
    return tuple(sorted(entries, key=lambda entry: (bool(entry.origin.note), entry.origin.title)))


def _member_row(member: ViewMember, replica: ObservedReplica) -> MemberRow:
    is_self = member.address == replica.address
    # If the status is an old one, the contacts in it are older by its age.
    status_age_s = 0.0 if replica.is_reachable else replica.age_s or 0.0
    contact_s = None if member.last_contact_s is None else member.last_contact_s + status_age_s
    return MemberRow(
        address=member.address,
        state="itself" if is_self and member.state == "alive" else member.state,
        contact="" if is_self else ago(contact_s),
        missing="" if is_self else f"{member.missing_updates:,}",
        is_self=is_self,
        incarnation=(member.replica_id or "").rpartition("@")[2],
    )
