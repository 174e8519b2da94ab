"""The space-time diagram: the last updates of the cluster, who issued them, and when they arrived where.

A line per replica; time goes to the right, but not evenly: what happens within a millisecond is spread out and an idle
hour is folded, else one would see a heap or nothing. Moments are told by each replica's own wall clock. Where these
disagree, an arrival might seem to come before its cause: it is drawn after it, which is what is certain.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import Applied, AsOf, Dot, Pending, Replica, Snapshot
from kvsite.dashboard.formatting import address_of, iso, named, short_labels, span

MAX_EVENTS = 110
MIN_UPDATES, MAX_UPDATES = 7, 24
MAX_PENDING = 6
"""Pending updates drawn at a replica; how many more there are is told."""

LANE, TOP = 68, 40
LEFT, RIGHT = 24, 110
MIN_STEP, FULL_WIDTH = 30, 1172
HEAD = 7
HUES = 8


@dataclass(frozen=True, slots=True)
class Mark:
    """A point on a replica's line. ``kind``: ``issued``, ``applied`` or ``pending``; ``title``: what it says."""

    kind: str
    x: float
    y: float
    hue: int
    title: str
    label: str = ""


@dataclass(frozen=True, slots=True)
class Arrow:
    """From where an update was issued to where it arrived. ``head``: the points of its tip."""

    x1: float
    y1: float
    x2: float
    y2: float
    hue: int
    head: str
    is_pending: bool = False


@dataclass(frozen=True, slots=True)
class Lane:
    """A replica's line. ``note``: why nothing is known of it, or what does not fit."""

    address: str
    label: str
    hue: int
    y: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """An update in the table. ``cells``: when each replica applied it, in words."""

    update: str
    key: str
    issued: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagram:
    """The picture, and the same as a table. ``as_of``: by whom and when the replicas were asked."""

    as_of: AsOf
    width: float
    height: float
    lanes: tuple[Lane, ...]
    arrows: tuple[Arrow, ...]
    marks: tuple[Mark, ...]
    table: tuple[Line, ...]

    @property
    def end(self) -> float:
        """Where the lines end: now."""
        return self.width - 8

    @property
    def summary(self) -> str:
        """The picture in one sentence."""
        waits = sum(mark.kind == "pending" for mark in self.marks)
        told = f"The last {len(self.table)} updates, at {len(self.lanes)} replicas"
        return f"{told}; {waits} pending. The table below tells the same." if waits else f"{told}."


@dataclass(frozen=True, slots=True)
class _Story:
    """What is known of one update. ``at``: address -> when it was applied there; ``issued_us``: None: not known."""

    dot: Dot
    key: str | None
    issued_us: int | None
    at: Mapping[str, int]
    pending: Mapping[str, Pending]

    @property
    def origin(self) -> str:
        return address_of(self.dot[0])

    @property
    def first_us(self) -> int:
        return self.issued_us if self.issued_us is not None else min(self.at.values(), default=0)


def diagram(snapshot: Snapshot) -> Diagram:
    """Return the picture of ``snapshot``, whose statuses came with their ``recent`` updates."""
    replicas = snapshot.replicas
    labels = short_labels(replica.address for replica in replicas)
    lanes = tuple(_lane(replica, labels, i) for i, replica in enumerate(replicas))
    stories = _chosen(_stories(snapshot), len(replicas))
    places = _places(stories, {lane.address: lane for lane in lanes})
    width = max([x for x, _ in places.values()], default=0.0) + RIGHT
    by_address = {lane.address: lane for lane in lanes}
    marks: list[Mark] = []
    arrows: list[Arrow] = []
    for story in stories:
        hue = by_address[story.origin].hue if story.origin in by_address else HUES - 1
        marks += _marks(story, places, by_address, labels, hue)
        arrows += _arrows(story, places, by_address, hue)
    pending = list(_pending_marks(stories, replicas, by_address, labels, places, width))
    marks += [mark for mark, _ in pending]
    arrows += [arrow for _, arrow in pending if arrow is not None]
    return Diagram(
        as_of=snapshot.as_of,
        width=round(width, 1),
        height=TOP + LANE * max(len(lanes), 1) - 8,
        lanes=lanes,
        arrows=tuple(arrows),
        marks=tuple(marks),
        table=tuple(_line(story, replicas, labels) for story in reversed(stories)),
    )


