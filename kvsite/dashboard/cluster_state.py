"""The cluster at one moment, as one replica could find out: what every page of the dashboard is made from.

``Members.cluster`` asks each one for its status. Members may be of another version, or be something else that
answers on that port: here texts become typed values, once, and what cannot be understood is told as such.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgspec

from kvsite.dashboard.formatting import iso, time_of_day

Clock: TypeAlias = dict[str, int]
Dot: TypeAlias = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Member:
    """What a replica says of a member of its view. ``last_contact_s``: seconds ago; None: never."""

    address: str
    state: str
    replica_id: str | None = None
    last_contact_s: float | None = None
    clock: Clock = field(default_factory=dict)
    missing_updates: int = 0


@dataclass(frozen=True, slots=True)
class Pending:
    """An update that waits for its causal past. ``keys``: the first of them."""

    dot: Dot
    waits_for: Dot
    since_s: float
    keys: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened at a replica. ``wall_us``: by its own wall clock."""

    wall_us: int
    kind: str
    subject: str = ""
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """An update that a replica applied. ``wall_us``: when, by its own clock; ``key``: its first, where it is kept."""

    dot: Dot
    wall_us: int
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Point:
    """A second of a replica's history: ``age_s`` ago; rates are per second, ``pending`` and ``missing`` updates."""

    age_s: float
    reads: float = 0.0
    writes: float = 0.0
    deletes: float = 0.0
    transactions: float = 0.0
    lists: float = 0.0
    applied: float = 0.0
    pending: float = 0.0
    missing: float = 0.0


@dataclass(frozen=True, slots=True)
class Log:
    """How much a replica keeps for peers that lack it."""

    updates: int = 0
    bytes: int = 0


@dataclass(frozen=True, slots=True)
class Status:
    """What a replica says of itself: ``/replication/status``, as far as pages use it. Absent numbers count as 0."""

    replica_id: str
    address: str
    incarnation: str = ""
    uptime_s: float = 0.0
    state: str = "unknown"
    clock: Clock = field(default_factory=dict)
    view: list[Member] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    pending_count: int = 0
    deferred_requests: int = 0
    watchers: int = 0
    keys: int = 0
    conflicts: int = 0
    clock_lead_s: float = 0.0
    throughput: dict[str, float] = field(default_factory=dict)
    memory_bytes: int | None = None
    open: bool = False
    events: list[Event] = field(default_factory=list)
    log: Log = field(default_factory=Log)
    data_bytes: int = 0
    history: list[Point] = field(default_factory=list)
    recent: list[Applied] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Replica:
    """One member as the replica that was asked knows it.

    ``answers``: it answered just now; then ``status`` is of now, else the last known one, ``age_s`` seconds old.
    ``seen``: what the view of the replica that was asked says of it.
    """

    address: str
    answers: bool
    is_asked: bool = False
    age_s: float | None = None
    status: Status | None = None
    seen: Member | None = None
    problem: str = ""

    @property
    def replica_id(self) -> str | None:
        """Its id, by itself or else by the view."""
        return self.status.replica_id if self.status else self.seen.replica_id if self.seen else None

    @property
    def clock(self) -> Clock | None:
        """Its clock when it was last heard; None where nothing is known. Clocks only grow within an incarnation."""
        known = self.seen.clock if self.seen and self.seen.replica_id == self.replica_id else {}
        if self.status is None:
            return known or None
        own = self.status.clock
        if self.answers or not known:
            return own
        # It died after it was last asked: the exchange may have heard a later clock than this page.
        return {id_: max(own.get(id_, 0), known.get(id_, 0)) for id_ in {*own, *known}}

    @property
    def silent_s(self) -> float | None:
        """How long ago anything was heard of it; None: never."""
        signs = [self.age_s, self.seen.last_contact_s if self.seen else None]
        return min((sign for sign in signs if sign is not None), default=None)

    @property
    def state(self) -> str:
        """One word: its own (``serving``, ``joining``…) where it answers, else how the view judges its silence."""
        if self.answers:
            return self.status.state if self.status else "unreadable"
        state = self.seen.state if self.seen else "unknown"
        return "silent" if state == "alive" else state

    @property
    def is_alive(self) -> bool:
        """Whether it answers and belongs."""
        return self.answers and self.state in ("serving", "joining")


@dataclass(frozen=True, slots=True)
class AsOf:
    """Where and when a page was made. ``asked``: the replica that serves it; ``time``, ``iso``: UTC."""

    asked: str
    time: str
    iso: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All members, in the order of their addresses. ``asked``: the replica that this page is served by."""

    asked: str
    wall_us: int
    replicas: tuple[Replica, ...] = ()

    @property
    def as_of(self) -> AsOf:
        """What every page says of itself."""
        return AsOf(self.asked, time_of_day(self.wall_us), iso(self.wall_us))

    @property
    def is_open(self) -> bool:
        """Whether the replica that was asked lets anybody in."""
        return any(replica.is_asked and replica.status and replica.status.open for replica in self.replicas)


def read(cluster: Mapping[str, Mapping[str, Any]], asked: str, wall_us: int) -> Snapshot:
    """Return what ``Members.cluster`` found out. ``asked``: address of the node; ``wall_us``: when, by its clock."""
    own, _ = _status(cluster.get(asked, {}).get("status"))
    seen = {member.address: member for member in own.view} if own else {}
    return Snapshot(
        asked,
        wall_us,
        tuple(
            _replica(address, known, asked, seen.get(address))
            for address, known in sorted(cluster.items(), key=_by_number)
        ),
    )


def _by_number(item: tuple[str, Any]) -> list[tuple[int, str]]:
    """Sort 10.0.0.2 before 10.0.0.10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"([0-9]+)", item[0])]


def _replica(address: str, known: Mapping[str, Any], asked: str, seen: Member | None) -> Replica:
    status, problem = _status(known.get("status"))
    return Replica(
        address=address,
        answers=bool(known.get("reachable")),
        is_asked=address == asked,
        age_s=known.get("age_s"),
        status=status,
        seen=seen,
        problem=problem,
    )


# msgspec builds what it knows of a type at its first use, and two threads doing so at once crash the process: here,
# where modules are imported, there is one.
msgspec.json.Decoder(Status)


def _status(told: Any) -> tuple[Status | None, str]:
    if told is None:
        return None, ""
    try:
        return msgspec.convert(told, Status), ""
    except msgspec.ValidationError as exc:
        return None, str(exc)
