"""The space-time diagram: the latest updates, where they were issued, and when each replica applied them.

There is one horizontal lane per replica. Time runs to the right, but not to scale: events within a millisecond are
spread out and idle periods are compressed, or the diagram would show a heap of marks. Times come from each replica's
own wall clock. If the clocks disagree, an update may seem to be applied before it was issued. The diagram then draws
it after its issue, because that order is certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import AppliedUpdate, AsOf, ClusterState, ObservedReplica, PendingUpdate
from kvsite.dashboard.formatting import short_labels, span, time_of_day_ms, update_name, update_query
from store.clock import Dot, address_of

MAX_MARKS = 110
"""The more replicas, the fewer updates are drawn, so that the diagram has about this many marks at most."""

MIN_UPDATES, MAX_UPDATES = 7, 24
"""Bounds of the number of updates that are drawn."""

MAX_PENDING = 6
"""Pending updates drawn per replica. If there are more, a note on the lane shows their total number."""

# Sizes in pixels.
LANE_HEIGHT, TOP, AXIS_HEIGHT = 68, 40, 12
TICK_DISTANCE, HALF_LABEL = 120, 42
LEFT, RIGHT = 24, 110
MIN_STEP, FULL_WIDTH = 30, 1172
ARROW_HEAD = 7

HUES = 8
"""Number of colours (dashboard.css)."""

Positions = dict[tuple[Dot, str], tuple[float, float]]
"""(dot, address) -> where the diagram shows that the replica at this address applied the update."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A point on a lane. ``kind``: ``issued``, ``applied`` or ``pending``; ``title``: its tooltip.

    ``query``: query string of the page of its update.
    """

    kind: str
    x: float
    y: float
    hue: int
    title: str
    query: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """From the mark where an update was issued to the mark where it arrived. ``head``: the corners of its tip."""

    x1: float
    y1: float
    x2: float
    y2: float
    hue: int
    head: str
    is_pending: bool = False


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment on the axis: where it is, and the time of day (UTC)."""

    x: float
    label: str

    @property
    def label_x(self) -> float:
        """The centre of the label, which must not begin to the left of the diagram."""
        return max(self.x, HALF_LABEL)


@dataclass(frozen=True, slots=True)
class Lane:
    """The lane of a replica.

    ``note``: why data are missing, or the total number of pending updates if not all of them are drawn.
    """

    address: str
    label: str
    hue: int
    y: float
    note: str = ""
    is_reachable: bool = True


@dataclass(frozen=True, slots=True)
class UpdateRow:
    """An update in the table. ``key``: None if not known; ``cells``: for each replica when it applied the update.

    ``query``: query string of its page.
    """

    update: str
    query: str
    key: str | None
    issued: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagram:
    """The diagram, and the same data as a table."""

    as_of: AsOf
    width: float
    height: float
    lanes: tuple[Lane, ...]
    arrows: tuple[Arrow, ...]
    marks: tuple[Mark, ...]
    ticks: tuple[Tick, ...]
    table: tuple[UpdateRow, ...]

    @property
    def end_x(self) -> float:
        """Where the lanes end, which is the present."""
        return self.width - 8

    @property
    def axis_y(self) -> float:
        """Where the lines of the ticks end, above their labels."""
        return self.height - 20

    @property
    def summary(self) -> str:
        """The diagram in one sentence, for screen readers."""
        pending = sum(mark.kind == "pending" for mark in self.marks)
        shown = f"The last {len(self.table)} updates at {len(self.lanes)} replicas"
        return f"{shown}; {pending} pending. The table below shows the same data." if pending else f"{shown}."


@dataclass(frozen=True, slots=True)
class _UpdateTrace:
    """What is known about one update.

    ``issued_us``: when its origin issued it; None if its origin does not report it.
    ``applied_us``: address -> when that replica applied it, the origin included.
    ``pending``: address -> the entry in that replica's pending queue.
    """

    dot: Dot
    key: str | None
    issued_us: int | None
    applied_us: Mapping[str, int]
    pending: Mapping[str, PendingUpdate]

    @property
    def origin(self) -> str:
        return address_of(self.dot[0])

    @property
    def first_us(self) -> int:
        return self.issued_us if self.issued_us is not None else min(self.applied_us.values(), default=0)


