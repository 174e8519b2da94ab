"""The records of the demo, from the Unicode character database of the running Python, and the order of their writes.

There is one record per named character, under a key like ``U+0041``. Characters form blocks of 256 code points. The
writer writes each block as one transaction, with every record at revision 1. Then it writes each character of the block
that has a decomposition once more, alone, at revision 2, which includes the parts.

So all revisions have places in one order (``place``), and each revision is a cause of all later ones: a client that has
read one must find all earlier ones. The readers of load.py check this. While a block is written, a key
``loading:<block>`` exists; the transaction of the next block deletes it.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

BLOCK_SIZE = 256
MARKER_PREFIX = "loading:"

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """One write: the transaction of a block, or the second revision of one record."""

    block: int
    records: dict[str, Record]
    is_block: bool


def key_of(code_point: int) -> str:
    """Return the key of a code point, such as ``U+0041``."""
    return f"U+{code_point:04X}"


def code_point_of(key: str) -> int:
    """Return the code point of a key."""
    return int(key.removeprefix("U+"), 16)


def block_of(key: str) -> int:
    """Return the number of the key's block."""
    return code_point_of(key) // BLOCK_SIZE


def last_revision(key: str) -> int:
    """Return the last revision of the record."""
    return 2 if unicodedata.decomposition(chr(code_point_of(key))) else 1


def place(key: str, revision: int) -> tuple[int, int]:
    """Return the place of a revision in the order of writes. At revision 1, all records of a block have one place."""
    return block_of(key), code_point_of(key) if revision == 2 else -1


def revision_at(key: str, seen: tuple[int, int]) -> int:
    """Return the revision of ``key`` after the write at place ``seen``; 0 if the key did not exist yet."""
    return next((revision for revision in range(last_revision(key), 0, -1) if place(key, revision) <= seen), 0)


def record(character: str, revision: int) -> Record:
    """Return the record of ``character``; revision 2 includes its parts."""
    properties: Record = {
        "character": character,
        "name": unicodedata.name(character),
        "category": unicodedata.category(character),
        "bidirectional": unicodedata.bidirectional(character),
        "combining": unicodedata.combining(character),
        "east_asian_width": unicodedata.east_asian_width(character),
        "mirrored": bool(unicodedata.mirrored(character)),
        "decimal": unicodedata.decimal(character, None),
        "digit": unicodedata.digit(character, None),
        "numeric": unicodedata.numeric(character, None),
        "revision": revision,
    }
    if revision == 2:
        properties["decomposition"] = unicodedata.decomposition(character)
        parts = unicodedata.normalize("NFKD", character)
        properties["parts"] = [unicodedata.name(part, key_of(ord(part))) for part in parts]
    return properties


def named_characters(limit: int | None = None) -> Iterator[str]:
    """Yield the first ``limit`` named characters, or all (some 140,000), in the order of code points."""
    count = 0
    for code_point in range(sys.maxunicode + 1):
        if limit is not None and count >= limit:
            return
        character = chr(code_point)
        if unicodedata.name(character, None) is not None:
            count += 1
            yield character


def steps(limit: int | None = None) -> Iterator[Step]:
    """Yield all writes in order; ``limit`` counts characters."""
    block: list[str] = []
    for character in named_characters(limit):
        if block and ord(character) // BLOCK_SIZE != ord(block[0]) // BLOCK_SIZE:
            yield from _block_steps(block)
            block = []
        block.append(character)
    if block:
        yield from _block_steps(block)


def _block_steps(characters: list[str]) -> Iterator[Step]:
    number = ord(characters[0]) // BLOCK_SIZE
    yield Step(number, {key_of(ord(character)): record(character, 1) for character in characters}, is_block=True)
    for character in characters:
        if unicodedata.decomposition(character):
            yield Step(number, {key_of(ord(character)): record(character, 2)}, is_block=False)
