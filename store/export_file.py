"""The format of an export: lines of JSON that hold one causal snapshot (contract 4).

    {"causeway-export":1,"replica":"…","time":1795391360.6,"prefix":"","keys":2,"causal-metadata":{…}}
    {"key":"user/1","versions":[{"value":{"name":"Ada"},"timestamp":1795391360636245}]}
    {"key":"visits","versions":[{"value":7,"type":"counter","timestamp":1795391360636250,"expires":1795394960.6}]}
    {"count":2,"sha256":"…"}

The first line is about the export, each further one is one key, in no particular order. ``versions`` are the values
that clients see, the winner first (store/siblings.py). A value that is bytes is in base64, with ``encoding``; a value
that merges is as clients see it, with ``type``. ``timestamp`` is hybrid time in microseconds, ``expires`` Unix seconds.

The last line has the number of keys, and the SHA-256 of all bytes before it. Only a file with this line is complete. An
export that cannot be completed ends with ``{"error":"…"}``, or without any last line.

Dots are not part of it: an import issues new ones.

``ExportReader`` reads a file. What comes from a replica is checked by the client's ``ExportCheck``
(clients/python/src/causeway_client/export.py), also for the command ``export``.
"""

from __future__ import annotations

import hashlib
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, BinaryIO, Final, Literal

import msgspec
from msgspec import UNSET, UnsetType

from store.merging import MergingKind
from store.siblings import shown
from store.values import BASE64, JsonText, as_json, encoding_of, merging_kind
from store.versions import Version, Versions

FORMAT: Final = 1

MAX_LINE_BYTES: Final = 256 * 1024 * 1024
"""Longest line that is read: as long as a message between replicas, which has to hold a key with all its siblings."""

PIECE_BYTES: Final = 64 * 1024
"""Small parts of an export are joined up to this size."""

_encode: Final = msgspec.json.Encoder().encode


# -- writing -----------------------------------------------------------------------------------------------------------


def header_line(facts: Mapping[str, Any]) -> bytes:
    """Return the first line. ``facts``: what it says besides the format."""
    return _encode({"causeway-export": FORMAT, **facts}) + b"\n"


def key_line(key: str, versions: Versions) -> list[JsonText]:
    """Return the parts of the line of a key, without a copy of its values."""
    seen = shown(versions)
    parts: list[JsonText] = [b'{"key":%b,"versions":[' % _encode(key)]
    for version in seen:
        parts += (b'{"value":', as_json(version.value), _facts(version), b",")
    parts[-1] = b"]}\n"
    return parts


def _facts(version: Version) -> bytes:
    """Return the members of a version behind its value, and the closing brace."""
    stored = version.value
    facts = b',"timestamp":%d' % version.timestamp
    if encoding_of(stored) is not None:
        facts = b',"encoding":"base64"' + facts
    elif (kind := merging_kind(stored)) is not None:
        facts = b',"type":"%b"' % kind.encode() + facts
    if version.expires is not None:
        facts += b',"expires":%b' % _encode(version.expires / 1_000_000)
    return facts + b"}"


class ExportWriter:
    """Turns parts of lines into pieces of about ``PIECE_BYTES``, and knows their checksum.

    ``count``: how many keys were written.
    """

    def __init__(self) -> None:
        self.count = 0
        self._checksum = hashlib.sha256()

    def begin(self, facts: Mapping[str, Any]) -> bytes:
        """Return the first line."""
        line = header_line(facts)
        self._checksum.update(line)
        return line

    def lines(self, keyed: Iterable[tuple[str, Versions]]) -> Iterator[bytes]:
        """Yield the lines of these keys in pieces."""
        collected: list[bytes] = []
        size = 0
        for key, versions in keyed:
            self.count += 1
            for part in key_line(key, versions):
                for piece in (part,) if isinstance(part, bytes) else part:
                    collected.append(piece)
                    size += len(piece)
                    if size >= PIECE_BYTES:
                        yield self._joined(collected)
                        collected, size = [], 0
        if collected:
            yield self._joined(collected)

    def end(self) -> bytes:
        """Return the last line."""
        return _encode({"count": self.count, "sha256": self._checksum.hexdigest()}) + b"\n"

    def _joined(self, collected: list[bytes]) -> bytes:
        joined = collected[0] if len(collected) == 1 else b"".join(collected)
        self._checksum.update(joined)
        return joined