def diagram(cluster: ClusterState, known_keys: Mapping[Dot, str] | None = None) -> Diagram:
    """Return the diagram of ``cluster``. The statuses must include their ``recent`` updates.

    ``known_keys``: first keys of updates that the replicas do not report any more (``KeyMemory``).
    """
    replicas = cluster.replicas
    labels = short_labels(replica.address for replica in replicas)
    lanes = {replica.address: _lane(replica, labels, i) for i, replica in enumerate(replicas)}
    traces = _selected(_traces(cluster, known_keys or {}), len(replicas))
    positions = _positions(traces, lanes)
    width = max([x for x, _ in positions.values()], default=0.0) + RIGHT
    marks: list[Mark] = []
    arrows: list[Arrow] = []
    for trace in traces:
        hue = _hue(trace, lanes)
        marks += _marks(trace, positions, lanes, labels, hue)
        arrows += _arrows(trace, positions, lanes, hue)
    for mark, arrow in _pending_marks(traces, lanes, labels, positions, width):
        marks.append(mark)
        if arrow is not None:
            arrows.append(arrow)
    return Diagram(
        as_of=cluster.as_of,
        width=round(width, 1),
        height=TOP + LANE_HEIGHT * max(len(lanes), 1) + AXIS_HEIGHT,
        lanes=tuple(lanes.values()),
        arrows=tuple(arrows),
        marks=tuple(marks),
        ticks=tuple(_ticks(traces, positions)),
        table=tuple(_update_row(trace, replicas, labels) for trace in reversed(traces)),
    )


def _lane(replica: ObservedReplica, labels: Mapping[str, str], i: int) -> Lane:
    note = ""
    if not replica.is_reachable:
        note = "no response"
    elif replica.status is None:
        note = "invalid status"
    elif replica.status.pending_count > MAX_PENDING:
        note = f"{replica.status.pending_count:,} pending"
    return Lane(
        address=replica.address,
        label=labels[replica.address],
        hue=i % HUES,
        y=TOP + LANE_HEIGHT * i + LANE_HEIGHT / 4,
        note=note,
        is_reachable=replica.is_reachable,
    )


def _hue(trace: _UpdateTrace, lanes: Mapping[str, Lane]) -> int:
    return lanes[trace.origin].hue if trace.origin in lanes else HUES - 1


def _traces(cluster: ClusterState, known_keys: Mapping[Dot, str]) -> list[_UpdateTrace]:
    """Return what is known about each recent or pending update, oldest first."""
    applied: dict[Dot, dict[str, AppliedUpdate]] = {}
    pending: dict[Dot, dict[str, PendingUpdate]] = {}
    for replica in cluster.replicas:
        if replica.status:
            for update in replica.status.recent:
                applied.setdefault(update.dot, {})[replica.address] = update
            # An applied update stays applied. A pending one may have been applied since a replica last responded, so
            # the pending queue of an unreachable replica is not drawn.
            for waiting in replica.status.pending[-MAX_PENDING:] if replica.is_reachable else ():
                pending.setdefault(waiting.dot, {})[replica.address] = waiting
    traces = [
        _trace(dot, applied.get(dot, {}), pending.get(dot, {}), cluster.wall_us, known_keys.get(dot))
        for dot in {**applied, **pending}
    ]
    return sorted(traces, key=lambda trace: (trace.first_us, trace.dot[1], trace.dot))


