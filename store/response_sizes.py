"""Upper bounds of what parts of a response take as JSON, known without encoding them."""

from __future__ import annotations

from typing import Final

from store.values import BASE64, is_json, json_length

META_BYTES: Final = 128
"""Most bytes of a key's entry in the ``meta`` of a listing, as JSON, without the key and its entity tag."""

_ENCODING_BYTES: Final = len(BASE64) + 3
"""Most bytes of a key's entry in the ``encodings`` of a response, as JSON, without the key."""


def encoded_key_bytes(key: str) -> int:
    """Return an upper bound of the length of ``key`` as JSON, with what stands around it.

    JSON escapes quotes and backslashes with two bytes and control characters with six; UTF-8 takes at most four.
    """
    return (2 if key.isascii() and key.isprintable() else 6) * len(key) + 4


def encoded_value_bytes(key: str, stored: bytes) -> int:
    """Return an upper bound of what a value adds to a response: its length as JSON, and how it is encoded."""
    size = json_length(stored)
    return size if is_json(stored) else size + encoded_key_bytes(key) + _ENCODING_BYTES