def failure_line(reason: str) -> bytes:
    """Return the last line of an export that cannot be completed."""
    return _encode({"error": reason}) + b"\n"


# -- reading -----------------------------------------------------------------------------------------------------------


class BadExport(Exception):
    """The file is no complete export. The text says what is wrong, and where."""


class Header(msgspec.Struct, rename={"format": "causeway-export", "clock": "causal-metadata"}):
    """The first line. ``time``: Unix seconds. ``keys``: how many follow. ``clock``: what the snapshot contains."""

    format: Literal[1]
    keys: int = msgspec.field()
    prefix: str = ""
    replica: str = ""
    time: float = 0.0
    clock: dict[str, int] = {}


class VersionLine(msgspec.Struct):
    """One value of a key."""

    value: msgspec.Raw
    timestamp: int = 0
    encoding: Literal["base64"] | None = None
    type: MergingKind | None = None
    expires: float | None = None

    def content(self) -> bytes:
        """Return the bytes of a value whose ``encoding`` is base64. Raises ValueError."""
        try:
            return a2b_base64(msgspec.json.decode(self.value, type=str), strict_mode=True)
        except (msgspec.MsgspecError, Base64Error) as exc:
            raise ValueError(f"a value is no {BASE64}: {exc}") from None


class KeyLine(msgspec.Struct):
    """One key."""

    key: str
    versions: list[VersionLine]


class _Line(msgspec.Struct):
    """Any line but the first: of a key, the last one, or that of a failure."""

    key: str | UnsetType = UNSET
    versions: list[VersionLine] | UnsetType = UNSET
    count: int | UnsetType = UNSET
    sha256: str | UnsetType = UNSET
    error: str | UnsetType = UNSET


_header_decoder: Final = msgspec.json.Decoder(Header)
_line_decoder: Final = msgspec.json.Decoder(_Line)


class ExportReader:
    """Reads an export from ``stream``, line by line. ``header``: its first line. Raises ``BadExport``.

    ``line_number``, ``bytes_read``: how far it is.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._checksum = hashlib.sha256()
        self.line_number = 0
        self.bytes_read = 0
        line = self._next_line()
        self.header = decode_header(line)
        self._checksum.update(line)

    def lines(self) -> Iterator[KeyLine]:
        """Yield every key. Without an exception at the end, the export is complete."""
        count = 0
        while line := self._next_line():
            found = _decode_line(line, self.line_number)
            if found.error is not UNSET:
                raise BadExport(f"the export could not be completed: {found.error[:300]}")
            if found.sha256 is not UNSET:
                self._check_end(found, count)
                return
            if not found.key or not found.versions:
                raise _bad(self.line_number, "it is neither a key with versions nor the last line")
            self._checksum.update(line)
            count += 1
            yield KeyLine(found.key, found.versions)
        raise BadExport(f"the export is not complete: it ends after {count} of {self.header.keys} keys")

    def _check_end(self, last: _Line, count: int) -> None:
        if last.sha256 != self._checksum.hexdigest():
            raise BadExport("the export is damaged: its last line does not fit to what is before it")
        if not last.count == count == self.header.keys:
            raise BadExport(f"the export has {count} keys, and says {last.count} at its end")
        if self._next_line():
            raise BadExport("the export goes on after its last line")

    def _next_line(self) -> bytes:
        """Return the next line, or nothing at the end of the file. A line without an end counts as cut off."""
        line = self._stream.readline(MAX_LINE_BYTES + 1)
        self.line_number += 1
        self.bytes_read += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise _bad(self.line_number, f"it is longer than {MAX_LINE_BYTES} bytes")
        if line and not line.endswith(b"\n"):
            raise BadExport(f"the export is not complete: line {self.line_number} is cut off")
        return line


def decode_header(line: bytes) -> Header:
    """Return the first line of an export, decoded. Raises ``BadExport``."""
    try:
        return _header_decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise BadExport("this is no export of Causeway: the first line is not that of one") from None


def _decode_line(line: bytes, number: int) -> _Line:
    try:
        if not line.isascii():
            line.decode()  # msgspec does not check strings in values that it does not decode.
        return _line_decoder.decode(line)
    except msgspec.MsgspecError as exc:
        raise _bad(number, str(exc)) from None
    except (UnicodeDecodeError, RecursionError):
        raise _bad(number, "it is no UTF-8, or nested too deeply") from None


def _bad(number: int, what: str) -> BadExport:
    return BadExport(f"line {number} is no line of an export: {what}")
