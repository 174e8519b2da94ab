"""The event log (replication/event_log.py)."""

from __future__ import annotations

import pytest

from replication.event_log import DRIFT_US, MAX_EVENTS, EventLog
from replication.membership import Membership
from replication.messages import MembershipEntry
from replication.settings import ReplicationSettings
from store.causal import CausalStore
from store.clock import Instant, replica_id

ME, OTHER = "a:1", "b:1"
SETTINGS = ReplicationSettings(down_after_s=3.0)


class Watched:
    """An event log, with the membership and store that it observes."""

    def __init__(self) -> None:
        self.event_log = EventLog()
        self.membership = Membership(ME, SETTINGS)
        self.membership.start(1, 0)
        self.membership.add_replica_from_view(OTHER, 0, 0.0)
        self.store = CausalStore(replica_id(ME, 1))

    def observe(self, mono_s: float) -> list[tuple[str, str, str]]:
        """Observe once; return the new events: kind, subject, detail."""
        before = self.event_log.events[-1].number if self.event_log.events else 0
        self.event_log.observe(self.membership, self.store, Instant(mono_s, 0))
        return [event[2:] for event in self.event_log.events if event.number > before]


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_a_change_of_a_members_state_is_recorded_once(watched: Watched) -> None:
    assert watched.observe(0.0) == []
    assert watched.observe(SETTINGS.suspect_after_s) == [("suspected", OTHER, "")]
    assert watched.observe(SETTINGS.suspect_after_s + 0.1) == []
    assert watched.observe(3.0) == [("down", OTHER, "")]
    watched.membership.merge({OTHER: MembershipEntry(7, 1, belongs=True)})
    watched.membership.liveness.hear(replica_id(OTHER, 7), 1, 3.5)
    assert watched.observe(3.5) == [("healed", OTHER, "")]
    assert watched.observe(3.6) == []


def test_many_reports_of_the_same_gap_make_one_event(watched: Watched) -> None:
    for _ in range(3):
        watched.event_log.record_unrecoverable({"b:1@0000000000000007": (3, 5)})
    assert watched.observe(0.0) == [("lost", "b:1@0000000000000007", "updates 3 to 5")]
    assert watched.observe(0.1) == []


def test_drift_is_recorded_each_time_the_lead_grows_by_a_second(watched: Watched) -> None:
    kinds = []
    for lead_us in (DRIFT_US, DRIFT_US + 1, 2 * DRIFT_US, 2 * DRIFT_US + 2):
        watched.store.hybrid_clock.lead_us = lead_us
        kinds.append([kind for kind, _, _ in watched.observe(0.0)])
    assert kinds == [[], ["drift"], [], ["drift"]]


def test_event_numbers_count_all_events_ever_recorded() -> None:
    event_log = EventLog()
    for index in range(MAX_EVENTS + 3):
        event_log.record("started", str(index), "", Instant(0.0, index))
    assert len(event_log.events) == MAX_EVENTS
    assert (event_log.events[0].number, event_log.events[0].subject) == (4, "3")
    assert event_log.events[-1] == (MAX_EVENTS + 3, MAX_EVENTS + 2, "started", str(MAX_EVENTS + 2), "")
