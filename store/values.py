"""The stored form of values: the bytes that updates, versions, the log and messages between replicas hold as a value.

A JSON value is stored as its text, compact, in UTF-8. A value of another *kind* is stored as one byte, its *tag*,
followed by its content. Tags are below 0x20, and no compact JSON text begins with such a byte.

So a value carries its kind wherever it goes: through the log, through snapshots and joins, and through a replica that
does not know the kind, which passes the bytes on as they are. JSON values, nearly all, take no byte more.

The kinds: ``json``; ``bytes``, whose content is the client's bytes; and the kinds that merge, whose content is a state
(store/merging.py). A kind with a tag that this version does not know is read as ``bytes``: a replica of a later version
may have sent it. (An update of a peer may also have a value without a byte. It reads as JSON, like any value whose text
only its sender can vouch for.)
"""

from __future__ import annotations

from binascii import b2a_base64
from collections.abc import Iterator
from typing import Final, Literal

import msgspec

from store.merging import MergingKind, State, decode, encode, value_of

Kind = Literal["json", "bytes"] | MergingKind
"""The kind of a value, as responses name it (``type``)."""

KINDS: Final[tuple[Kind, ...]] = ("json", "bytes", "counter", "set", "map")

JSON_KIND: Final = "json"
BYTES_KIND: Final = "bytes"

_FIRST_OF_JSON: Final = b"\x20"
"""Every tag is below it."""

_BYTES_TAG: Final = b"\x01"

_TAGS: Final[dict[MergingKind, bytes]] = {"counter": b"\x02", "set": b"\x03", "map": b"\x04"}
_MERGING: Final[dict[bytes, MergingKind]] = {tag: kind for kind, tag in _TAGS.items()}

SMALL_STATE: Final = 512
"""Below this many bytes it is not worth decoding a state to know its length as JSON."""

_GROWTH: Final = 6
"""Most bytes of JSON for one byte of a state: a control character is escaped with six."""

_to_json: Final = msgspec.json.Encoder().encode

BASE64: Final = "base64"
"""The ``encoding`` of a value that is not JSON where it stands in JSON."""

PIECE_BYTES: Final = 48 * 1024
"""Bytes that ``Base64Text`` encodes at a time: a multiple of three, so that only the last piece may have padding."""


def store_bytes(content: bytes) -> bytes:
    """Return the stored form of a value of the kind ``bytes``."""
    return _BYTES_TAG + content


def store_state(state: State) -> bytes:
    """Return the stored form of a value that merges."""
    return _TAGS[state.kind] + encode(state)


def merging_kind(stored: bytes) -> MergingKind | None:
    """Return the kind of a value that merges; None for any other value."""
    return _MERGING.get(stored[:1])


def state_of(stored: bytes) -> State:
    """Return the state of a value that merges. Raises ValueError if it is none, or malformed."""
    kind = merging_kind(stored)
    if kind is None:
        raise ValueError(f"{kind_of(stored)} values have no state")
    return decode(kind, memoryview(stored)[1:])


def check_state(stored: bytes) -> None:
    """Raise ValueError if a value that a peer sent is of a kind that merges, and its state is malformed."""
    if merging_kind(stored) is not None:
        state_of(stored)


def is_json(stored: bytes) -> bool:
    """Return whether the value is JSON, so that its stored form is its text. The test for the common case."""
    return stored[:1] >= _FIRST_OF_JSON or not stored


def kind_of(stored: bytes) -> Kind:
    """Return the kind of a stored value."""
    return JSON_KIND if is_json(stored) else _MERGING.get(stored[:1], BYTES_KIND)


def encoding_of(stored: bytes) -> str | None:
    """Return how a stored value that is not JSON is encoded where it stands in JSON; None if it is JSON."""
    return BASE64 if kind_of(stored) == BYTES_KIND else None


def content_of(stored: bytes) -> bytes:
    """Return a stored value without its tag: the text of JSON, or the client's bytes."""
    return stored if is_json(stored) else stored[1:]


def content_length(stored: bytes) -> int:
    """Return the length of ``content_of``."""
    return len(stored) if is_json(stored) else len(stored) - 1


class Base64Text:
    """A value that is not JSON as JSON text: a string in base64. It is encoded in pieces, when it is read.

    So a response that nobody reads, or that is rejected, holds no copy of the value.
    """

    __slots__ = ("_stored",)

    def __init__(self, stored: bytes) -> None:
        self._stored = stored

    def __len__(self) -> int:
        return base64_length(len(self._stored) - 1)

    def __iter__(self) -> Iterator[bytes]:
        content = memoryview(self._stored)[1:]
        yield b'"'
        for start in range(0, len(content), PIECE_BYTES):
            yield b2a_base64(content[start : start + PIECE_BYTES], newline=False)
        yield b'"'

    def __bytes__(self) -> bytes:
        return b"".join(self)


def base64_length(length: int) -> int:
    """Return the length of a string of ``length`` bytes in base64, quotes included."""
    return (length + 2) // 3 * 4 + 2


JsonText = bytes | Base64Text
"""JSON text, complete or to be encoded. Both forms know their length; ``bytes`` makes either one complete."""


def as_json(stored: bytes) -> JsonText:
    """Return a stored value as JSON text: JSON as it is, bytes in base64 (``encoding_of``), both without a copy; of a
    state, what clients see of it."""
    if is_json(stored):
        return stored
    if merging_kind(stored) is not None:
        value = value_of(state_of(stored))
        # Concurrent increments may leave 64 bits together, and the encoder does not take such numbers.
        return b"%d" % value if isinstance(value, int) else _to_json(value)
    return Base64Text(stored)


def json_length(stored: bytes) -> int:
    """Return the length of ``as_json``, without making it; of a small state, an upper bound."""
    if merging_kind(stored) is not None:
        return _GROWTH * len(stored) + 32 if len(stored) < SMALL_STATE else len(as_json(stored))
    return len(as_json(stored))
