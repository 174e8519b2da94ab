"""Snapshots in transfer: sending them in pieces, and pulling one.

The sender takes a whole snapshot at one moment (a shallow copy, a pointer per key) and sends it piece by piece, serving
clients in between. The receiver stages the pieces and joins all of them into its store in one step when it has the last
one (store/snapshot.py). Until then its store is unchanged. If the sender dies before the end, with another one.

A receiver that has data names its clock in its first request and gets a *partial* snapshot: only what it can lack. So
of several snapshots in a row, each one after the first has only what has changed since, whichever peer it is from. The
sender keeps nothing for that.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from msgspec import structs

from replication.messages import PROTOCOL, MarkerForm, SnapshotPiece, SnapshotRequest
from replication.settings import ReplicationSettings
from store.causal import CausalStore
from store.clock import Clock, Dot, Instant, covers
from store.markers import Marker
from store.snapshot import Snapshot, has_version_above, rest_is_unchanged
from store.table import VERSION_COST_BYTES
from store.versions import Versions

IDLE_TRANSFER_KEPT_S = 30.0
"""How long a snapshot is kept for a receiver that requests no more pieces, seconds."""

COVERED_VERSION_BYTES = 16
"""Estimated bytes in a piece of a version whose dot alone is sent, without its key."""

MAX_KEYS_SKIPPED = 50_000
"""Keys that a piece of a partial snapshot may leave out. The sender looks at each key of its table under the lock, so
this limits how long it takes for one piece."""


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
    """The snapshots that this replica sends, at most ``limit`` at once, in pieces of about ``piece_bytes``.

    ``given``: how many it has sent up to the last piece.
    """

    def __init__(self, limit: int, piece_bytes: int) -> None:
        self._limit = limit
        self._piece_bytes = piece_bytes
        self._transfers: dict[str, _Transfer] = {}
        self._count = 0
        self.given = 0

    def answer(self, request: SnapshotRequest, store: CausalStore, now: Instant) -> SnapshotPiece:
        """Return the reply to ``request``. A piece with an empty name means: not now, or start again."""
        piece = None
        if request.snapshot:
            piece = self.piece(request, now.mono_s)
        elif self.has_room(request.sender):
            piece = self.begin(store.replica_id, request.sender, store.snapshot(now), now.mono_s, request.known)
        return piece or SnapshotPiece(store.replica_id, "", request.piece, last=True)

    def begin(
        self, own_id: str, receiver: str, snapshot: Snapshot, now_s: float, known: Clock | None = None
    ) -> SnapshotPiece:
        """Start to send ``snapshot`` to ``receiver``, in place of an earlier one; return the first piece.

        ``known``: the receiver's clock. If it has entries, the receiver gets a partial snapshot.
        """
        self.forget(receiver)
        self._count += 1
        name = f"{own_id}/{self._count}"[-64:]
        transfer = _Transfer(receiver, cut(own_id, name, snapshot, self._piece_bytes, known), now_s)
        self._transfers[name] = transfer
        return self._next_piece(transfer)

    @property
    def receivers(self) -> list[str]:
        """The replica ids that a snapshot is being sent to."""
        return [transfer.receiver for transfer in self._transfers.values() if not transfer.is_complete]

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

    def _next_piece(self, transfer: _Transfer) -> SnapshotPiece:
        transfer.current = next(transfer.pieces)
        self.given += transfer.current.last
        return transfer.current


def cut(
    own_id: str, name: str, snapshot: Snapshot, piece_bytes: int, since: Clock | None = None
) -> Iterator[SnapshotPiece]:
    """Yield ``snapshot`` in pieces of about ``piece_bytes``. There is always one; the last one is marked.

    With a clock ``since`` that is not empty, the snapshot is partial, for a receiver whose clock covers ``since``
    (store/snapshot.py). Takes the keys out of ``snapshot``, so that values which are sent and overwritten are freed.
    """
    since = since or {}
    rest_unchanged = rest_is_unchanged(snapshot.delete_clock, since)
    # The first piece carries the clocks: they are of the same moment as the versions in all pieces.
    piece, number = _first_piece(own_id, name, snapshot, since, rest_unchanged=rest_unchanged), 0
    size = skipped = 0
    table = snapshot.table
    while table:
        key, versions = table.popitem()
        if size >= piece_bytes or skipped >= MAX_KEYS_SKIPPED:
            yield piece
            number += 1
            piece = SnapshotPiece(own_id, name, number, last=False, items=[], covered={})
            size = skipped = 0
        if not since or has_version_above(versions, since):
            piece.items.append((key, versions))
            size += len(key) + sum(VERSION_COST_BYTES + len(version.value) for version in versions)
        elif rest_unchanged:
            skipped += 1
        else:
            for version in versions:
                piece.covered.setdefault(version.origin, []).append((key, version.counter))
            size += (COVERED_VERSION_BYTES + len(key)) * len(versions)
    yield structs.replace(piece, last=True)


def _first_piece(own_id: str, name: str, snapshot: Snapshot, since: Clock, *, rest_unchanged: bool) -> SnapshotPiece:
    return SnapshotPiece(
        own_id,
        name,
        0,
        last=False,
        time=snapshot.timestamp,
        clock=snapshot.clock,
        delete_clock=snapshot.delete_clock,
        markers=[MarkerForm(marker.origin, marker.counter, marker.past) for marker in snapshot.markers],
        items=[],
        since=since,
        covered={},
        rest_unchanged=rest_unchanged,
    )


@dataclass(slots=True)
class SnapshotPull:
    """A snapshot that this replica pulls from the peer at ``address``.

    ``known``: this replica's clock when it asked for the first piece. ``sender``, ``name``: the incarnation that sends
    it and the name of the transfer, once the first piece is here. ``next_piece``: the number of the piece to request
    next. ``first``: the first piece. ``staged``, ``covered``: the versions of all pieces so far, and the dots of the
    covered keys; nothing of them is visible yet. ``begun_s``, ``last_s``: when the pull began, and when the latest
    piece came (monotonic seconds).
    """

    address: str
    known: Clock = field(default_factory=dict)
    begun_s: float = 0.0
    last_s: float = 0.0
    sender: str = ""
    name: str = ""
    next_piece: int = 0
    first: SnapshotPiece | None = None
    staged: dict[str, Versions] = field(default_factory=dict)
    covered: dict[str, tuple[Dot, ...]] = field(default_factory=dict)

    def request(self, own_id: str) -> SnapshotRequest:
        """Return the request for the next piece."""
        known = self.known if self.first is None else {}
        return SnapshotRequest(own_id, self.name, self.next_piece, PROTOCOL, known)

    def fits(self, piece: SnapshotPiece) -> bool:
        """Return whether ``piece`` is of a whole snapshot, or of a partial one for a clock that this replica named."""
        first = self.first or piece
        is_partial = bool(piece.since or piece.covered or piece.rest_unchanged)
        return not is_partial or (bool(first.since) and covers(self.known, first.since))

    def stage(self, piece: SnapshotPiece) -> bool:
        """Stage a piece; return False if it does not continue this transfer, so that the pull has to start again."""
        if not piece.snapshot or piece.piece != self.next_piece:
            return False
        if self.first is None:
            self.sender, self.name, self.first = piece.sender, piece.snapshot, piece
        elif (piece.sender, piece.snapshot) != (self.sender, self.name):
            return False
        self.staged.update(piece.items)
        for origin, versions in piece.covered.items():
            for key, counter in versions:
                self.covered[key] = (*self.covered.get(key, ()), (origin, counter))
        self.next_piece += 1
        return True

    def snapshot(self) -> Snapshot:
        """Return the snapshot, once the last piece is staged."""
        first = self.first
        assert first is not None
        return Snapshot(
            first.time,
            first.clock,
            first.delete_clock,
            [Marker(marker.origin, marker.counter, marker.past) for marker in first.markers],
            self.staged,
            first.since,
            self.covered,
            first.rest_unchanged,
        )


class SnapshotPauses:
    """When this replica may begin to pull the next snapshot. Not thread-safe.

    The first few of a row follow one another at once: each one is smaller than the one before, so a replica that can
    keep up catches up. If it cannot, each further one would only take work from it and from the senders. Then a pause
    follows each one. The pauses grow with the row, in proportion to the time that the last snapshot took: the share of
    its time in which a replica pulls snapshots is bounded, and it still gets new data. A row ends when no pull has
    begun for some time.

    ``until_s``: no pull begins before this (monotonic seconds). ``_row``: how many pulls the row has so far.
    """

    def __init__(self, settings: ReplicationSettings) -> None:
        self._settings = settings
        self.until_s = float("-inf")
        self._row = 0

    def note(self, begun_s: float, ended_s: float) -> None:
        """Note a pull that has ended, complete or not."""
        settings = self._settings
        if begun_s > self.until_s + settings.snapshot_row_s:
            self._row = 0
        self._row += 1
        beyond = self._row - settings.snapshots_at_once
        # 16: of no use beyond the longest pause, and the power stays a small number.
        times = 0.0 if beyond < 0 else min(2.0 ** min(beyond, 16), settings.snapshot_rest_times)
        self.until_s = ended_s + min(times * (ended_s - begun_s), settings.max_snapshot_rest_s)
