"""What the operations of a ``CausalStore`` return."""

from __future__ import annotations

import msgspec

from store.clock import Clock
from store.cuts import Cut
from store.versions import ABSENT_ETAG, Update, Versions, state_etag

LostUpdates = dict[str, tuple[int, int]]
"""Updates that a client depended on and that no replica can provide: replica id -> (first, last) counter."""


class ReadResult(msgspec.Struct, frozen=True):
    """Result of reading one key.

    ``versions``: all versions of the key, the winner first; empty if the key is absent.
    ``metadata``: the clock that the response returns as the client's new causal past.
    ``lost``: what the engine dropped from the client's causal past because no replica can provide it.
    """

    versions: Versions
    metadata: Clock
    lost: LostUpdates = {}

    @property
    def etag(self) -> str:
        """The entity tag of the key."""
        return state_etag(self.versions)


class WriteResult(msgspec.Struct, frozen=True):
    """Result of writing or deleting one key.

    ``existed``: whether the key had a version before.
    ``update``: the update that was issued; None if nothing had to change (delete of an absent key).
    ``metadata``, ``lost``: as in ``ReadResult``.
    """

    existed: bool
    update: Update | None
    metadata: Clock
    lost: LostUpdates = {}

    @property
    def created(self) -> bool:
        """For a write: whether the key was absent before."""
        return not self.existed

    @property
    def deleted(self) -> bool:
        """For a delete: whether there was a version to delete."""
        return self.existed

    @property
    def etag(self) -> str:
        """The entity tag of the key after the write, which has replaced all versions that were here."""
        if self.update is None or self.update.writes[0].value is None:
            return ABSENT_ETAG
        return self.update.etag


class ListResult(msgspec.Struct, frozen=True):
    """Result of listing keys: one page of one causal snapshot.

    ``keys``: in the order of the range. ``items``: key -> stored value of the winner; empty if values were not
    requested. ``versions``: key -> its versions, likewise. ``next``: the last key of the page if more keys follow, else
    None. ``count``: the number of all keys with the prefix and before the end; None if it was not requested.
    ``metadata``, ``lost``: as in ``ReadResult``.
    """

    keys: list[str]
    next: str | None
    items: dict[str, bytes]
    metadata: Clock
    versions: dict[str, Versions] = {}
    count: int | None = None
    lost: LostUpdates = {}


class RangeDeleted(msgspec.Struct, frozen=True):
    """Result of deleting the keys with a prefix.

    ``deleted``: how many keys were deleted. ``more``: whether further keys have the prefix.
    ``update``: the update that was issued; None if no key had the prefix.
    ``metadata``, ``lost``: as in ``ReadResult``.
    """

    deleted: int
    more: bool
    update: Update | None
    metadata: Clock
    lost: LostUpdates = {}


class CutBegun(msgspec.Struct, frozen=True):
    """Result of beginning a cut (store/cuts.py). ``metadata``: what it contains. ``lost``: as in ``ReadResult``."""

    cut: Cut
    metadata: Clock
    lost: LostUpdates = {}


class TransactionResult(msgspec.Struct, frozen=True):
    """Result of a transaction.

    ``values``: key -> stored value, for the keys that were read and present. ``missing_keys``: those that were absent.
    ``update``: the update that was issued; None if there was nothing to write.
    ``metadata``, ``lost``: as in ``ReadResult``.
    """

    values: dict[str, bytes]
    missing_keys: list[str]
    update: Update | None
    metadata: Clock
    etags: dict[str, str]
    lost: LostUpdates = {}
