"""The two tables of the overview: the clock matrix and the view matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import ClusterState, ObservedReplica
from kvsite.dashboard.formatting import counted, short_labels, span
from store.clock import Clock, address_of, count_missing

SHADES = (1, 10, 100, 1000)
"""Numbers of missing updates from which on a cell gets one shade darker."""


@dataclass(frozen=True, slots=True)
class Column:
    """An origin (``title``: its replica id) or a member (``title``: its address). ``label``: its short label."""

    title: str
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class ClockCell:
    """How many updates of one origin a replica has applied. ``counter``: None if its clock is not known."""

    counter: int | None
    missing: int = 0
    is_own: bool = False

    @property
    def shade(self) -> int:
        """From 0 (nothing is missing) to 4."""
        return sum(self.missing >= step for step in SHADES)

    @property
    def missing_text(self) -> str:
        """The text for screen readers, which do not convey the shade."""
        return f"{counted(self.missing, 'update')} missing" if self.missing else ""


@dataclass(frozen=True, slots=True)
class TableRow:
    """The head of a row. ``stale_age``: the age of greyed data; empty if they are current."""

    address: str
    label: str
    stale_age: str = ""


@dataclass(frozen=True, slots=True)
class ClockRow(TableRow):
    """The clock of one replica. ``lag``: how many updates it lacks, as text."""

    cells: tuple[ClockCell, ...] = ()
    lag: str = ""


@dataclass(frozen=True, slots=True)
class ClockMatrix:
    """One row per replica, one column per origin.

    ``omitted``: how many ended incarnations have no column, because all replicas have the same updates of them.
    """

    columns: tuple[Column, ...]
    rows: tuple[ClockRow, ...]
    omitted: int = 0


@dataclass(frozen=True, slots=True)
class ViewCell:
    """A member in the view of one replica. ``state``: empty if the member is not in that view."""

    state: str
    contact: str = ""


@dataclass(frozen=True, slots=True)
class ViewRow(TableRow):
    """The view of one replica."""

    cells: tuple[ViewCell, ...] = ()


@dataclass(frozen=True, slots=True)
class ViewMatrix:
    """One row per replica whose view it is, one column per member."""

    columns: tuple[Column, ...]
    rows: tuple[ViewRow, ...]


def stale_age(replica: ObservedReplica) -> str:
    """Return the age of the clock of ``replica``; empty if it is current. An exchange renews it, as a status does."""
    if replica.is_reachable:
        return ""
    return "no data" if replica.silent_for_s is None else f"{span(replica.silent_for_s)} old"


def status_age(replica: ObservedReplica) -> str:
    """Return the age of what only the status of ``replica`` says; empty if it is current."""
    if replica.is_reachable:
        return ""
    return "no data" if replica.status_age_s is None else f"{span(replica.status_age_s)} old"


def clock_matrix(cluster: ClusterState, highest: Clock) -> ClockMatrix:
    """Return the clock of every replica, compared with ``highest`` (see ``highest_known``)."""
    labels = short_labels(replica.address for replica in cluster.replicas)
    # A dict instead of a set: the columns keep the order of the replicas.
    present = {replica.replica_id: None for replica in cluster.replicas if replica.replica_id}
    clocks = {replica.address: replica.clock for replica in cluster.replicas}
    ended = sorted(highest.keys() - present.keys())
    ended_and_uneven = [
        id_
        for id_ in ended
        if any(clock is not None and clock.get(id_, 0) != highest[id_] for clock in clocks.values())
    ]
    origins = [id_ for id_ in (*present, *ended_and_uneven) if id_ is not None]
    columns = tuple(origin_column(id_, labels, is_ended=id_ not in present) for id_ in origins)
    rows = tuple(
        ClockRow(
            address=replica.address,
            label=labels[replica.address],
            stale_age=stale_age(replica),
            cells=tuple(_clock_cell(replica, clocks[replica.address], id_, highest) for id_ in origins),
            lag=_lag(clocks[replica.address], highest),
        )
        for replica in cluster.replicas
    )
    return ClockMatrix(columns, rows, omitted=len(ended) - len(ended_and_uneven))


def origin_column(id_: str, labels: Mapping[str, str], *, is_ended: bool) -> Column:
    """Return the column of an origin. ``is_ended``: this incarnation is not the present one of its address."""
    address, _, incarnation = id_.rpartition("@")
    return Column(id_, labels.get(address, address or id_), f"ended, …{incarnation[-4:]}" if is_ended else "")


def _clock_cell(replica: ObservedReplica, clock: Clock | None, origin: str, highest: Clock) -> ClockCell:
    if clock is None:
        return ClockCell(None)
    counter = clock.get(origin, 0)
    return ClockCell(counter, max(0, highest.get(origin, 0) - counter), is_own=address_of(origin) == replica.address)


def _lag(clock: Clock | None, highest: Clock) -> str:
    if clock is None:
        return "unknown"
    return f"{count_missing(clock, highest):,}"


def view_matrix(cluster: ClusterState) -> ViewMatrix:
    """Return the state of each member in the view of each replica."""
    labels = short_labels(replica.address for replica in cluster.replicas)
    columns = tuple(Column(replica.address, labels[replica.address]) for replica in cluster.replicas)
    return ViewMatrix(columns, tuple(_view_row(replica, labels) for replica in cluster.replicas))


def _view_row(replica: ObservedReplica, labels: Mapping[str, str]) -> ViewRow:
    view = {member.address: member for member in replica.status.view} if replica.status else {}
    cells = []
    for address in labels:
        member = view.get(address)
        if member is None:
            cells.append(ViewCell(""))
        elif address == replica.address:
            cells.append(ViewCell("itself" if member.state == "alive" else member.state))
        else:
            # If the status is an old one, the contacts in it are older by its age.
            status_age_s = 0.0 if replica.is_reachable else replica.age_s or 0.0
            contact_s = member.last_contact_s
            cells.append(ViewCell(member.state, "never" if contact_s is None else span(contact_s + status_age_s)))
    return ViewRow(
        address=replica.address,
        label=labels[replica.address],
        stale_age=status_age(replica),
        cells=tuple(cells),
    )
