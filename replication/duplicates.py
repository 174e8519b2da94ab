"""Duplicate addresses: whether another live process uses this replica's address. Pure.

Two processes under one address would take higher incarnations in turn for ever, and peers would exchange with one and
hear from the other. One of them has to stop. But a message proves nothing about that: anybody may send one in the name
of any process. So a message only starts a *check*, and the address itself decides: this replica sends exchanges to its
own address, through the network, and looks at who answers.

    the answer is from                             so
    this process                                   the address leads here: the check ends
    another process with a higher incarnation      this process stops
    another process with a lower incarnation       it stops by the same rule; if the address still leads to it after
                                                   ``down_after_s``, and never here: this process cannot be reached,
                                                   and stops
    nobody, for ``down_after_s``                   the check ends

An answer has to come from a process that is alive and that the address leads to. A reply cannot be forged without
control of the network; with a cluster secret, not even then.

While a check runs, the membership table's entry of this address stays as it is: taking over a higher incarnation would
make this process raise its own, and the two would do so in turn. The next exchange brings the entry again. After a
check, no other one starts for ``down_after_s``. So the process at the address takes over the entry then, raises its
incarnation above the other one, and becomes the higher one of the two; a process that is elsewhere sees that and stops.
And no sender can keep this replica from raising its incarnation.

A check starts when another incarnation of this address

* answers a request of this process, sent to any address; or
* is the sender of a request, unless it may be a late message of this process's predecessor; or
* is above this one, and a peer heard of it after this process started.

A lower incarnation may be a predecessor, and a report an old one, for ``down_after_s`` after the start.
"""

from __future__ import annotations

from replication.errors import DuplicateAddress
from replication.settings import ReplicationSettings
from store.clock import incarnation_of


class DuplicateCheck:
    """The check of one replica at ``address``. Not thread-safe. Times: monotonic seconds.

    ``is_running``: whether to send exchanges to the own address. ``is_lost``: the address belongs to another process,
    and this one has to stop.
    """

    def __init__(self, address: str, settings: ReplicationSettings, started_s: float) -> None:
        self.is_running = False
        self.is_lost = False
        self._address = address
        self._settings = settings
        self._started_s = started_s
        self._quiet_until_s = float("-inf")
        """No check starts before."""
        self._last_answer_s = 0.0
        """When another process last answered, or when the check began."""
        self._other_since_s: float | None = None
        """Since when only processes with a lower incarnation have answered; None if none has."""

    def suspect(self, replica: str, own_id: str, now_s: float) -> None:
        """Start a check: ``replica``, an id with this address, has answered a request of this process."""
        if replica != own_id and not self.is_running and now_s >= self._quiet_until_s:
            self.is_running = True
            self._last_answer_s = now_s
            self._other_since_s = None

    def suspect_sender(self, replica: str, own_id: str, now_s: float) -> None:
        """Like ``suspect``, for the sender of a request."""
        if incarnation_of(replica) > incarnation_of(own_id) or self._is_after_predecessor(now_s):
            self.suspect(replica, own_id, now_s)

    def suspect_reported(self, replica: str, own_id: str, heard_at_s: float, now_s: float) -> None:
        """Like ``suspect``, for an id that a peer heard of at ``heard_at_s``."""
        if incarnation_of(replica) > incarnation_of(own_id) and self._is_after_predecessor(heard_at_s):
            self.suspect(replica, own_id, now_s)

    def answered(self, replica: str, own_id: str, now_s: float) -> None:
        """Take an answer from this replica's own address. Raises DuplicateAddress if this process has to stop."""
        if not self.is_running:
            return
        if replica == own_id:
            self._end(now_s)
            return
        if self._other_since_s is None:
            self._other_since_s = now_s
        self._last_answer_s = now_s
        if incarnation_of(replica) >= incarnation_of(own_id):
            self.is_lost = True
            raise DuplicateAddress(f"another process ({replica}) uses the address {self._address}")
        if now_s - self._other_since_s >= self._settings.down_after_s:
            self.is_lost = True
            raise DuplicateAddress(
                f"the address {self._address} leads to another process ({replica}), and not to this one"
            )

    def expire(self, now_s: float) -> None:
        """End the check if nobody has answered for ``down_after_s``; called often."""
        if self.is_running and now_s - self._last_answer_s >= self._settings.down_after_s:
            self._end(now_s)

    def _is_after_predecessor(self, at_s: float) -> bool:
        return at_s > self._started_s + self._settings.down_after_s

    def _end(self, now_s: float) -> None:
        self.is_running = False
        self._quiet_until_s = now_s + self._settings.down_after_s