def _trace(
    dot: Dot,
    applied: Mapping[str, AppliedUpdate],
    pending: Mapping[str, PendingUpdate],
    now_us: int,
    known_key: str | None,
) -> _UpdateTrace:
    reported = [*(update.key for update in applied.values()), *(key for each in pending.values() for key in each.keys)]
    key = next((key for key in reported if key is not None), known_key)
    if applied:
        issued = applied.get(address_of(dot[0]))
        applied_us = {address: update.wall_us for address, update in applied.items()}
        return _UpdateTrace(dot, key, issued.wall_us if issued else None, applied_us, pending)
    # The origin is unreachable and nobody has applied the update. It was issued before it became pending anywhere.
    longest_s = max(waiting.since_s for waiting in pending.values())
    return _UpdateTrace(dot, key, now_us - round(longest_s * 1e6), {}, pending)


def _selected(traces: list[_UpdateTrace], replicas: int) -> list[_UpdateTrace]:
    """Return the last traces, as many as fit, and before them older updates that are pending somewhere."""
    limit = max(MIN_UPDATES, min(MAX_UPDATES, MAX_MARKS // max(replicas, 1)))
    return [trace for trace in traces[:-limit] if trace.pending][-MAX_PENDING:] + traces[-limit:]


def _ticks(traces: list[_UpdateTrace], positions: Positions) -> Iterator[Tick]:
    """Yield times along the axis, not closer than ``TICK_DISTANCE``: the axis is not to scale, so it needs them.

    A time is that of a mark. A mark that was moved behind its issue, because a wall clock is wrong, has none.
    """
    moments = sorted(
        (positions[trace.dot, address][0], wall_us)
        for trace in traces
        for address, wall_us in trace.applied_us.items()
        if (trace.dot, address) in positions and wall_us >= trace.first_us
    )
    last_x, last_us = -math.inf, 0
    for x, wall_us in moments:
        if x - last_x >= TICK_DISTANCE and wall_us >= last_us:
            yield Tick(x, time_of_day_ms(wall_us))
            last_x, last_us = x, wall_us


def _positions(traces: list[_UpdateTrace], lanes: Mapping[str, Lane]) -> Positions:
    moments = []
    for trace in traces:
        for address, wall_us in trace.applied_us.items():
            is_issue = address == trace.origin
            # Never before the issue, whatever the wall clocks say.
            at_us = wall_us if is_issue else max(wall_us, trace.first_us)
            moments.append((at_us, not is_issue, trace.dot[1], trace.dot, address))
    positions: Positions = {}
    last_x: dict[str, float] = {}
    x, previous_us = float(LEFT), None
    for at_us, is_arrival, _, dot, address in sorted(moments):
        x += 0.0 if previous_us is None else _gap(at_us - previous_us)
        previous_us = at_us
        if address in last_x:
            x = max(x, last_x[address] + MIN_STEP)
        issued = positions.get((dot, address_of(dot[0])))
        mark_x = max(x, issued[0] + MIN_STEP) if is_arrival and issued else x
        last_x[address] = mark_x
        if address in lanes:
            positions[dot, address] = (mark_x, lanes[address].y)
    return _stretched(positions)


def _gap(us: int) -> float:
    """Return the distance between two moments. It grows with the logarithm of the time between them."""
    return min(60.0, 7 * math.log10(1 + us / 200))


def _stretched(positions: Positions) -> Positions:
    """Stretch a short diagram towards the full width."""
    max_x = max((x for x, _ in positions.values()), default=0.0)
    full_x = FULL_WIDTH - RIGHT
    factor = min(3.0, (full_x - LEFT) / (max_x - LEFT)) if LEFT < max_x < full_x else 1.0
    return {place: (round(LEFT + (x - LEFT) * factor, 1), y) for place, (x, y) in positions.items()}


def _marks(
    trace: _UpdateTrace, positions: Positions, lanes: Mapping[str, Lane], labels: Mapping[str, str], hue: int
) -> Iterator[Mark]:
    name, key_suffix = update_name(trace.dot, labels), _key_suffix(trace.key)
    for address, wall_us in trace.applied_us.items():
        if address not in lanes:
            continue
        x, y = positions[trace.dot, address]
        is_issue = address == trace.origin
        action = "issued" if is_issue else f"applied at {labels[address]}"
        title = f"{name}{key_suffix}: {action} at {time_of_day_ms(wall_us)}"
        label = f"{trace.dot[1]:,}" if is_issue else ""
        yield Mark("issued" if is_issue else "applied", x, y, hue, title, update_query(trace.dot), label)


def _arrows(trace: _UpdateTrace, positions: Positions, lanes: Mapping[str, Lane], hue: int) -> Iterator[Arrow]:
    start = positions.get((trace.dot, trace.origin))
    for address in trace.applied_us:
        if start is not None and address != trace.origin and address in lanes:
            yield _arrow(start, positions[trace.dot, address], hue)


def _arrow(start: tuple[float, float], end: tuple[float, float], hue: int, *, is_pending: bool = False) -> Arrow:
    """Return an arrow that ends just before the mark that it points at."""
    (x1, y1), (x2, y2) = start, end
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    tip_x, tip_y = x2 - 6 * ux, y2 - 6 * uy
    back_x, back_y = tip_x - ARROW_HEAD * ux, tip_y - ARROW_HEAD * uy
    side_x, side_y = -uy * ARROW_HEAD * 0.45, ux * ARROW_HEAD * 0.45
    corners = [(tip_x, tip_y), (back_x + side_x, back_y + side_y), (back_x - side_x, back_y - side_y)]
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return Arrow(round(x1, 1), y1, round(back_x, 1), round(back_y, 1), hue, head, is_pending)


def _pending_marks(
    traces: list[_UpdateTrace],
    lanes: Mapping[str, Lane],
    labels: Mapping[str, str],
    positions: Positions,
    width: float,
) -> Iterator[tuple[Mark, Arrow | None]]:
    """Yield a mark near the end of the lane for each pending update, with an arrow from its issue if that is drawn."""
    for address, lane in lanes.items():
        pending_here = [trace for trace in traces if address in trace.pending]
        for i, trace in enumerate(pending_here[-MAX_PENDING:]):
            hue = _hue(trace, lanes)
            place = (round(width - RIGHT + 40 + 18 * i - 9 * max(0, len(pending_here) - 3), 1), lane.y)
            pending = trace.pending[address]
            title = (
                f"{update_name(trace.dot, labels)}{_key_suffix(trace.key)}: pending at {lane.label} for "
                f"{span(pending.since_s)}, waits for {update_name(pending.waits_for, labels)}"
            )
            start = positions.get((trace.dot, trace.origin))
            mark = Mark("pending", *place, hue, title, update_query(trace.dot))
            yield mark, _arrow(start, place, hue, is_pending=True) if start else None


def _update_row(trace: _UpdateTrace, replicas: tuple[ObservedReplica, ...], labels: Mapping[str, str]) -> UpdateRow:
    return UpdateRow(
        update=update_name(trace.dot, labels),
        query=update_query(trace.dot),
        key=trace.key,
        issued=time_of_day_ms(trace.issued_us) if trace.issued_us is not None else "unknown",
        cells=tuple(_cell(trace, replica, labels) for replica in replicas),
    )


def _cell(trace: _UpdateTrace, replica: ObservedReplica, labels: Mapping[str, str]) -> str:
    if replica.status is None:
        return "unknown"
    if replica.address in trace.pending:
        return f"pending, waits for {update_name(trace.pending[replica.address].waits_for, labels)}"
    applied_us = trace.applied_us.get(replica.address)
    if applied_us is None:
        # The clock may cover an update whose time is not known: it came in a snapshot, or is not a recent one there.
        if replica.status.clock.get(trace.dot[0], 0) >= trace.dot[1]:
            return "has it"
        return "not yet" if replica.is_reachable else "unknown"
    if replica.address == trace.origin:
        return "issued"
    return time_of_day_ms(applied_us) if trace.issued_us is None else _delay((applied_us - trace.issued_us) / 1e6)


def _delay(seconds: float) -> str:
    if seconds < 1:
        return f"{'+' if seconds >= 0 else '−'}{abs(seconds) * 1000:,.0f} ms"
    return f"+{span(seconds)}"


def _key_suffix(key: str | None) -> str:
    return "" if key is None else f" ({key[:60]})"
