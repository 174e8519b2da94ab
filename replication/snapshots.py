"""Snapshots on their way: handing them out in pieces, and pulling one.

The giver takes all of a snapshot at one moment (a shallow copy, a pointer a key) and hands it out piece by
piece, serving clients between pieces. The receiver stages the pieces aside and takes over in one step when it
has the last one (store/snapshot.py). A giver that dies half-way costs the receiver a retry and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from replication.messages import PROTOCOL, MarkerForm, SnapshotPiece, SnapshotRequest
from store.markers import Marker
from store.snapshot import Snapshot
from store.table import cost
from store.versions import Versions

KEPT_S = 30.0
"""How long a snapshot is kept for a receiver that asks no more, seconds."""


@dataclass(slots=True)
class _Handout:
    """One snapshot being handed out: the pieces not yet cut, and the last one cut, in case it has to be sent again."""

    receiver: str
    pieces: Iterator[SnapshotPiece]
    last_used_s: float
    current: SnapshotPiece | None = None

    @property
    def is_given(self) -> bool:
        """Whether the last piece has been cut; it is kept only in case it has to be sent again."""
        return self.current is not None and self.current.last


class SnapshotSender:
    """The snapshots that this replica hands out, ``limit`` at once at most."""

    def __init__(self, limit: int, piece_bytes: int) -> None:
        self._limit = limit
        self._piece_bytes = piece_bytes
        self._handouts: dict[str, _Handout] = {}
        self._count = 0

    def open(self, me: str, receiver: str, snapshot: Snapshot, now_s: float) -> SnapshotPiece:
        """Start handing ``snapshot`` to ``receiver`` (in place of an earlier one); return the first piece."""
        self.forget(receiver)
        self._count += 1
        name = f"{me}/{self._count}"[-64:]
        handout = _Handout(receiver, cut(me, name, snapshot, self._piece_bytes), now_s)
        self._handouts[name] = handout
        return self._next(name, handout)

    def has_room(self, receiver: str) -> bool:
        """Return whether one more receiver may be served now: one that was given everything takes no room."""
        return sum(h.receiver != receiver and not h.is_given for h in self._handouts.values()) < self._limit

    def piece(self, request: SnapshotRequest, now_s: float) -> SnapshotPiece | None:
        """Return the piece asked for, or None when that snapshot is no longer here: start again."""
        handout = self._handouts.get(request.snapshot)
        if handout is None or handout.receiver != request.sender or handout.current is None:
            return None
        handout.last_used_s = now_s
        if request.piece == handout.current.piece:
            return handout.current
        if request.piece != handout.current.piece + 1 or handout.is_given:
            return None
        return self._next(request.snapshot, handout)

    def forget(self, receiver: str) -> None:
        """Forget what is handed to ``receiver``: it starts again, or its incarnation is over."""
        self._handouts = {name: h for name, h in self._handouts.items() if h.receiver != receiver}

    def expire(self, now_s: float) -> None:
        """Forget the snapshots that nobody asks for any more."""
        self._handouts = {name: h for name, h in self._handouts.items() if now_s - h.last_used_s <= KEPT_S}

    def _next(self, name: str, handout: _Handout) -> SnapshotPiece:
        handout.current = next(handout.pieces)
        return handout.current


def cut(me: str, name: str, snapshot: Snapshot, piece_bytes: int) -> Iterator[SnapshotPiece]:
    """Yield ``snapshot`` in pieces of about ``piece_bytes``; the last one is marked, and there is always one."""
    items: list[tuple[str, Versions]] = []
    size = number = 0
    for key, versions in snapshot.table.items():
        if size >= piece_bytes:
            yield _piece(me, name, number, snapshot, items, last=False)
            items, size, number = [], 0, number + 1
        items.append((key, versions))
        size += cost(key, versions)
    yield _piece(me, name, number, snapshot, items, last=True)


def _piece(
    me: str, name: str, number: int, snapshot: Snapshot, items: list[tuple[str, Versions]], *, last: bool
) -> SnapshotPiece:
    if number > 0:
        return SnapshotPiece(me, name, number, last, items=items)
    markers = [MarkerForm(marker.origin, marker.counter, marker.past) for marker in snapshot.markers]
    time, clock, delete_clock = snapshot.timestamp, snapshot.clock, snapshot.delete_clock
    return SnapshotPiece(me, name, number, last, time, clock, delete_clock, markers, items)


@dataclass(slots=True)
class SnapshotPull:
    """A snapshot on its way here from ``address``; ``giver``: the incarnation that gives it, once it has answered."""

    address: str
    giver: str = ""
    name: str = ""
    next_piece: int = 0
    head: SnapshotPiece | None = None
    staged: dict[str, Versions] = field(default_factory=dict)

    def request(self, me: str) -> SnapshotRequest:
        """Return what to ask the giver next."""
        return SnapshotRequest(me, self.name, self.next_piece, PROTOCOL)

    def stage(self, piece: SnapshotPiece) -> bool:
        """Put a piece aside; return False when it does not continue what is here: start again."""
        if not piece.snapshot or piece.piece != self.next_piece:
            return False
        if self.head is None:
            self.giver, self.name, self.head = piece.sender, piece.snapshot, piece
        elif (piece.sender, piece.snapshot) != (self.giver, self.name):
            return False
        self.staged.update(piece.items)
        self.next_piece += 1
        return True

    def snapshot(self) -> Snapshot:
        """Return the whole, once the last piece is staged."""
        assert self.head is not None
        markers = [Marker(marker.origin, marker.counter, marker.past) for marker in self.head.markers]
        return Snapshot(self.head.time, self.head.clock, self.head.delete_clock, markers, self.staged)
