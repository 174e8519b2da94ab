"""The Unicode character database of the running Python as records, and the order in which the demo writes them.

One record a named character, under a key like ``U+0041``. Characters come in blocks of 256 code points, rising. A block
is written as one transaction, every record at revision 1; then each character of it that has a decomposition is written
once more, alone, at revision 2, which tells its parts. So every revision of every record has its place in one order
(``place``), each is the cause of all that come after it, and whoever has seen one must find all that come before.
The readers of load.py hold every replica to this. While a block is written, a key ``loading:<block>`` stands in the
store; the next block's transaction deletes it.
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
    """One write: a block's transaction, or a single record's second revision."""

    block: int
    records: dict[str, Record]
    is_block: bool


def key_of(code_point: int) -> str:
    """``U+0041``."""
    return f"U+{code_point:04X}"


def code_point_of(key: str) -> int:
    """The inverse of ``key_of``."""
    return int(key.removeprefix("U+"), 16)


def block_of(key: str) -> int:
    """Number of the block that the key belongs to."""
    return code_point_of(key) // BLOCK_SIZE


def last_revision(key: str) -> int:
    """The revision at which the record of ``key`` ends."""
    return 2 if unicodedata.decomposition(chr(code_point_of(key))) else 1


def place(key: str, revision: int) -> tuple[int, int]:
    """Where this revision stands in the order of writing. All records of a block have one place at revision 1."""
    return block_of(key), code_point_of(key) if revision == 2 else -1


def revision_at(key: str, seen: tuple[int, int]) -> int:
    """The revision (0: none) that ``key`` had when what has the place ``seen`` was written."""
    return next((revision for revision in range(last_revision(key), 0, -1) if place(key, revision) <= seen), 0)


def record(character: str, revision: int) -> Record:
    """What the database knows about ``character``; its parts only from revision 2 on."""
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


def named(limit: int | None = None) -> Iterator[str]:
    """Named characters, code points rising; the first ``limit`` of them, or all (some 140,000)."""
    count = 0
    for code_point in range(sys.maxunicode + 1):
        if limit is not None and count >= limit:
            return
        character = chr(code_point)
        if unicodedata.name(character, None) is not None:
            count += 1
            yield character


def steps(limit: int | None = None) -> Iterator[Step]:
    """All writes in their order."""
    block: list[str] = []
    for character in named(limit):
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
