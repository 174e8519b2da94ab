"""Recent events of all replicas, latest first.

Several replicas record the same event, such as a member going down, at about the same time. It is listed once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from kvsite.dashboard.cluster_state import ClusterState, Event
from kvsite.dashboard.formatting import ago, iso, listed, short_labels, time_of_day
from store.clock import address_of

MAX_ENTRIES = 15
MERGE_WINDOW_US = 10_000_000
"""Equal records within this time are listed as one event. Replicas record the same event within about ``KV_DOWN_AFTER``
of each other, and each by its own wall clock."""

KINDS = {
    "started": ("busy", "{subject} started"),
    "serving": ("good", "{subject} caught up and is serving with {detail}"),
    "joined": ("good", "{subject} joined the view"),
    "left": ("warn", "{subject} left the view"),
    "added": ("good", "{subject} was added to the view {detail}"),
    "removed": ("warn", "{subject} was removed from the view {detail}"),
    "alias": ("busy", "{subject} is an alias; the replica's own address replaced it in the view"),
    "snapshot": ("busy", "Snapshot received from {subject}: {detail}"),
    "refused": ("warn", "{subject} refuses messages, or is refused: {detail}"),
    "accepted": ("good", "{subject} is not refused any more"),
    "corrected": ("good", "{subject} is accepted again: {detail}"),
    "raised": ("warn", "{subject} raised its incarnation: {detail}"),
    "suspected": ("warn", "{subject} is suspected to be down"),
    "down": ("bad", "{subject} is down"),
    "healed": ("good", "{subject} recovered"),
    "superseded": ("busy", "An incarnation of {subject} was superseded"),
    "lost": ("bad", "Updates of {subject} are unrecoverable: {detail}"),
    "dropped": ("bad", "A pending update of {subject} was dropped: {detail}"),
    "drift": ("warn", "The wall clock of {subject} is behind: {detail}"),
}
"""Event kind (replication/event_log.py) -> tone and sentence. ``{subject}`` is shown as an address."""


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """One event. ``recorded_by``: labels of the replicas that recorded it, as text."""

    time: str
    iso: str
    ago: str
    tone: str
    text: str
    recorded_by: str


@dataclass(frozen=True, slots=True)
class Timeline:
    """The latest events, and how many ``more`` the replicas have."""

    entries: tuple[TimelineEntry, ...]
    more: int


def timeline(cluster: ClusterState) -> Timeline:
    """Return the events of all replicas. Of a replica that is not reachable, these are the last known events."""
    recorded = [
        (replica.address, event) for replica in cluster.replicas if replica.status for event in replica.status.events
    ]
    merged: list[tuple[Event, list[str]]] = []  # Each event as first recorded, and the replicas that recorded it.
    last_index: dict[tuple[str, str, str], int] = {}
    for address, event in sorted(recorded, key=lambda pair: pair[1].wall_us):
        identity = (event.kind, event.subject, event.detail)
        index = last_index.get(identity)
        if index is not None and event.wall_us - merged[index][0].wall_us <= MERGE_WINDOW_US:
            merged[index][1].append(address)
        else:
            last_index[identity] = len(merged)
            merged.append((event, [address]))
    labels = short_labels(replica.address for replica in cluster.replicas)
    latest = reversed(merged[-MAX_ENTRIES:])
    entries = tuple(_entry(event, recorded_by, labels, cluster.wall_us) for event, recorded_by in latest)
    return Timeline(entries, more=max(0, len(merged) - MAX_ENTRIES))


def _entry(event: Event, recorded_by: list[str], labels: Mapping[str, str], now_us: int) -> TimelineEntry:
    tone, sentence = KINDS.get(event.kind, ("busy", ""))
    if sentence:
        text = sentence.format(subject=address_of(event.subject), detail=event.detail)
    else:  # A replica of another version may record kinds that this one does not know.
        text = f"{address_of(event.subject)}: {event.kind} {event.detail}"
    return TimelineEntry(
        time=time_of_day(event.wall_us),
        iso=iso(event.wall_us),
        ago=ago(max(0.0, (now_us - event.wall_us) / 1e6)),
        tone=tone,
        text=text.strip(),
        recorded_by=listed([labels[address] for address in dict.fromkeys(recorded_by)]),
    )
