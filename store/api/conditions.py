"""Conditional requests: the headers ``If-Match`` and ``If-None-Match`` (RFC 9110, section 13; contract 2.2).

An absent key has the tag ``"absent"``, which conditions may name. ``*`` matches any version, but not an absent key.

``W/`` is removed from weak tags. Every tag of this store is strong, and a proxy that compresses a response weakens its
tag, although the version behind it is the same.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from rest_framework.exceptions import ParseError

from store.api.request import ApiRequest
from store.api.usage import with_hint
from store.engine import ABSENT_ETAG

ANY: Final = "*"

MAX_TAGS: Final = 64
"""Most entity tags in a header (contract 2.2)."""

TAG_HINT: Final = "Send the ETag of the latest response with its quotes: it names all versions of the key."

_ETAG: Final = r'(?:W/)?"[^"]*"'
_ETAGS: Final = re.compile(rf"\s*{_ETAG}\s*(?:,\s*{_ETAG}\s*)*")
_STRONG_PART: Final = re.compile(r'"[^"]*"')


class Conditions(NamedTuple):
    """The conditions of a write, as in ``store.versions.Change``."""

    if_match: tuple[str, ...] | None = None
    if_none_match: bool = False


NO_CONDITIONS: Final = Conditions()


def conditions(request: ApiRequest) -> Conditions:
    """Return the conditions of a write. Raises ``ParseError``."""
    match, none_match = request.environ.get("HTTP_IF_MATCH"), request.environ.get("HTTP_IF_NONE_MATCH")
    if match is None and none_match is None:  # The common case.
        return NO_CONDITIONS
    return combined(
        None if match is None else _parse_tags(match, "If-Match"),
        None if none_match is None else _parse_tags(none_match, "If-None-Match"),
    )


def combined(match: tuple[str, ...] | None, none_match: tuple[str, ...] | None) -> Conditions:
    """Return both conditions as those of a change. Raises ``ParseError``."""
    if none_match is None or none_match == (ANY,):
        return Conditions(match, none_match is not None)
    if none_match != (ABSENT_ETAG,):
        error = ParseError(f"If-None-Match of a write has to be * or {ABSENT_ETAG}")
        raise with_hint(error, "With * it writes only if the key is absent. For the tag of a version, send If-Match.")
    # The key must be present.
    return Conditions((ANY,) if match is None else tuple(tag for tag in match if tag != ABSENT_ETAG))


def known_versions(request: ApiRequest) -> tuple[str, ...]:
    """Return the entity tags of the versions that the client already has (``If-None-Match`` of a read)."""
    header = request.environ.get("HTTP_IF_NONE_MATCH")
    return () if header is None else _parse_tags(header, "If-None-Match")


def _parse_tags(header: str, name: str) -> tuple[str, ...]:
    if header.strip() == ANY:
        return (ANY,)
    if header.count('"') > 2 * MAX_TAGS:
        raise with_hint(ParseError(f"{name} has more than {MAX_TAGS} entity tags"), TAG_HINT)
    if not _ETAGS.fullmatch(header):
        raise with_hint(ParseError(f"{name} has to be * or quoted entity tags"), TAG_HINT)
    return tuple(_STRONG_PART.findall(header))
