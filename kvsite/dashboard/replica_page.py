"""The data of the page of one replica."""

from __future__ import annotations

from dataclasses import dataclass, replace

from kvsite.dashboard.cards import Fact, PendingQueue, ReplicaCard, pending_queue, replica_card
from kvsite.dashboard.charts import WINDOWS, Chart, charts
from kvsite.dashboard.cluster_state import AsOf, ClusterState, ObservedReplica, Status, ViewMember
from kvsite.dashboard.formatting import ago, listed, short_labels, size, span, time_of_day
from kvsite.dashboard.lag import highest_known
from kvsite.dashboard.tables import Column, origin_column
from kvsite.dashboard.timeline import Timeline, timeline
from store.clock import Clock, address_of

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
    """Everything that the page shows. ``facts``: figures that the card does not include.

    ``stale_text``: what the page shows of a replica that does not respond; empty if it responds.
    ``last_event_text``: which of the events is the last that such a replica reported itself; empty if it responds.
    ``window``: what the charts show, a name in ``WINDOWS``.
    """

    address: str
    as_of: AsOf
    card: ReplicaCard
    facts: tuple[Fact, ...]
    clock: tuple[ClockEntry, ...]
    view: tuple[MemberRow, ...]
    queue: PendingQueue | None
    charts: tuple[Chart, ...]
    events: Timeline
    stale_text: str = ""
    last_event_text: str = ""
    window: str = "minutes"

    @property
    def windows(self) -> list[tuple[str, str, bool]]:
        """Each window of the charts: its name, its text, and whether it is shown."""
        return [(name, window.name, name == self.window) for name, window in WINDOWS.items()]


def replica_page(cluster: ClusterState, replica: ObservedReplica, window: str = "minutes") -> ReplicaPage:
    """Return the page of ``replica``, a replica of ``cluster``. The charts need a status that includes the history.

    ``window``: what the charts show, a name in ``WINDOWS``.
    """
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
        charts=charts(status.history, cluster.wall_us, WINDOWS[window]) if status and replica.is_reachable else (),
        events=_own_events(cluster, replica) if replica.is_reachable else _events_about(cluster, replica),
        stale_text=_stale_text(replica),
        last_event_text=_last_event_text(replica),
        window=window,
    )


def _stale_text(replica: ObservedReplica) -> str:
    if replica.is_reachable:
        return ""
    if replica.status is None:
        return "It does not respond, and it has not told this replica its status before. Its peers say what is below."
    return (
        f"It does not respond. Everything below is its last known state, and no sign of life has come for "
        f"{span(replica.silent_for_s)}. There are no charts, because the replica itself keeps their data."
    )


def _last_event_text(replica: ObservedReplica) -> str:
    if replica.is_reachable or replica.status is None or not replica.status.events:
        return ""
    last = max(event.wall_us for event in replica.status.events)
    return (
        f"The replica recorded nothing after {time_of_day(last)} UTC that this page knows of. Later events are those "
        "that other replicas have recorded about it."
    )


def _own_events(cluster: ClusterState, replica: ObservedReplica) -> Timeline:
    """Return the events that the replica itself recorded, without the names of the replicas that recorded them."""
    events = timeline(replace(cluster, replicas=(replica,)))
    return replace(events, entries=tuple(replace(entry, recorded_by="") for entry in events.entries))


def _events_about(cluster: ClusterState, replica: ObservedReplica) -> Timeline:
    """Return the last known events of the replica, and those that others have recorded about it since."""
    own_us = max((event.wall_us for event in replica.status.events), default=0) if replica.status else 0
    observed = []
    for each in cluster.replicas:
        if each.status and each.address != replica.address:
            about = [
                event
                for event in each.status.events
                if address_of(event.subject) == replica.address and event.wall_us > own_us
            ]
            observed.append(replace(each, status=replace(each.status, events=about)))
        else:
            observed.append(each)
    return timeline(replace(cluster, replicas=tuple(observed)))


def _facts(status: Status) -> tuple[Fact, ...]:
    return (
        Fact("Deferred requests", f"{status.deferred_requests:,}", "requests that wait for their causal past"),
        Fact("Watchers", f"{status.watchers:,}", "requests that wait for a key or a prefix to change"),
        Fact("Feeds", f"{status.streams:,}", "event streams of the change feed that wait for changes"),
        Fact("Waiting for acks", f"{status.ack_waits:,}", "writes that wait for acks of other members"),
        Fact("Snapshots under way", _snapshots(status), "snapshots that it receives or sends at the moment"),
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


def _snapshots(status: Status) -> str:
    snapshots = status.snapshots
    parts = [f"from {snapshots.taking_from}"] if snapshots.taking_from else []
    if snapshots.giving_to:
        parts.append(f"to {listed([address_of(id_) for id_ in snapshots.giving_to])}")
    return ", ".join(parts) or "none"


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
