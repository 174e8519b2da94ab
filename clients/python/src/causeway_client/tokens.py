"""Causal tokens: the metadata of a session as compact text, for a cookie, a header or a message.

A token is a digit for its format, then the metadata as JSON, compressed, in base64 for URLs. Three replicas take about
130 characters. A token is not secret and not signed. Somebody who may change one can only make their own requests wait
for updates that do not exist; sign it (``django.core.signing`` does) before you take it from a browser.
"""

from __future__ import annotations

import base64
import json
import zlib
from typing import Final

from .results import Metadata

FORMAT: Final = "1"

MAX_ENTRIES: Final = 1024
"""Most entries that a replica accepts unless ``KV_MAX_CLOCK_ENTRIES`` raises it."""

MAX_BYTES: Final = 512 * 1024
"""Limit of a decoded token, so that a short text cannot take much memory."""

MAX_COUNTER: Final = 2**53 - 1


def encode(metadata: Metadata) -> str:
    """Return the token of ``metadata``; "" if it is empty."""
    if not metadata:
        return ""
    text = json.dumps(dict(sorted(metadata.items())), ensure_ascii=False, separators=(",", ":")).encode()
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = compressor.compress(text) + compressor.flush()
    return FORMAT + base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode(token: str) -> dict[str, int]:
    """Return the metadata of a token. Raises ``ValueError`` if ``encode`` has not made it."""
    if not token:
        return {}
    if token[:1] != FORMAT:
        raise ValueError("not a causal token")
    decompressor = zlib.decompressobj(-15)
    try:
        packed = base64.b64decode(token[1:] + "=" * (-len(token[1:]) % 4), altchars=b"-_", validate=True)
        metadata = json.loads(decompressor.decompress(packed, MAX_BYTES))
    except (ValueError, zlib.error, RecursionError) as exc:
        raise ValueError("not a causal token") from exc
    if not decompressor.eof or decompressor.unused_data:
        raise ValueError("not a causal token")
    if not isinstance(metadata, dict) or not 0 < len(metadata) <= MAX_ENTRIES:
        raise ValueError("not a causal token")
    for counter in metadata.values():
        if type(counter) is not int or not 0 <= counter <= MAX_COUNTER:
            raise ValueError("not a causal token")
    return metadata