def _lane(replica: Replica, labels: Mapping[str, str], i: int) -> Lane:
    note = ""
    if not replica.answers:
        note = "no answer"
    elif replica.status is None:
        note = "status cannot be read"
    elif replica.status.pending_count > MAX_PENDING:
        note = f"{replica.status.pending_count:,} pending"
    return Lane(replica.address, labels[replica.address], i % HUES, TOP + LANE * i + LANE / 4, note)


def _stories(snapshot: Snapshot) -> list[_Story]:
    applied: dict[Dot, dict[str, Applied]] = {}
    pending: dict[Dot, dict[str, Pending]] = {}
    for replica in snapshot.replicas:
        if replica.status:
            for each in replica.status.recent:
                applied.setdefault(each.dot, {})[replica.address] = each
            # What was applied stays so; what a replica that does not answer waited for, it may have by now.
            for waiting in replica.status.pending[-MAX_PENDING:] if replica.answers else ():
                pending.setdefault(waiting.dot, {})[replica.address] = waiting
    stories = []
    for dot in {**applied, **pending}:
        at = applied.get(dot, {})
        issued = at.get(address_of(dot[0]))
        waiting_keys = next((waiting.keys for waiting in pending.get(dot, {}).values()), [])
        key = next((each.key for each in at.values()), waiting_keys[0] if waiting_keys else None)
        times = {address: each.wall_us for address, each in at.items()}
        if not times:
            # Its origin cannot be asked: all that is known is since when somebody has been keeping it.
            since_s = max(waiting.since_s for waiting in pending[dot].values())
            stories.append(_Story(dot, key, snapshot.wall_us - round(since_s * 1e6), {}, pending[dot]))
        else:
            stories.append(_Story(dot, key, issued.wall_us if issued else None, times, pending.get(dot, {})))
    return sorted(stories, key=lambda story: (story.first_us, story.dot[1], story.dot))


