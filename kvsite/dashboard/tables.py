"""The two tables of the overview: the clock matrix, and who sees whom."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import Clock, Replica, Snapshot
from kvsite.dashboard.formatting import address_of, counted, short_labels, span
from kvsite.dashboard.lag import missing

SHADES = (1, 10, 100, 1000)
"""A cell is shaded one step darker from each of these numbers of missing updates on."""


@dataclass(frozen=True, slots=True)
class Column:
    """An origin (its replica id) or a member. ``title``: in full; ``label``: what tells it from the others."""

    title: str
    label: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class ClockCell:
    """How far a replica has got with an origin's updates. ``counter``: None where nothing is known."""

    counter: int | None
    missing: int = 0
    is_own: bool = False

    @property
    def shade(self) -> int:
        """From 0 (nothing is missing) to 4."""
        return sum(self.missing >= step for step in SHADES)

    @property
    def behind(self) -> str:
        """What a reader who sees no shades is told."""
        return f"{counted(self.missing, 'update')} missing" if self.missing else ""


@dataclass(frozen=True, slots=True)
class Row:
    """A row's head. ``stale``: why it is greyed, empty where it is of now."""

    address: str
    label: str
    stale: str = ""
    is_asked: bool = False


@dataclass(frozen=True, slots=True)
class ClockRow(Row):
    """A replica's clock. ``lag``: in words."""

    cells: tuple[ClockCell, ...] = ()
    lag: str = ""


@dataclass(frozen=True, slots=True)
class ClockMatrix:
    """Replicas down, origins across. ``left_out``: origins of earlier times that all replicas have alike."""

    columns: tuple[Column, ...]
    rows: tuple[ClockRow, ...]
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class ViewCell:
    """What one replica's view says of one member. ``state``: empty where it says nothing."""

    state: str
    contact: str = ""


@dataclass(frozen=True, slots=True)
class ViewRow(Row):
    """One replica's view."""

    cells: tuple[ViewCell, ...] = ()


@dataclass(frozen=True, slots=True)
class ViewMatrix:
    """Who looks, down; who is seen, across."""

    columns: tuple[Column, ...]
    rows: tuple[ViewRow, ...]


def staleness(replica: Replica) -> str:
    """Return since when a row is not of now; empty where it is."""
    if replica.answers:
        return ""
    return "nothing known" if replica.silent_s is None else f"{span(replica.silent_s)} old"


def clock_matrix(snapshot: Snapshot, highest: Clock) -> ClockMatrix:
    """Return every replica's clock against the highest known counters."""
    labels = short_labels(replica.address for replica in snapshot.replicas)
    present = {replica.replica_id: None for replica in snapshot.replicas if replica.replica_id}
    clocks = {replica.address: replica.clock for replica in snapshot.replicas}
    over = sorted(highest.keys() - present.keys())
    uneven = [
        id_ for id_ in over if any(clock is not None and clock.get(id_, 0) != highest[id_] for clock in clocks.values())
    ]
    origins = [id_ for id_ in (*present, *uneven) if id_ is not None]
    columns = tuple(origin_column(id_, labels, is_superseded=id_ not in present) for id_ in origins)
    rows = tuple(
        ClockRow(
            address=replica.address,
            label=labels[replica.address],
            stale=staleness(replica),
            is_asked=replica.is_asked,
            cells=tuple(_clock_cell(replica, clocks[replica.address], id_, highest) for id_ in origins),
            lag=_lag(clocks[replica.address], highest),
        )
        for replica in snapshot.replicas
    )
    return ClockMatrix(columns, rows, left_out=len(over) - len(uneven))


def origin_column(id_: str, labels: Mapping[str, str], *, is_superseded: bool) -> Column:
    """Return an origin by its short label; ``is_superseded``: it is an earlier incarnation."""
    address, _, incarnation = id_.rpartition("@")
    return Column(id_, labels.get(address, address or id_), f"earlier, …{incarnation[-4:]}" if is_superseded else "")


def _clock_cell(replica: Replica, clock: Clock | None, origin: str, highest: Clock) -> ClockCell:
    if clock is None:
        return ClockCell(None)
    counter = clock.get(origin, 0)
    return ClockCell(counter, max(0, highest.get(origin, 0) - counter), is_own=address_of(origin) == replica.address)


def _lag(clock: Clock | None, highest: Clock) -> str:
    if clock is None:
        return "unknown"
    return f"{missing(clock, highest):,}"


def view_matrix(snapshot: Snapshot) -> ViewMatrix:
    """Return what each replica's view says of each member."""
    labels = short_labels(replica.address for replica in snapshot.replicas)
    columns = tuple(Column(replica.address, labels[replica.address]) for replica in snapshot.replicas)
    return ViewMatrix(columns, tuple(_view_row(replica, labels) for replica in snapshot.replicas))


def _view_row(replica: Replica, labels: Mapping[str, str]) -> ViewRow:
    view = {member.address: member for member in replica.status.view} if replica.status else {}
    cells = []
    for address in labels:
        member = view.get(address)
        if member is None:
            cells.append(ViewCell(""))
        elif address == replica.address:
            cells.append(ViewCell("itself" if member.state == "alive" else member.state))
        else:
            # What it last said of its contacts is as old as its status is.
            heard_s = member.last_contact_s
            contact = "never" if heard_s is None else span(heard_s + (0 if replica.answers else replica.age_s or 0))
            cells.append(ViewCell(member.state, contact))
    return ViewRow(
        address=replica.address,
        label=labels[replica.address],
        stale=staleness(replica),
        is_asked=replica.is_asked,
        cells=tuple(cells),
    )
