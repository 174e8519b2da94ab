"""Cuts: a causal snapshot of the keys with a prefix that is read little by little while the store changes.

A copy of the table would take a pointer for each key, and would keep every version that is replaced meanwhile. A cut
takes neither. Its reader walks through the keys in order; what it has not reached yet is *preserved* when it changes:

* Before the first change of a key that the reader has not reached, the store hands the cut the versions that the key
  has. The reader takes preserved keys first, so only what changes between two steps of the reader is in memory.
* When the reader reaches a key, it takes its versions if they are those of the cut, and skips the key otherwise: it was
  preserved, or it is new.

**Which versions are those of the cut.** The cut has the store's clock of its moment. A version that was written later
has a dot above that clock. So a key has been changed since if one of its versions does, with one exception: a delete or
an expiry may take some of several versions away, and what stays is all below the clock. The cut notes such keys
(``_reduced``). A version whose dot is below the clock never comes back: no update is applied twice, and a join of a
snapshot takes no version that the own clock covers (store/snapshot.py).

All this holds because every change of the table passes ``KeyTable.set``, and because each step of the reader and each
change of the store is under the engine's lock. The transactions of the cut are whole: its moment is between two steps
of the store.

**Bounds.** If changes come faster than the reader takes them, or a join replaces the whole table, the cut fails, and
lets go of everything. Its reader must check ``failure``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final

from store.clock import Clock
from store.table import KeyRange, KeyTable
from store.versions import Versions

STEP_KEYS: Final = 256
"""Most keys that one step of the reader looks at. It limits the time under the engine's lock."""

PRESERVED_KEY_BYTES: Final = 400
"""Estimated bytes of a preserved key with one version, or of a noted key, without its text and values."""

OVERTAKEN: Final = (
    "clients changed more than the replica may keep for this export; read it faster, or export when less changes"
)
REPLACED: Final = "the replica has joined a snapshot of another one; export again"

Keyed = tuple[str, Versions]


class Cut:
    """One causal snapshot. ``clock``: of its moment. ``count``: how many keys it has.

    ``has_room``: asked under the engine's lock whether the cut may keep this many bytes; it must not block.
    ``failure``: why the cut cannot be read to its end; empty if it can. ``is_over``: it needs no changes any more.
    """

    def __init__(self, table: KeyTable, prefix: str, clock: Mapping[str, int], has_room: Callable[[int], bool]) -> None:
        self.prefix = prefix
        self.clock: Clock = dict(clock)
        self.count = table.count(KeyRange(prefix))
        self.failure = ""
        self.is_over = False
        self.bytes = 0
        """Estimated bytes that the cut keeps."""
        self._has_room = has_room
        self._position = ""
        """The reader has reached every key up to this one."""
        self._preserved: deque[Keyed] = deque()
        self._reduced: set[str] = set()
        """Keys that have lost some of several versions since, and whose other versions are all of the cut."""

    # -- the store's side --------------------------------------------------------------------------------

    def changing(self, key: str, before: Versions, after: Versions) -> None:
        """Note that ``key`` changes from ``before`` to ``after``."""
        if self.is_over or key <= self._position or not key.startswith(self.prefix):
            return
        if before and self._has(key, before):
            self._preserved.append((key, before))
            self._keep(_bytes(key, before))
        if after and key not in self._reduced and self._covers(after):
            self._reduced.add(key)
            self._keep(_bytes(key, ()))

    def replaced(self) -> None:
        """Note that the whole table is replaced."""
        if not self.is_over:
            self._fail(REPLACED)

    def end(self) -> None:
        """Let go of everything. May be called several times, and without the lock by the reader."""
        self.is_over = True
        self._preserved.clear()
        self._reduced = set()

    # -- the reader's side -------------------------------------------------------------------------------

    def step(self, table: KeyTable, max_bytes: int) -> list[Keyed]:
        """Return the next keys with their versions, of about ``max_bytes`` together, in no particular order.

        A step may find nothing, because all keys that it looks at have changed. Go on until ``is_over``; then look at
        ``failure``.
        """
        taken: list[Keyed] = []
        if self._preserved:
            size = 0
            while self._preserved and size < max_bytes and len(taken) < STEP_KEYS:
                keyed = self._preserved.popleft()
                taken.append(keyed)
                size += _bytes(*keyed)
            self.bytes -= size
        elif not self.is_over:
            taken = self._walk(table, max_bytes)
        return taken

    def _walk(self, table: KeyTable, max_bytes: int) -> list[Keyed]:
        """Return the next keys in order, without those that have changed."""
        taken: list[Keyed] = []
        size, looked = 0, 0
        for key in islice(table.keys(KeyRange(self.prefix, self._position)), STEP_KEYS):
            versions = table.get(key)
            self._position = key
            looked += 1
            if self._has(key, versions):
                taken.append((key, versions))
                size += _bytes(key, versions)
                if size >= max_bytes:
                    return taken
        if looked < STEP_KEYS:  # That was the last key, and nothing is preserved.
            self.end()
        return taken

    # -- both --------------------------------------------------------------------------------------------

    def _has(self, key: str, versions: Versions) -> bool:
        """Return whether ``versions``, which the key has now, are those of the cut."""
        return self._covers(versions) and key not in self._reduced

    def _covers(self, versions: Versions) -> bool:
        clock = self.clock
        for version in versions:
            if clock.get(version.origin, 0) < version.counter:
                return False
        return True

    def _keep(self, size: int) -> None:
        self.bytes += size
        if not self._has_room(self.bytes):
            self._fail(OVERTAKEN)

    def _fail(self, reason: str) -> None:
        self.failure = reason
        self.end()


def _bytes(key: str, versions: Versions) -> int:
    """Return the estimated bytes that a cut keeps in memory with a key and these versions."""
    size = PRESERVED_KEY_BYTES + len(key)
    for version in versions:
        size += PRESERVED_KEY_BYTES + len(version.value)
    return size
