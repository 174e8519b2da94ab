"""Imports an export (store/export_file.py) by ordinary writes, which issue new dots.

An import reads the file twice. First it checks all of it, so that a damaged or incomplete file changes nothing. Then it
writes the keys in transactions of bounded size, through a *target*: a replica over HTTP (store/management/replica.py),
or this process's own (kvsite/seeding.py). Memory is flat: it never has more than one transaction.

What cannot come back as it was, and is reported:

* A key in conflict gets the value of its winner. Siblings are versions that did not know of each other, and one import
  cannot make such versions. They are reported once the winner is written: a key that stays as it is has lost nothing.
* A counter whose sum has left 64 bits, and a set or map with more items than a PATCH may make, cannot be written.

Versions whose deadline has passed are left out. The others keep their deadline.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import BinaryIO, Final, NamedTuple, Protocol

import msgspec

from store.export_file import BadExport, ExportReader, Header, KeyLine, VersionLine
from store.merging import MAX_INT, MAX_ITEMS, MIN_INT, MergingKind

BATCH_KEYS: Final = 500
"""Most keys of a transaction; half of the default of ``KV_MAX_BATCH``."""

BATCH_BYTES: Final = 1024 * 1024
"""A transaction ends before it has more bytes of values, unless it has only one."""

SAMPLE_KEYS: Final = 3
"""How many of the keys that are there already an error names."""

ADVICE: Final = "--if-absent leaves such keys as they are, --overwrite replaces them"

_raw_items: Final = msgspec.json.Decoder(list[str | int | float])
_raw_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode: Final = msgspec.json.Encoder().encode

EMPTY: Final[dict[MergingKind, tuple[bytes, bytes]]] = {
    "set": (b'"add":[""]', b'"remove":[""]'),
    "map": (b'"set":{"":null}', b'"unset":[""]'),
}
"""How an empty set or map is made: only a PATCH that adds something creates a key."""

FIELDS: Final[dict[MergingKind | None, bytes]] = {None: b"value", "counter": b"increment", "set": b"add", "map": b"set"}
"""Type -> the field of a transaction's write that takes the value."""


class Mode(Enum):
    """What to do with keys that the target has already."""

    REFUSE = "refuse"
    IF_ABSENT = "if-absent"
    OVERWRITE = "overwrite"


class ImportFailed(Exception):
    """The import has stopped. The text says why."""


class TargetHasKeys(ImportFailed):
    """The target has keys of the export already."""

    def __init__(self, keys: Sequence[str], *, written: int) -> None:
        named = ", ".join(repr(key[:100]) for key in keys[:SAMPLE_KEYS])
        more = "" if len(keys) <= SAMPLE_KEYS else f" and at least {len(keys) - SAMPLE_KEYS} more keys of the file"
        count = "1 key was" if written == 1 else f"{written:,} keys were"
        done = f"{count} written before" if written else "nothing was written"
        super().__init__(f"the target already has {named}{more}; {done}. {ADVICE}")


class KeyPresent(Exception):
    """A transaction that writes only absent keys has met one that is there. Nothing of it was written."""


class NotTaken(Exception):
    """The target does not take this transaction: too many keys or bytes, or one key that it cannot have.

    Nothing of it was written. The text is the target's reason.
    """


class Entry(NamedTuple):
    """One key to write.

    ``value``: its value as JSON; None if it is bytes. ``content``: the bytes. ``type``: of a value that merges.
    ``expires_s``: Unix seconds. ``is_empty``: a set or a map without items. ``size``: bytes of the value in the file.
    ``siblings``: how many versions lose against this one.
    """

    key: str
    value: bytes | None
    content: bytes | None
    type: MergingKind | None
    expires_s: float | None
    is_empty: bool
    size: int
    siblings: int


class Target(Protocol):
    """Where an import writes. Every method may raise ``ImportFailed``."""

    def is_empty(self, prefix: str) -> bool:
        """Return whether no key has the prefix."""

    def present(self, keys: Sequence[str]) -> Sequence[str]:
        """Return which of the keys are there, in their order."""

    def write(self, writes: Sequence[bytes]) -> None:
        """Write one transaction: its ``writes`` as JSON. Raises ``NotTaken``, ``KeyPresent`` if a key is there."""

    def write_bytes(self, key: str, content: bytes, ttl_s: float | None, *, if_absent: bool) -> None:
        """Write a value that is bytes, which no transaction in JSON can carry. Raises as ``write``."""


@dataclass(slots=True)
class Progress:
    """How far an import is, in keys of the file. ``present``: were there already and stay as they were.

    ``siblings``: versions that lost against a winner that was written. ``unwritable``: keys that no write can restore.
    """

    total: int = 0
    checked: int = 0
    written: int = 0
    present: int = 0
    expired: int = 0
    siblings: int = 0
    unwritable: int = 0

    @property
    def done(self) -> int:
        """How many keys are dealt with."""
        return self.written + self.present + self.expired + self.unwritable


