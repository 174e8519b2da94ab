"""The port through which the engine uses replication, and what a write may ask of other members.

The store knows nothing about other replicas. ``replication.replica.Replica`` stands behind the port; a replica without
peers has ``LoneReplica``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from store.clock import Clock, Dot
from store.results import LostUpdates
from store.versions import Update


class WriteConcern(NamedTuple):
    """How many members must have a write before the engine returns (contract 2.7).

    ``members``: a number, ``"majority"`` or ``"all"``. Counts the members in the membership table, reachable or not.
    ``timeout_s``: how long to wait for them.
    """

    members: int | str
    timeout_s: float


class Acks(NamedTuple):
    """Acknowledgements of a write.

    ``members``: how many members are known to have the write, this one included. ``enough``: whether these satisfy the
    write concern.
    """

    members: int
    enough: bool


class Replication(Protocol):
    """The port through which the engine uses replication.

    The engine calls every method under its lock, so none may block.
    """

    def update_issued(self, update: Update) -> None:
        """Wake the peer threads that should send an update that this replica has just issued."""

    def fetch(self, past: Clock) -> int:
        """Fetch the missing part of ``past`` for a request that waits for it.

        Returns a token for ``unrecoverable``. It marks the time of the request.
        """

    def fetch_for_retry(self, past: Clock) -> int:
        """Fetch the missing part of ``past`` for a request that does not wait, so that its retry can succeed.

        Returns a token like ``fetch``. It marks the time of the first request for this past, so that retries together
        count as one long request.
        """

    def unrecoverable(self, past: Clock, token: int) -> LostUpdates:
        """Return the part of ``past`` that no replica has any more.

        Uses only what peers have reported since the time that ``token`` marks.
        """

    def can_report_loss(self, token: int) -> bool:
        """Return whether ``unrecoverable`` may have an answer for a request with ``token``; cheap."""

    def expect_acks(self, dot: Dot, required: int) -> None:
        """Send ``dot``, an update of this replica, at once: a client waits until ``required`` members have it."""

    def ack_counters(self, origin: str) -> Sequence[int]:
        """Return, for each other member, up to which counter of ``origin`` it is known to have applied; ascending."""

    def acks_required(self, write_concern: str) -> int:
        """Return how many acks ``"majority"`` or ``"all"`` requires, given the membership table."""


class LoneReplica:
    """``Replication`` of a replica without peers: nothing can be fetched, and no update is lost elsewhere."""

    def update_issued(self, update: Update) -> None:
        pass

    def fetch(self, past: Clock) -> int:
        return 0

    def fetch_for_retry(self, past: Clock) -> int:
        return 0

    def unrecoverable(self, past: Clock, token: int) -> LostUpdates:
        return {}

    def can_report_loss(self, token: int) -> bool:
        return False

    def expect_acks(self, dot: Dot, required: int) -> None:
        pass

    def ack_counters(self, origin: str) -> Sequence[int]:
        return ()

    def acks_required(self, write_concern: str) -> int:
        return 1
