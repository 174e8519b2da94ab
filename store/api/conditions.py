"""Conditional requests: the headers ``If-Match`` and ``If-None-Match`` (RFC 9110, section 13; contract 2.2).

``W/`` is removed from weak tags. Every tag of this store is strong, and a proxy that compresses a response weakens its
tag, although the version behind it is the same.
"""

from __future__ import annotations

import re
from typing import Final

from rest_framework.exceptions import ParseError

from store.api.request import ApiRequest

ANY: Final = "*"

MAX_TAGS: Final = 64
"""Most entity tags in a header (contract 2.2)."""

_ETAG: Final = r'(?:W/)?"[^"]*"'
_ETAGS: Final = re.compile(rf"\s*{_ETAG}\s*(?:,\s*{_ETAG}\s*)*")
_STRONG_PART: Final = re.compile(r'"[^"]*"')


def if_match(request: ApiRequest) -> tuple[str, ...] | None:
    """Return the entity tags of ``If-Match``; None if the header is absent. ``*`` is returned as ``*``."""
    header = request.environ.get("HTTP_IF_MATCH")
    return None if header is None else _parse_tags(header, "If-Match")


def if_none_match(request: ApiRequest) -> bool:
    """Return whether a write requires the key to be absent (``If-None-Match: *``)."""
    header = request.environ.get("HTTP_IF_NONE_MATCH")
    if header is None:
        return False
    if _parse_tags(header, "If-None-Match") != (ANY,):
        raise ParseError("If-None-Match of a write has to be *")
    return True


def known_versions(request: ApiRequest) -> tuple[str, ...]:
    """Return the entity tags of the versions that the client already has (``If-None-Match`` of a read)."""
    header = request.environ.get("HTTP_IF_NONE_MATCH")
    return () if header is None else _parse_tags(header, "If-None-Match")


def _parse_tags(header: str, name: str) -> tuple[str, ...]:
    if header.strip() == ANY:
        return (ANY,)
    if header.count('"') > 2 * MAX_TAGS:
        raise ParseError(f"{name} has more than {MAX_TAGS} entity tags")
    if not _ETAGS.fullmatch(header):
        raise ParseError(f"{name} has to be * or quoted entity tags")
    return tuple(_STRONG_PART.findall(header))