Reporter = Callable[[str, str], None]
"""Called with a key, and what of it cannot be restored."""


class Import:
    """One import of ``stream``, which must be seekable, into ``target``.

    ``prefix_to``: replaces the prefix of the export; None keeps it. ``report``: called for what is not restored.
    ``on_progress``: called often. ``now_s``: Unix seconds.
    """

    def __init__(
        self,
        stream: BinaryIO,
        target: Target,
        *,
        mode: Mode = Mode.REFUSE,
        prefix_to: str | None = None,
        report: Reporter = lambda _key, _what: None,
        on_progress: Callable[[Progress], None] = lambda _: None,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        self.progress = Progress()
        self._stream = stream
        self._target = target
        self._mode = mode
        self._prefix_to = prefix_to
        self._report = report
        self._on_progress = on_progress
        self._now_s = now_s

    def run(self) -> Progress:
        """Check the file, then the target, then write. Raises ``BadExport``, ``ImportFailed``."""
        header = self._check_file()
        if self._mode is Mode.REFUSE:
            self._check_target(header)
        for batch in self._batches():
            self._write(batch)
            self._on_progress(self.progress)
        return self.progress

    # -- reading the file --------------------------------------------------------------------------------

    def _lines(self) -> Iterator[KeyLine]:
        """Yield the keys of the file from its beginning, under the names that they get."""
        self._stream.seek(0)
        reader = ExportReader(self._stream)
        self.progress.total = reader.header.keys
        old = reader.header.prefix
        for line in reader.lines():
            if not line.key.startswith(old):
                raise BadExport(f"line {reader.line_number}: the key does not have the prefix of the export")
            if self._prefix_to is not None:
                line.key = self._prefix_to + line.key[len(old) :]
                if not line.key:
                    raise BadExport(f"line {reader.line_number}: without the prefix of the export, the key is empty")
            try:
                for version in line.versions:
                    check_value(version)
            except ValueError as exc:
                raise BadExport(f"line {reader.line_number} is no line of an export: {exc}") from None
            yield line

    def _check_file(self) -> Header:
        """Read the whole file. Raises ``BadExport``."""
        for _ in self._lines():
            self.progress.checked += 1
            if self.progress.checked % BATCH_KEYS == 0:
                self._on_progress(self.progress)
        self._stream.seek(0)
        return ExportReader(self._stream).header

    def _check_target(self, header: Header) -> None:
        """Raise ``TargetHasKeys`` if the target has keys of the file."""
        if self._target.is_empty(header.prefix if self._prefix_to is None else self._prefix_to):
            return
        for keys in batched((line.key for line in self._lines()), BATCH_KEYS):
            if found := self._target.present(keys):
                raise TargetHasKeys(found, written=0)

    def _batches(self) -> Iterator[list[Entry]]:
        """Yield what to write, in transactions."""
        batch: list[Entry] = []
        size = 0
        for line in self._lines():
            entry = self._entry(line)
            if entry is None:
                continue
            if batch and (len(batch) >= BATCH_KEYS or size + entry.size > BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(entry)
            size += entry.size
        if batch:
            yield batch

    def _entry(self, line: KeyLine) -> Entry | None:
        """Return what to write for a key; None if nothing can be."""
        now_s = self._now_s()
        living = [version for version in line.versions if version.expires is None or version.expires > now_s]
        if not living:
            self.progress.expired += 1
            return None
        winner, *siblings = living
        items = _items(winner)
        if reason := _unwritable(winner, items):
            if self._mode is Mode.IF_ABSENT and self._target.present([line.key]):
                self.progress.present += 1
            else:
                self.progress.unwritable += 1
                self._report(line.key, f"not restored: {reason}")
            return None
        is_bytes = winner.encoding is not None
        return Entry(
            line.key,
            None if is_bytes else bytes(winner.value),
            winner.content() if is_bytes else None,
            winner.type,
            winner.expires,
            items == 0,
            len(bytes(winner.value)) + len(line.key),
            len(siblings),
        )

    # -- writing -----------------------------------------------------------------------------------------

    def _write(self, batch: list[Entry]) -> None:
        """Write one batch, as the mode says."""
        if self._mode is Mode.OVERWRITE:
            # A PATCH merges with what is there, so that goes first.
            merging = [entry.key for entry in batch if entry.type is not None]
            if merging and (found := self._target.present(merging)):
                self._target.write([b'{"key":%b,"delete":true}' % _encode(key) for key in found])
        while batch:
            try:
                self._write_all([entry for entry in batch if entry.content is None])
                break
            except KeyPresent:
                batch = self._without_present(batch)
            except NotTaken as exc:
                if len(batch) == 1:
                    raise ImportFailed(f"key {batch[0].key[:100]!r}: {exc}") from None
                middle = len(batch) // 2
                self._write(batch[:middle])
                batch = batch[middle:]
        for entry in batch:
            if entry.content is not None:
                self._write_bytes(entry)

    def _without_present(self, batch: list[Entry]) -> list[Entry]:
        """Return the batch without the keys that are there. Raises ``TargetHasKeys`` if that is an error."""
        found = self._target.present([entry.key for entry in batch if entry.content is None])
        if self._mode is Mode.REFUSE and found:
            raise TargetHasKeys(found, written=self.progress.written)
        self.progress.present += len(found)
        gone = set(found)
        return [entry for entry in batch if entry.key not in gone]

    def _write_all(self, entries: list[Entry]) -> None:
        """Write entries whose values are JSON, as one transaction. Raises ``KeyPresent``."""
        if not entries:
            return
        if_absent = self._mode is not Mode.OVERWRITE
        self._target.write([self._as_write(entry, if_absent=if_absent) for entry in entries])
        for entry in entries:
            self._report_siblings(entry)
        if empty := [entry for entry in entries if entry.is_empty]:
            self._target.write(
                [b'{"key":%b,%b}' % (_encode(entry.key), EMPTY[entry.type][1]) for entry in empty if entry.type]
            )
        self.progress.written += len(entries)

    def _as_write(self, entry: Entry, *, if_absent: bool) -> bytes:
        """Return a write of a transaction."""
        value = b'"%b":%b' % (FIELDS[entry.type], (entry.value or b"null"))
        if entry.is_empty and entry.type:
            value = EMPTY[entry.type][0]
        ttl = b"" if entry.expires_s is None else b',"ttl":%b' % _encode(self._ttl_s(entry.expires_s))
        condition = b',"if-none-match":"*"' if if_absent else b""
        return b'{"key":%b,%b%b%b}' % (_encode(entry.key), value, ttl, condition)

    def _write_bytes(self, entry: Entry) -> None:
        assert entry.content is not None
        ttl_s = None if entry.expires_s is None else self._ttl_s(entry.expires_s)
        try:
            self._target.write_bytes(entry.key, entry.content, ttl_s, if_absent=self._mode is not Mode.OVERWRITE)
        except KeyPresent:
            if self._mode is Mode.REFUSE:
                raise TargetHasKeys([entry.key], written=self.progress.written) from None
            self.progress.present += 1
        except NotTaken as exc:
            raise ImportFailed(f"key {entry.key[:100]!r}: {exc}") from None
        else:
            self._report_siblings(entry)
            self.progress.written += 1

    def _report_siblings(self, entry: Entry) -> None:
        """Report the siblings of a key whose winner has been written."""
        if entry.siblings:
            self.progress.siblings += entry.siblings
            count = "1 sibling was" if entry.siblings == 1 else f"{entry.siblings} siblings were"
            self._report(entry.key, f"{count} not restored, only the winner")

    def _ttl_s(self, expires_s: float) -> float:
        """Return the time to live of a version that had not expired a moment ago."""
        return max(1e-6, expires_s - self._now_s())


def check_value(version: VersionLine) -> None:
    """Check a value against its ``encoding`` or ``type``. Raises ValueError."""
    if version.encoding is not None:
        if version.type is not None:
            raise ValueError("a value has an encoding and a type")
        version.content()
    elif version.type is not None:
        _items(version)


def _items(version: VersionLine) -> int | None:
    """Return the number of items of a set or a map; None for other values. Raises ValueError for a malformed one."""
    try:
        if version.type == "counter":
            msgspec.json.decode(version.value, type=int)
        if version.type == "set":
            return len(_raw_items.decode(version.value))
        if version.type == "map":
            return len(_raw_fields.decode(version.value))
    except msgspec.MsgspecError as exc:
        raise ValueError(f"a value is no {version.type}: {exc}") from None
    return None


def _unwritable(version: VersionLine, items: int | None) -> str:
    """Return why no write can restore a value; empty if one can."""
    if items is not None and items > MAX_ITEMS:
        return f"it has {items} items, and a PATCH makes at most {MAX_ITEMS}"
    if version.type == "counter":
        with suppress(msgspec.MsgspecError):
            if not MIN_INT <= msgspec.json.decode(version.value, type=int) <= MAX_INT:
                return "its sum is no 64-bit integer"
    return ""


def batched(items: Iterable[str], size: int) -> Iterator[list[str]]:
    """Yield ``items`` in lists of ``size``."""
    batch: list[str] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
