"""Preconditions of HTTP (RFC 9110, section 13), as far as SPEC 2.2 promises them: entity tags name versions."""

from __future__ import annotations

import re
from typing import Final

from django.http import HttpRequest
from rest_framework.exceptions import ParseError

ANY: Final = "*"

_ETAG: Final = r'(?:W/)?"[^"]*"'
_ETAGS: Final = re.compile(rf"\s*{_ETAG}\s*(?:,\s*{_ETAG}\s*)*")
_ONE_ETAG: Final = re.compile(_ETAG)


def if_match(request: HttpRequest) -> tuple[str, ...] | None:
    """Return the entity tags of ``If-Match``, ``*`` among them as itself; None where it is not there.

    A weak tag stays in as it is and so matches nothing: the comparison is the strong one.
    """
    header = request.META.get("HTTP_IF_MATCH")
    return None if header is None else _tags(header, "If-Match")


def if_none_match(request: HttpRequest) -> bool:
    """Return whether a write asks for the key to be absent (``If-None-Match: *``)."""
    header = request.META.get("HTTP_IF_NONE_MATCH")
    if header is None:
        return False
    if _tags(header, "If-None-Match") != (ANY,):
        raise ParseError("If-None-Match of a write has to be *")
    return True


def known_versions(request: HttpRequest) -> tuple[str, ...]:
    """Return the entity tags that a read has already (``If-None-Match``), compared weakly as a read may."""
    header = request.META.get("HTTP_IF_NONE_MATCH")
    return () if header is None else tuple(tag.removeprefix("W/") for tag in _tags(header, "If-None-Match"))


def _tags(header: str, name: str) -> tuple[str, ...]:
    if header.strip() == ANY:
        return (ANY,)
    if not _ETAGS.fullmatch(header):
        raise ParseError(f"{name} has to be * or quoted entity tags")
    return tuple(_ONE_ETAG.findall(header))