def _chosen(stories: list[_Story], replicas: int) -> list[_Story]:
    """Return the last of ``stories``: as many as there is room for, those that wait somewhere in any case."""
    room = max(MIN_UPDATES, min(MAX_UPDATES, MAX_EVENTS // max(replicas, 1)))
    last = stories[-room:]
    return [story for story in stories[:-room] if story.pending][-MAX_PENDING:] + last


Places = dict[tuple[Dot, str], tuple[float, float]]


def _places(stories: list[_Story], lanes: Mapping[str, Lane]) -> Places:
    """Return (dot, address) -> where in the picture it was applied."""
    moments = []
    for story in stories:
        for address, wall_us in story.at.items():
            is_issue = address == story.origin
            # Never before its issue, whatever the clocks say.
            at_us = wall_us if is_issue else max(wall_us, story.first_us)
            moments.append((at_us, not is_issue, story.dot[1], story.dot, address))
    places: Places = {}
    last_x: dict[str, float] = {}
    x, before_us = float(LEFT), None
    for at_us, is_arrival, _, dot, address in sorted(moments):
        x += 0.0 if before_us is None else _gap(at_us - before_us)
        before_us = at_us
        if address in last_x:
            x = max(x, last_x[address] + MIN_STEP)
        issued = places.get((dot, address_of(dot[0])))
        at_x = max(x, issued[0] + MIN_STEP) if is_arrival and issued else x
        last_x[address] = at_x
        if address in lanes:
            places[dot, address] = (at_x, lanes[address].y)
    return _spread(places)


def _gap(us: int) -> float:
    """Return how far apart two moments are drawn: ten times as long is a few steps more."""
    return min(60.0, 7 * math.log10(1 + us / 200))


def _spread(places: Places) -> Places:
    """Fill the width of a screen where there is little to show."""
    most = max((x for x, _ in places.values()), default=0.0)
    wanted = FULL_WIDTH - RIGHT
    factor = min(3.0, (wanted - LEFT) / (most - LEFT)) if LEFT < most < wanted else 1.0
    return {place: (round(LEFT + (x - LEFT) * factor, 1), y) for place, (x, y) in places.items()}


def _marks(
    story: _Story, places: Places, lanes: Mapping[str, Lane], labels: Mapping[str, str], hue: int
) -> Iterator[Mark]:
    name, of_key = named(story.dot, labels), _of_key(story.key)
    for address, wall_us in story.at.items():
        if address not in lanes:
            continue
        x, y = places[story.dot, address]
        is_issue = address == story.origin
        did = "issued" if is_issue else f"applied at {labels[address]}"
        title = f"{name}{of_key}: {did} at {_clock_time(wall_us)}"
        yield Mark("issued" if is_issue else "applied", x, y, hue, title, f"{story.dot[1]:,}" if is_issue else "")


def _arrows(story: _Story, places: Places, lanes: Mapping[str, Lane], hue: int) -> Iterator[Arrow]:
    start = places.get((story.dot, story.origin))
    for address in story.at:
        if start is not None and address != story.origin and address in lanes:
            yield _arrow(start, places[story.dot, address], hue)


def _arrow(start: tuple[float, float], end: tuple[float, float], hue: int, *, is_pending: bool = False) -> Arrow:
    """Return an arrow that ends short of the mark it points at."""
    (x1, y1), (x2, y2) = start, end
    length = math.hypot(x2 - x1, y2 - y1) or 1.0
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    tip_x, tip_y = x2 - 6 * ux, y2 - 6 * uy
    back_x, back_y = tip_x - HEAD * ux, tip_y - HEAD * uy
    side_x, side_y = -uy * HEAD * 0.45, ux * HEAD * 0.45
    corners = [(tip_x, tip_y), (back_x + side_x, back_y + side_y), (back_x - side_x, back_y - side_y)]
    head = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return Arrow(round(x1, 1), y1, round(back_x, 1), round(back_y, 1), hue, head, is_pending)


def _pending_marks(
    stories: list[_Story],
    replicas: tuple[Replica, ...],
    lanes: Mapping[str, Lane],
    labels: Mapping[str, str],
    places: Places,
    width: float,
) -> Iterator[tuple[Mark, Arrow | None]]:
    """Yield what waits at each replica, hollow, near the end of its line: now."""
    for replica in replicas:
        waiting = [story for story in stories if replica.address in story.pending]
        for i, story in enumerate(waiting[-MAX_PENDING:]):
            lane = lanes[replica.address]
            hue = lanes[story.origin].hue if story.origin in lanes else HUES - 1
            at = (round(width - RIGHT + 40 + 18 * i - 9 * max(0, len(waiting) - 3), 1), lane.y)
            pending = story.pending[replica.address]
            title = (
                f"{named(story.dot, labels)}{_of_key(story.key)}: pending at {lane.label}, waits for "
                f"{named(pending.waits_for, labels)} since {span(pending.since_s)}"
            )
            start = places.get((story.dot, story.origin))
            yield Mark("pending", *at, hue, title), _arrow(start, at, hue, is_pending=True) if start else None


def _line(story: _Story, replicas: tuple[Replica, ...], labels: Mapping[str, str]) -> Line:
    return Line(
        update=named(story.dot, labels),
        key="not kept" if story.key is None else story.key,
        issued=_clock_time(story.issued_us) if story.issued_us is not None else "unknown",
        cells=tuple(_cell(story, replica, labels) for replica in replicas),
    )


def _cell(story: _Story, replica: Replica, labels: Mapping[str, str]) -> str:
    if replica.status is None:
        return "unknown"
    if replica.address in story.pending:
        return f"pending, waits for {named(story.pending[replica.address].waits_for, labels)}"
    at_us = story.at.get(replica.address)
    if at_us is None:
        # In a snapshot, or before what it remembers.
        if replica.status.clock.get(story.dot[0], 0) >= story.dot[1]:
            return "has it"
        return "not yet" if replica.answers else "unknown"
    if replica.address == story.origin:
        return "issued"
    return _clock_time(at_us) if story.issued_us is None else f"{_after((at_us - story.issued_us) / 1e6)}"


def _after(seconds: float) -> str:
    if seconds < 1:
        return f"{'+' if seconds >= 0 else '−'}{abs(seconds) * 1000:,.0f} ms"
    return f"+{span(seconds)}"


def _of_key(key: str | None) -> str:
    return "" if key is None else f" ({key[:60]})"


def _clock_time(wall_us: int) -> str:
    return iso(wall_us)[11:23]
