"""Event log: state changes of a replica and its peers, for operators. The protocol does not read it.

Events appear in ``/replication/status``, on the dashboard and in the log. These are all kinds:

==============  ==============  ======================================================================================
kind            subject         meaning
==============  ==============  ======================================================================================
``started``     own replica id  The process has created its replica, which begins to join.
``serving``     own replica id  The replica has caught up and serves clients. Detail: its number of keys.
``raised``      own replica id  The replica took a higher incarnation: the cluster knew a higher one of its address, or
                                an old removal, or had forgotten the address.
``drift``       own replica id  The wall clock is behind the fastest peer's clock. Detail: by how many seconds.
``snapshot``    sender's id     The replica joined a snapshot: it was too far behind for the log. Detail: keys.
``added``       address         PUT /view at this replica added the address to the membership table.
``removed``     address         DELETE /view or the shutdown of this replica removed the address, known or not.
``alias``       address         PUT /view had named an alias. The own address of that replica has replaced it.
``joined``      address         A peer's table brought a member or its new incarnation. Detail: the incarnation.
``left``        address         A peer's table removed the address. Detail: the incarnation.
``superseded``  previous id     A new incarnation sends messages under the address of a peer. Detail: its id.
``refused``     address         A live replica refuses this one, or is refused by it. Detail: why, and what to do.
``accepted``    address         The refusal is over: the two replicas exchange.
``corrected``   own replica id  Its wall clock was far ahead and has been set right. It has taken a new incarnation.
``suspected``   address         The member has been silent for ``suspect_after_s``.
``down``        address         The member has been silent for ``silent_after_s`` and has left the view.
``healed``      address         A suspected or down member was heard from again.
``lost``        origin's id     Clients depend on unrecoverable updates. Detail: first and last counter.
``dropped``     origin's id     A pending update was dropped: it depends on an unrecoverable one.
==============  ==============  ======================================================================================
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from replication.membership import Membership
from store.causal import CausalStore
from store.clock import Instant
from store.results import LostUpdates

MAX_EVENTS = 500
"""The event log keeps this many events and forgets older ones."""

DRIFT_US = 1_000_000
"""A ``drift`` event is recorded each time the hybrid clock's lead over the wall clock has grown by this much."""


class Event(NamedTuple):
    """One event. The status API shows it with these field names.

    ``number`` counts from 1, without gaps. ``wall_us``: this replica's wall clock, Unix time in microseconds.
    ``kind`` and ``subject``: see above. ``detail``: further text, may be empty.
    """

    number: int
    wall_us: int
    kind: str
    subject: str
    detail: str


class EventLog:
    """The last ``MAX_EVENTS`` events of one replica. Not thread-safe."""

    def __init__(self) -> None:
        self.events: deque[Event] = deque(maxlen=MAX_EVENTS)
        """Oldest first; their numbers are consecutive."""
        self._states: dict[str, str] = {}
        """Other members' states at the last ``observe``: address -> ``alive``, ``suspect`` or ``down``."""
        self._unrecoverable: LostUpdates = {}
        """Gaps that were found since the last ``observe``."""
        self._reported_lead_us = 0
        """The hybrid clock's lead when the last ``drift`` event was recorded."""

    def record(self, kind: str, subject: str, detail: str, now: Instant) -> None:
        """Append one event."""
        number = self.events[-1].number + 1 if self.events else 1
        self.events.append(Event(number, now.wall_us, kind, subject, detail))

    def record_unrecoverable(self, gaps: LostUpdates) -> None:
        """Remember unrecoverable gaps for the next ``observe``.

        Every request that depends on them finds the same gaps; collecting them first makes one event of all.
        """
        self._unrecoverable.update(gaps)

    def observe(self, membership: Membership, store: CausalStore, now: Instant) -> None:
        """Record changes since the last call: of members' states, unrecoverable gaps and clock drift."""
        states = {address: membership.state(address, now.mono_s) for address in membership.table.others}
        for address, state in states.items():
            if state != self._states.get(address, "alive"):
                self.record({"alive": "healed", "suspect": "suspected", "down": "down"}[state], address, "", now)
        self._states = states
        for origin, (first, last) in self._unrecoverable.items():
            self.record("lost", origin, f"updates {first} to {last}", now)
        self._unrecoverable = {}
        lead_us = store.hybrid_clock.lead_us
        if lead_us > self._reported_lead_us + DRIFT_US:
            self._reported_lead_us = lead_us
            self.record("drift", store.replica_id, f"{lead_us / 1e6:.1f} s behind the fastest peer", now)
