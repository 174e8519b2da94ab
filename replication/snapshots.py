"""Snapshots in transfer: sending them in pieces, and pulling one.

The sender takes a whole snapshot at one moment (a shallow copy, a pointer per key) and sends it piece by piece, serving
clients in between. The receiver stages the pieces and joins all of them into its store in one step when it has the last
one (store/snapshot.py). Until then its store is unchanged. If the sender dies before the end, the receiver starts again
with another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from replication.messages import PROTOCOL, MarkerForm, SnapshotPiece, SnapshotRequest
from store.causal import CausalStore
from store.clock import Instant
from store.markers import Marker
from store.snapshot import Snapshot
from store.table import cost
from store.versions import Versions

IDLE_TRANSFER_KEPT_S = 30.0
"""How long a snapshot is kept for a receiver that requests no more pieces, seconds."""


@dataclass(slots=True)
class _Transfer:
    """The transfer of one snapshot to ``receiver``.

    ``pieces``: yields the pieces that are not made yet. ``current``: the last one made, kept in case the reply is lost.
    """

    receiver: str
    pieces: Iterator[SnapshotPiece]
    last_used_s: float
    current: SnapshotPiece | None = None

    @property
    def is_complete(self) -> bool:
        """Whether the last piece was made. The transfer is kept only in case that piece has to be sent again."""
        return self.current is not None and self.current.last


class SnapshotSender:
    """The snapshots that this replica sends, at most ``limit`` at once, in pieces of about ``piece_bytes``."""

    def __init__(self, limit: int, piece_bytes: int) -> None:
        self._limit = limit
        self._piece_bytes = piece_bytes
        self._transfers: dict[str, _Transfer] = {}
        self._count = 0

    def answer(self, request: SnapshotRequest, store: CausalStore, now: Instant) -> SnapshotPiece:
        """Return the reply to ``request``. A piece with an empty name means: not now, or start again."""
        piece = None
        if request.snapshot:
            piece = self.piece(request, now.mono_s)
        elif self.has_room(request.sender):
            piece = self.begin(store.replica_id, request.sender, store.snapshot(now), now.mono_s)
        return piece or SnapshotPiece(store.replica_id, "", request.piece, last=True)

    def begin(self, own_id: str, receiver: str, snapshot: Snapshot, now_s: float) -> SnapshotPiece:
        """Start to send ``snapshot`` to ``receiver``, in place of an earlier one; return the first piece."""
        self.forget(receiver)
        self._count += 1
        name = f"{own_id}/{self._count}"[-64:]
        transfer = _Transfer(receiver, cut(own_id, name, snapshot, self._piece_bytes), now_s)
        self._transfers[name] = transfer
        return self._next_piece(transfer)

    def has_room(self, receiver: str) -> bool:
        """Return whether one more receiver may start now; a complete transfer takes no room."""
        running = sum(t.receiver != receiver and not t.is_complete for t in self._transfers.values())
        return running < self._limit

    def piece(self, request: SnapshotRequest, now_s: float) -> SnapshotPiece | None:
        """Return the requested piece, or None if its snapshot is not here any more: the receiver starts again."""
        transfer = self._transfers.get(request.snapshot)
        if transfer is None or transfer.receiver != request.sender or transfer.current is None:
            return None
        transfer.last_used_s = now_s
        if request.piece == transfer.current.piece:
            return transfer.current  # The reply was lost: send it again.
        if request.piece != transfer.current.piece + 1 or transfer.is_complete:
            return None
        return self._next_piece(transfer)

    def forget(self, receiver: str) -> None:
        """End the transfer to ``receiver``: it starts again, or its incarnation is superseded."""
        self._transfers = {name: t for name, t in self._transfers.items() if t.receiver != receiver}

    def expire(self, now_s: float) -> None:
        """End the transfers whose receivers request nothing any more."""
        self._transfers = {
            name: t for name, t in self._transfers.items() if now_s - t.last_used_s <= IDLE_TRANSFER_KEPT_S
        }

    @staticmethod
    def _next_piece(transfer: _Transfer) -> SnapshotPiece:
        transfer.current = next(transfer.pieces)
        return transfer.current


def cut(own_id: str, name: str, snapshot: Snapshot, piece_bytes: int) -> Iterator[SnapshotPiece]:
    """Yield ``snapshot`` in pieces of about ``piece_bytes``. There is always one; the last one is marked."""
    items: list[tuple[str, Versions]] = []
    size = number = 0
    for key, versions in snapshot.table.items():
        if size >= piece_bytes:
            yield _piece(own_id, name, number, snapshot, items, last=False)
            items, size, number = [], 0, number + 1
        items.append((key, versions))
        size += cost(key, versions)
    yield _piece(own_id, name, number, snapshot, items, last=True)


def _piece(
    own_id: str, name: str, number: int, snapshot: Snapshot, items: list[tuple[str, Versions]], *, last: bool
) -> SnapshotPiece:
    if number > 0:
        return SnapshotPiece(own_id, name, number, last, items=items)
    # The first piece carries the clocks: they are of the same moment as the versions in all pieces.
    markers = [MarkerForm(marker.origin, marker.counter, marker.past) for marker in snapshot.markers]
    time, clock, delete_clock = snapshot.timestamp, snapshot.clock, snapshot.delete_clock
    return SnapshotPiece(own_id, name, number, last, time, clock, delete_clock, markers, items)


@dataclass(slots=True)
class SnapshotPull:
    """A snapshot that this replica pulls from the peer at ``address``.

    ``sender``, ``name``: the incarnation that sends it and the name of the transfer, once the first piece is here.
    ``next_piece``: the number of the piece to request next. ``first``: the first piece. ``staged``: the versions of
    all pieces so far; nothing of them is visible yet.
    """

    address: str
    sender: str = ""
    name: str = ""
    next_piece: int = 0
    first: SnapshotPiece | None = None
    staged: dict[str, Versions] = field(default_factory=dict)

    def request(self, own_id: str) -> SnapshotRequest:
        """Return the request for the next piece."""
        return SnapshotRequest(own_id, self.name, self.next_piece, PROTOCOL)

    def stage(self, piece: SnapshotPiece) -> bool:
        """Stage a piece; return False if it does not continue this transfer, so that the pull has to start again."""
        if not piece.snapshot or piece.piece != self.next_piece:
            return False
        if self.first is None:
            self.sender, self.name, self.first = piece.sender, piece.snapshot, piece
        elif (piece.sender, piece.snapshot) != (self.sender, self.name):
            return False
        self.staged.update(piece.items)
        self.next_piece += 1
        return True

    def snapshot(self) -> Snapshot:
        """Return the whole snapshot, once the last piece is staged."""
        assert self.first is not None
        markers = [Marker(marker.origin, marker.counter, marker.past) for marker in self.first.markers]
        return Snapshot(self.first.time, self.first.clock, self.first.delete_clock, markers, self.staged)
