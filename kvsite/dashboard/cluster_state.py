"""The state of the cluster at one moment, as the local replica observed it. Every page is rendered from it.

The *local replica* is the replica that serves the page. ``StatusFetcher.fetch_all`` collects the status of each
member. A member may run another version, or something else may answer on its port. ``parse_cluster`` therefore
validates every status once and records the error where a status cannot be parsed. Numbers are bounded, so that no page
has to expect a time in the year 300,000. Texts in a view that are no addresses are left out: no page exists for them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec

from kvsite.dashboard.formatting import iso, time_of_day
from store.address import is_canonical
from store.clock import Clock, join

OLDER_S = 10.0
"""If the last status is older than the last sign of life by more than this, the pages say so."""

Number = Annotated[float, msgspec.Meta(ge=-1e12, le=1e12)]
"""Seconds, or a rate."""

Count = Annotated[int, msgspec.Meta(ge=0, le=2**60)]
WallTime = Annotated[int, msgspec.Meta(ge=0, le=253_402_300_799_999_999)]
"""Unix time in microseconds, up to the year 9999."""

CheckedDot = tuple[str, Count]
CheckedClock = dict[str, Count]


@dataclass(frozen=True, slots=True)
class ViewMember:
    """A member in the view of a replica. ``last_contact_s``: seconds since the last contact; None means never."""

    address: str
    state: str
    replica_id: str | None = None
    last_contact_s: Number | None = None
    clock: CheckedClock = field(default_factory=dict)
    missing_updates: Count = 0


@dataclass(frozen=True, slots=True)
class PendingUpdate:
    """An update that waits for its causal past. ``keys``: the first keys that it writes."""

    dot: CheckedDot
    waits_for: CheckedDot
    since_s: Number
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Event:
    """An entry of a replica's event log. ``wall_us``: the time by that replica's wall clock."""

    wall_us: WallTime
    kind: str
    subject: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class AppliedUpdate:
    """An update that a replica applied at ``wall_us`` by its own wall clock.

    ``key``: the first key that it wrote; None if the replica does not have it in its log.
    """

    dot: CheckedDot
    wall_us: WallTime
    key: str | None = None


@dataclass(frozen=True, slots=True)
class HistoryPoint:
    """One second of a replica's history, ``age_s`` seconds ago.

    ``pending`` and ``missing`` count updates. The other fields are rates per second.
    """

    age_s: Number
    reads: Number = 0.0
    writes: Number = 0.0
    deletes: Number = 0.0
    transactions: Number = 0.0
    lists: Number = 0.0
    applied: Number = 0.0
    pending: Number = 0.0
    missing: Number = 0.0


@dataclass(frozen=True, slots=True)
class StatedRefusal:
    """A live replica that refuses the one whose status this is, or is refused by it. ``text``: why."""

    address: str
    text: str = ""
    kind: str = ""


@dataclass(frozen=True, slots=True)
class UnreachedAddress:
    """An address of ``VIEW`` at which no replica has ever answered the one whose status this is. ``text``: why.

    ``setting``: the variable that names it.
    """

    address: str
    text: str = ""
    since_s: Number = 0.0
    setting: str = "VIEW"


@dataclass(frozen=True, slots=True)
class StatedSender:
    """An address in whose name somebody sends messages that the replica rejects. ``text``: why."""

    claimed_address: str
    text: str = ""


@dataclass(frozen=True, slots=True)
class LogSize:
    """The size of the log: updates that a replica keeps for members that do not have them yet."""

    updates: Count = 0
    bytes: Count = 0


@dataclass(frozen=True, slots=True)
class SnapshotCounts:
    """Snapshots. ``taking_from``: the address that one is being pulled from; ``giving_to``: ids that pull one."""

    taken: Count = 0
    given: Count = 0
    taking_from: str | None = None
    giving_to: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Status:
    """The fields of ``/replication/status`` that the pages use. A number that is absent counts as 0."""

    replica_id: str
    address: str
    version: str = ""
    incarnation: str = ""
    uptime_s: Number = 0.0
    state: str = "unknown"
    clock: CheckedClock = field(default_factory=dict)
    view: list[ViewMember] = field(default_factory=list)
    pending: list[PendingUpdate] = field(default_factory=list)
    pending_count: Count = 0
    deferred_requests: Count = 0
    watchers: Count = 0
    ack_waits: Count = 0
    streams: Count = 0
    keys: Count = 0
    conflicts: Count = 0
    clock_lead_s: Number = 0.0
    throughput: dict[str, Number] = field(default_factory=dict)
    memory_bytes: Count | None = None
    open: bool = False
    not_ready_reason: str = ""
    refusals: list[StatedRefusal] = field(default_factory=list)
    never_reached: list[UnreachedAddress] = field(default_factory=list)
    rejected_senders: list[StatedSender] = field(default_factory=list)
    expected_members: Count = 1
    met_members: Count = 1
    events: list[Event] = field(default_factory=list)
    log: LogSize = field(default_factory=LogSize)
    snapshots: SnapshotCounts = field(default_factory=SnapshotCounts)
    data_bytes: Count = 0
    history: list[HistoryPoint] = field(default_factory=list)
    recent: list[AppliedUpdate] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ObservedReplica:
    """One member as the local replica observes it.

    ``is_reachable``: it returned its status just now. Otherwise ``status`` is the last known one, ``age_s`` old.
    ``is_local``: it is the replica that serves the page.
    ``member``: its entry in the view of the local replica, if there is one.
    ``status_error``: why its status could not be parsed; empty if it could.
    """

    address: str
    is_reachable: bool
    is_local: bool = False
    age_s: float | None = None
    status: Status | None = None
    member: ViewMember | None = None
    status_error: str = ""

    @property
    def replica_id(self) -> str | None:
        """The replica id from its status, or else from the local view."""
        return self.status.replica_id if self.status else self.member.replica_id if self.member else None

    @property
    def clock(self) -> Clock | None:
        """The latest known clock; None if none is known. A clock only grows within one incarnation."""
        acknowledged = self.member.clock if self.member and self.member.replica_id == self.replica_id else {}
        if self.status is None:
            return acknowledged or None
        if self.is_reachable or not acknowledged:
            return self.status.clock
        # The local replica may have exchanged updates with it after the last status: the view has the later clock.
        return join(self.status.clock, acknowledged)

    @property
    def silent_for_s(self) -> float | None:
        """Seconds since the last status or the last exchange, whichever is later; None if there was none."""
        ages_s = [self.age_s, self.member.last_contact_s if self.member else None]
        return min((age_s for age_s in ages_s if age_s is not None), default=None)

    @property
    def status_age_s(self) -> float | None:
        """The age of the last status; if that is about the time of the last sign of life, exactly that time.

        A replica whose status no page has fetched for long may have exchanged updates since.
        """
        age_s, silent_s = self.age_s, self.silent_for_s
        return silent_s if age_s is not None and silent_s is not None and age_s <= silent_s + OLDER_S else age_s

    @property
    def state(self) -> str:
        """One word: the state that it reports (``serving``, ``joining``…), or else its state in the local view.

        ``unreachable``: the view has it as alive, but it did not return its status.
        """
        if self.is_reachable:
            return self.status.state if self.status else "unreadable"
        state = self.member.state if self.member else "unknown"
        return "unreachable" if state == "alive" else state

    @property
    def is_active(self) -> bool:
        """Whether it answered the poll and is serving or joining."""
        return self.is_reachable and self.state in ("serving", "joining")


@dataclass(frozen=True, slots=True)
class AsOf:
    """Which replica made a page, and when. ``time``, ``iso``: UTC."""

    local_address: str
    time: str
    iso: str


@dataclass(frozen=True, slots=True)
class ClusterState:
    """All members, sorted by address. ``wall_us``: when the local replica started to collect their status."""

    local_address: str
    wall_us: int
    replicas: tuple[ObservedReplica, ...] = ()

    @property
    def as_of(self) -> AsOf:
        """The origin and the time that every page shows."""
        return AsOf(self.local_address, time_of_day(self.wall_us), iso(self.wall_us))

    @property
    def open_replicas(self) -> tuple[str, ...]:
        """Addresses of the other replicas that say that they accept requests without any credentials."""
        return tuple(
            replica.address
            for replica in self.replicas
            if replica.is_reachable and not replica.is_local and replica.status and replica.status.open
        )


def parse_cluster(fetched: Mapping[str, Mapping[str, Any]], local_address: str, wall_us: int) -> ClusterState:
    """Return the cluster state from what ``StatusFetcher.fetch_all`` returned.

    ``wall_us``: when the statuses were requested, by the local wall clock.
    """
    local_status, _ = _parse_status(fetched.get(local_address, {}).get("status"))
    members = {member.address: member for member in local_status.view} if local_status else {}
    return ClusterState(
        local_address,
        wall_us,
        tuple(
            _observed(address, result, local_address, members.get(address))
            for address, result in sorted(fetched.items(), key=_natural_order)
        ),
    )


def _natural_order(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """Return a sort key that puts 10.0.0.2 before 10.0.0.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", item[0])]


def _observed(
    address: str, result: Mapping[str, Any], local_address: str, member: ViewMember | None
) -> ObservedReplica:
    status, error = _parse_status(result.get("status"))
    return ObservedReplica(
        address=address,
        is_reachable=bool(result.get("reachable")),
        is_local=address == local_address,
        age_s=result.get("age_s"),
        status=status,
        member=member,
        status_error=error,
    )


# msgspec builds its type information at the first use of a type. If two threads do this at the same time, the process
# crashes. Modules are imported by one thread, so build it here.
msgspec.json.Decoder(Status)


def _parse_status(data: Any) -> tuple[Status | None, str]:
    """Return the status, or None and the error. Both are empty if there are no data."""
    if data is None:
        return None, ""
    try:
        status = msgspec.convert(data, Status)
    except msgspec.ValidationError as exc:
        return None, str(exc)
    return replace(status, view=[member for member in status.view if is_canonical(member.address)]), ""
