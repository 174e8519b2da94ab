"""Media types: whether a request sends, or asks for, a value as raw bytes (contract 2.1; RFC 9110, section 12.5.1).

JSON is the default on both sides, as for a client that knows nothing of bytes. Bytes are only sent to a client that
names their media type; ``*/*`` does not.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec
from rest_framework.exceptions import ParseError

from store.api.rendering import JSON, OCTETS
from store.api.request import ApiRequest
from store.api.usage import with_hint

ORDINARY: Final = frozenset({"", "*/*", JSON})
"""The common values of ``Accept``, none of which asks for bytes."""


class Preference(Enum):
    """What a client accepts: JSON only; bytes if the value is bytes, else JSON; or bytes only."""

    JSON = "json"
    BYTES_OR_JSON = "bytes or json"
    BYTES = "bytes"


def sends_bytes(request: ApiRequest) -> bool:
    """Return whether the body of a write is the value itself, as bytes."""
    return request.environ.get("CONTENT_TYPE", JSON) != JSON and request.media_type == OCTETS


def preference(request: ApiRequest) -> Preference:
    """Return what the client accepts. Raises ``ParseError`` if it names bytes with an invalid quality.

    Bytes count only if they are named, and no lower than JSON. A client that accepts neither gets JSON, as HTTP allows.
    """
    accept: str = request.environ.get("HTTP_ACCEPT", "")
    if OCTETS not in accept.lower():
        return Preference.JSON
    qualities: dict[str, float] = {}
    for each in accept.lower().split(","):
        media_type, *parameters = [part.strip() for part in each.split(";")]
        qualities[media_type] = _quality(parameters)
    of_json = next((qualities[name] for name in (JSON, "application/*", "*/*") if name in qualities), 0.0)
    of_bytes = qualities.get(OCTETS, 0.0)
    if not of_bytes or of_bytes < of_json:
        return Preference.JSON
    return Preference.BYTES_OR_JSON if of_json else Preference.BYTES


def _quality(parameters: list[str]) -> float:
    """Return the value of the parameter ``q``, which is 1 if it is absent."""
    for parameter in parameters:
        name, _, text = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = msgspec.json.decode(text.strip(), type=float)
            except (msgspec.DecodeError, UnicodeError):
                quality = -1.0
            if not 0 <= quality <= 1:
                error = ParseError("Accept has a quality (q) that is not a number from 0 to 1")
                raise with_hint(error, f"Send Accept: {OCTETS}, {JSON};q=0.5, or leave the quality out.")
            return quality
    return 1.0
