"""What a replica knows of one peer, and when it talks to it next.

``known`` is the peer's clock as it told it itself: exact at that time, and a lower bound ever after, because
clocks of one incarnation only grow. It is the acknowledgement: what a peer lacks is what the log has above
``known``. It dies with the incarnation, because a process that started again has lost its memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from store.clock import Clock, merge_into

SMOOTHING = 0.25
"""Weight of the last round trip in their mean."""


@dataclass(frozen=True, slots=True)
class Report:
    """What a peer said of itself in answer to exchange number ``serial`` of this replica.

    ``clock``: its exact clock; ``pending``: of origins that are no present incarnation, the lowest counter
    waiting there; ``membership_digest``: under which register it said so.
    """

    replica: str
    serial: int
    membership_digest: int
    clock: Clock
    pending: Mapping[str, int]


@dataclass(slots=True)
class PeerProgress:
    """One peer, by address. ``replica``: the incarnation that all else here is about; empty: none has talked yet.

    ``told_whole``: whether ``known`` was all of its clock when it last talked (its rest may come next time).
    ``offered``: own counter up to which updates have been sent, acknowledged or not.
    ``in_flight``: serial of the exchange that is under way; 0 when none is.
    ``begun_s``: when the exchange under way began; ``round_trip_s``: how long one takes, smoothed.
    ``paced_until_s``: before that, new writes wait for company. ``next_sync_s``: when the timer calls for an
    exchange; ``piece_due_s``: when the next piece of a snapshot may be asked for; ``told_s``: when it was last told
    who else was heard of (all monotonic seconds).
    ``urgent``: somebody waits for what this peer may have. ``more``: a limit cut the last exchange.
    ``cut_at``: what the peer was known to have when a limit cut what was sent to it; None when none did.
    ``failed``: the last exchange failed, so only the timer calls for the next one (or a new incarnation that talks).
    ``offers_snapshot``: its log does not reach back to this replica, as it said in a reply; ``may_offer``: as it
    said in a request, built on what it believed then: worth asking. ``pulling``: the last thing asked of it was
    a piece of a snapshot.
    """

    address: str
    replica: str = ""
    known: Clock = field(default_factory=dict)
    told_whole: bool = False
    retired_digest: int | None = None
    membership_digest: int = 0
    report: Report | None = None
    offered: int = 0
    in_flight: int = 0
    begun_s: float = 0.0
    round_trip_s: float = 0.0
    paced_until_s: float = 0.0
    next_sync_s: float = 0.0
    piece_due_s: float = 0.0
    told_s: float = float("-inf")
    urgent: bool = False
    more: bool = False
    cut_at: int | None = None
    failed: bool = False
    offers_snapshot: bool = False
    may_offer: bool = False
    pulling: bool = False

    def become(self, replica: str, now_s: float) -> None:
        """Forget what was known of the former incarnation: ``replica``, which has talked, has none of it.

        If the last call failed, it was before this one listened: the next one need not wait for the timer.
        """
        if self.failed:
            self.next_sync_s = min(self.next_sync_s, now_s)
        self.replica = replica
        self.known = {}
        self.told_whole = False
        self.retired_digest = None
        self.membership_digest = 0
        self.report = None
        self.offered = 0
        self.offers_snapshot = False
        self.may_offer = False

    def seen(self) -> int:
        """Return how many updates the peer is known to have."""
        return sum(self.known.values())

    def acknowledge(self, clock: Mapping[str, int]) -> None:
        """Take in a clock that the peer told of itself; old ones, arriving late, change nothing."""
        merge_into(self.known, clock)

    def took(self, now_s: float) -> None:
        """Note that the exchange under way has had its reply."""
        self.round_trip_s += (now_s - self.begun_s - self.round_trip_s) * SMOOTHING

    def due_at(self, own_counter: int, now_s: float) -> float:
        """Return when the next exchange should leave, none being under way (monotonic seconds).

        ``own_counter``: how many updates this replica has issued.
        """
        if self.failed:
            return self.next_sync_s
        if self.urgent or self.more:
            return now_s
        if own_counter > self.offered:
            return min(max(now_s, self.paced_until_s), self.next_sync_s)
        return self.next_sync_s
