"""What has become of a replica and of those around it, for people to read. Nothing is decided by it."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from replication.membership import Membership
from store.causal import CausalStore, Gaps
from store.clock import Instant

EVENTS_KEPT = 500
"""Older ones are forgotten."""

DRIFT_US = 1_000_000
"""A lead of hybrid time over the own wall clock that grew by so much is worth telling."""


class Event(NamedTuple):
    """Something that people want to know of. ``number``: from 1 on; ``wall_us``: when; ``kind``: one word."""

    number: int
    wall_us: int
    kind: str
    subject: str
    detail: str


class EventLog:
    """The last events of one replica, numbered by how many there ever were."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT)
        self._states: dict[str, str] = {}
        self._lost: Gaps = {}
        self._lead_us = 0

    def record(self, kind: str, subject: str, detail: str, now: Instant) -> None:
        """Note one event."""
        number = self.events[-1].number + 1 if self.events else 1
        self.events.append(Event(number, now.wall_us, kind, subject, detail))

    def record_unrecoverable(self, lost: Gaps) -> None:
        """Note updates that are lost for good. Every request that needs them finds out: one event tells of all."""
        self._lost.update(lost)

    def observe(self, view: Membership, store: CausalStore, now: Instant) -> None:
        """Note what has become of the members, of clients' pasts and of the clocks since the last look."""
        states = {address: view.state(address, now.mono_s) for address in view.others()}
        for address, state in states.items():
            if state != self._states.get(address, "alive"):
                self.record({"alive": "healed", "suspect": "suspected", "down": "down"}[state], address, "", now)
        self._states = states
        for replica, (first, last) in self._lost.items():
            self.record("lost", replica, f"updates {first} to {last}", now)
        self._lost = {}
        lead_us = store.hybrid.lead_us
        if lead_us > self._lead_us + DRIFT_US:
            self._lead_us = lead_us
            self.record("drift", store.replica_id, f"{lead_us / 1e6:.1f} s behind the fastest heard", now)
