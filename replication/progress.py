"""The progress of one peer: what it has acknowledged, and when to send the next exchange.

A peer is in one of four states:

* ``UNKNOWN``: no incarnation at its address has sent us anything yet. We do not know which updates it lacks, so we ask
  and send no updates.
* ``EXCHANGING``: exchanges go out at once when there is something to send, and by the timer otherwise.
* ``FAILED``: the last request brought no reply. Only the timer sends the next one, and updates that were sent before
  do not count as in flight. (No incarnation may be known here either.)
* ``PULLING``: we pull a snapshot from this peer. Requests for pieces take turns with exchanges that are due.

    from        event                                       to
    UNKNOWN     an incarnation's message is accepted        EXCHANGING
    EXCHANGING  a piece of a snapshot is requested          PULLING
    PULLING     the snapshot is complete, or given up       EXCHANGING
    any state   a request brings no reply                   FAILED
    FAILED      a reply arrives, and an incarnation known   EXCHANGING
    FAILED      a reply arrives, and none is known          UNKNOWN
    any state   a new incarnation's message is accepted     EXCHANGING

A peer's acknowledged clock is exact when the peer sends it and a lower bound ever after, because the clock of one
incarnation only grows. But a request may come from somebody else, and acknowledge what the peer does not have; a reply
comes from the address that was asked. So a reply replaces everything that was acknowledged before its request was sent.
What a peer lacks is therefore what the log holds above that clock; there is no queue per peer.
Everything acknowledged is forgotten when a new incarnation appears: a process that starts again has lost its memory.

Source: a named state per follower, as in etcd's raft (tracker/progress.go: probe, replicate, snapshot).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from replication.membership_table import MembershipTable
from replication.messages import DEFAULT_PROTOCOL
from store.clock import Clock, join, join_into

SMOOTHING = 0.25
"""Weight of the latest round trip in the moving average."""


class PeerState(Enum):
    """See the module."""

    UNKNOWN = "unknown"
    EXCHANGING = "exchanging"
    FAILED = "failed"
    PULLING = "pulling"


class SnapshotOffer(Enum):
    """What a peer's messages say about a snapshot. Only a reply is an ``OFFER``.

    A request is built on what its sender believed of this replica then, which may be old. Its statement "my log does
    not reach back to you" is a ``HINT``: a reason to exchange at once and ask.
    """

    NONE = "none"
    HINT = "hint"
    OFFER = "offer"


@dataclass(frozen=True, slots=True)
class Report:
    """What a peer said of itself in its reply to exchange ``serial`` of this replica.

    ``replica``: its id. ``clock``: its exact clock. ``pending``: the lowest pending counter of each origin that is no
    present incarnation. ``membership_digest``: of the membership table under which it said so. ``is_joining``: whether
    it was joining then.
    """

    replica: str
    serial: int
    membership_digest: int
    clock: Clock
    pending: Mapping[str, int]
    is_joining: bool


@dataclass(slots=True)
class Acknowledged:
    """What one incarnation of a peer has said of itself. A new incarnation starts with a new object.

    ``replica``: the id of the incarnation; empty while the peer is unknown.
    ``clock``: a lower bound of its clock. ``recent``: the part of it that has come since the last request was sent.
    ``is_complete``: whether its last message gave the whole clock; if not, its
    retired entries come with the next message.
    ``retired_digest``, ``membership_digest``: of its retired clock entries and its membership table, as last sent;
    None and 0 before it has sent any.
    ``protocol``: version of its last message; the short form goes only to peers that know it (short_form.py).
    ``present``: the entries of present incarnations in its clock, exactly as its last reply said; read only.
    ``present_revision``: its revision of that state, 0 if it has not replied yet. ``seen``: the revision of this
    replica's entries that the peer has in the same way. ``asked``: ids that its last message asked about, and that no
    message to it has reported since. ``is_joining``: whether it said so in its last message.
    ``report``: its latest report, for loss detection. ``snapshot``: whether it offers one.
    ``sent``: own counter up to which updates were sent to it, acknowledged or not. A failed request sets it back to
    what is acknowledged.
    """

    replica: str = ""
    clock: Clock = field(default_factory=dict)
    recent: Clock = field(default_factory=dict)
    is_complete: bool = False
    retired_digest: int | None = None
    membership_digest: int = 0
    protocol: int = DEFAULT_PROTOCOL
    present: Clock = field(default_factory=dict)
    present_revision: int = 0
    seen: int = 0
    asked: frozenset[str] = frozenset()
    is_joining: bool = False
    report: Report | None = None
    snapshot: SnapshotOffer = SnapshotOffer.NONE
    sent: int = 0

    def acknowledge(self, clock: Mapping[str, int]) -> None:
        """Merge a clock that the peer sent; a delayed message with an older clock changes nothing."""
        if clock is self.present:
            return  # The peer has applied nothing since its last reply.
        join_into(self.clock, clock)
        join_into(self.recent, clock)

    def confirm(self, clock: Mapping[str, int]) -> None:
        """Replace what was acknowledged before the last request was sent by the exact clock in its reply."""
        self.clock = join(clock, self.recent)

    def update_count(self) -> int:
        """Return how many updates the peer is known to have applied."""
        return sum(self.clock.values())


@dataclass(slots=True)
class Schedule:
    """When to send to one peer. All times are monotonic seconds.

    ``begun_s``: when the exchange in flight began. ``round_trip_s``: moving average of the time one takes.
    ``paced_until_s``: new writes wait for others until then. ``next_sync_s``: when the timer sends the next exchange.
    ``next_piece_s``: when the next piece of a snapshot may be requested. ``liveness_sent_s``: when the peer was last
    sent a liveness report that it had not asked for. ``wall_sent_s``: when a reply to it last stated the wall clock.
    """

    begun_s: float = 0.0
    round_trip_s: float = 0.0
    paced_until_s: float = 0.0
    next_sync_s: float = 0.0
    next_piece_s: float = 0.0
    liveness_sent_s: float = float("-inf")
    wall_sent_s: float = float("-inf")

    def measure(self, now_s: float) -> None:
        """Add the exchange whose reply arrives now to the average round trip."""
        self.round_trip_s += (now_s - self.begun_s - self.round_trip_s) * SMOOTHING


@dataclass(slots=True)
class PeerProgress:
    """The progress of the peer at ``address``.

    ``in_flight``: serial of the request in flight, 0 if none; at most one request is in flight with a peer.
    ``urgent``: exchange at once, because something waits for what this peer may have or has to learn.
    ``more``: exchange again at once, because a limit cut the last exchange.
    ``count_at_cut``: how many updates the peer had when a limit cut our message; None if no limit did.
    ``piece_was_last``: the last request asked for a piece of a snapshot (pieces take turns with exchanges).
    ``awaited_counter``: the highest own counter of an update that this peer has to acknowledge soon, because a client
    waits for it (acks.py). Exchanges that carry it are not paced.
    """

    address: str
    state: PeerState = PeerState.UNKNOWN
    acked: Acknowledged = field(default_factory=Acknowledged)
    schedule: Schedule = field(default_factory=Schedule)
    in_flight: int = 0
    urgent: bool = False
    more: bool = False
    count_at_cut: int | None = None
    piece_was_last: bool = False
    awaited_counter: int = 0

    def become(self, replica: str, now_s: float) -> None:
        """Start to follow the new incarnation ``replica``, which has sent a message and has nothing of the old one.

        If the last request failed, it came before this incarnation listened: the next one need not wait for the timer.
        """
        if self.state is PeerState.FAILED:
            self.schedule.next_sync_s = min(self.schedule.next_sync_s, now_s)
        self.acked = Acknowledged(replica)
        self.state = PeerState.EXCHANGING

    def hear_reply(self, serial: int, now_s: float) -> None:
        """Note that the reply to request ``serial`` is here; ``end`` follows when everything in it is applied.

        A reply that nobody waits for any more changes nothing.
        """
        if self.in_flight != serial:
            return
        self.schedule.measure(now_s)
        if self.state is PeerState.FAILED:
            self.state = PeerState.EXCHANGING if self.acked.replica else PeerState.UNKNOWN

    def end(self, serial: int) -> None:
        """End request ``serial``: the next one may begin."""
        if self.in_flight == serial:
            self.in_flight = 0

    def fail(self, own_id: str, now_s: float) -> None:
        """End the request in flight, which brought no reply. The peer may have received it all the same."""
        self.in_flight = 0
        self.state = PeerState.FAILED
        self.acked.sent = self.acked.clock.get(own_id, 0)
        self.schedule.next_sync_s = max(self.schedule.next_sync_s, now_s)

    def exchange_due_at(self, own_counter: int, now_s: float) -> float:
        """Return when the next exchange should be sent if none is in flight (monotonic seconds).

        ``own_counter``: how many updates this replica has issued.
        """
        schedule = self.schedule
        if self.state is PeerState.FAILED:
            return schedule.next_sync_s
        if self.urgent or self.more or self.awaited_counter > self.acked.sent:
            return now_s
        if own_counter > self.acked.sent:
            return min(max(now_s, schedule.paced_until_s), schedule.next_sync_s)
        return schedule.next_sync_s


class Peers:
    """The progress of every peer, by address, and the serial numbers of the requests to them.

    ``serial``: of the last request that was begun; a report with a higher serial is younger than this moment.
    """

    def __init__(self, table: MembershipTable) -> None:
        self.serial = 0
        self._table = table
        self._by_address: dict[str, PeerProgress] = {}

    def next_serial(self) -> int:
        """Return the serial of a request that begins now."""
        self.serial += 1
        return self.serial

    def find(self, address: str) -> PeerProgress | None:
        """Return the progress of the peer at ``address``, None if there was no contact yet."""
        return self._by_address.get(address)

    def at(self, address: str) -> PeerProgress:
        """Return the progress of the peer at ``address``, UNKNOWN if there was no contact yet."""
        peer = self._by_address.get(address)
        if peer is None:
            peer = self._by_address[address] = PeerProgress(address)
        return peer

    def all(self) -> list[PeerProgress]:
        """Return the progress of every peer, members or not."""
        return list(self._by_address.values())

    def forget_if(self, is_forgotten: Callable[[str], bool]) -> None:
        """Forget the peers at the addresses for which ``is_forgotten`` holds, unless a request to them is in flight."""
        for address, peer in list(self._by_address.items()):
            if not peer.in_flight and is_forgotten(address):
                del self._by_address[address]

    def forget(self, address: str) -> None:
        """Forget the peer at ``address``: another replica may answer there next."""
        self._by_address.pop(address, None)

    def members(self) -> list[Acknowledged | None]:
        """Return what the present incarnation of each other member has acknowledged, in the order of ``table.others``.

        None stands for a member whose present incarnation has not sent anything.
        """
        acknowledged: list[Acknowledged | None] = []
        for address in self._table.others:
            peer = self._by_address.get(address)
            is_present = peer is not None and peer.acked.replica == self._table.present_id(address)
            acknowledged.append(peer.acked if peer is not None and is_present else None)
        return acknowledged
