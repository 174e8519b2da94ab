"""Recent events of all replicas, latest first. What several of them noted at about the same time is told once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import Event, Snapshot
from kvsite.dashboard.formatting import address_of, ago, iso, listed, short_labels, time_of_day

MAX_SHOWN = 15
TOGETHER_US = 10_000_000
"""One event is noted by several replicas within a down time or so, each by its own wall clock."""

# kind -> tone, sentence. {who}: the subject's address; {detail}: what the replica adds.
KINDS = {
    "started": ("busy", "{who} started"),
    "serving": ("good", "{who} caught up and serves, holding {detail}"),
    "joined": ("good", "{who} joined the view"),
    "left": ("warn", "{who} left the view"),
    "added": ("good", "{who} was added to the view {detail}"),
    "removed": ("warn", "{who} was removed from the view {detail}"),
    "snapshot": ("busy", "Snapshot taken over from {who}: {detail}"),
    "raised": ("warn", "{who} took a higher incarnation: {detail}"),
    "suspected": ("warn", "{who} is suspected to be down"),
    "down": ("bad", "{who} is down"),
    "healed": ("good", "{who} is reachable again"),
    "superseded": ("busy", "An incarnation of {who} is over"),
    "lost": ("bad", "Causal past lost with {who}: {detail}"),
    "dropped": ("bad", "An update of {who} was dropped: {detail}"),
    "drift": ("warn", "The clock of {who} is off: {detail}"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One line. ``noted_by``: addresses; ``by``: the same in words."""

    wall_us: int
    time: str
    iso: str
    ago: str
    tone: str
    text: str
    noted_by: tuple[str, ...]
    by: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The latest events, and how many ``more`` replicas remember."""

    entries: tuple[Entry, ...]
    more: int


def timeline(snapshot: Snapshot) -> Timeline:
    """Return the events that the replicas remember, of those that do not answer the last known ones."""
    noted = [
        (replica.address, event) for replica in snapshot.replicas if replica.status for event in replica.status.events
    ]
    # In the order of their first noting: each event, and who noted it.
    told: list[tuple[Event, list[str]]] = []
    last_of: dict[tuple[str, str, str], int] = {}
    for address, event in sorted(noted, key=lambda pair: pair[1].wall_us):
        same = (event.kind, event.subject, event.detail)
        at = last_of.get(same)
        if at is not None and event.wall_us - told[at][0].wall_us <= TOGETHER_US:
            told[at][1].append(address)
        else:
            last_of[same] = len(told)
            told.append((event, [address]))
    labels = short_labels(replica.address for replica in snapshot.replicas)
    latest = (_entry(event, noted_by, labels, snapshot.wall_us) for event, noted_by in reversed(told[-MAX_SHOWN:]))
    return Timeline(tuple(latest), more=max(0, len(told) - MAX_SHOWN))


def _entry(event: Event, noted_by: list[str], labels: Mapping[str, str], now_us: int) -> Entry:
    tone, sentence = KINDS.get(
        event.kind, ("busy", "{who}: " + event.kind.replace("{", "").replace("}", "") + " {detail}")
    )
    text = sentence.format(who=address_of(event.subject), detail=event.detail).strip()
    return Entry(
        wall_us=event.wall_us,
        time=time_of_day(event.wall_us),
        iso=iso(event.wall_us),
        ago=ago(max(0.0, (now_us - event.wall_us) / 1e6)),
        tone=tone,
        text=text,
        noted_by=tuple(noted_by),
        by=listed([labels[address] for address in dict.fromkeys(noted_by)]),
    )
