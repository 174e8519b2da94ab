"""How requests are made: what error responses add, so that a client learns from its first mistake what to send.

An error response with a 4xx status has a ``hint``, and an ``example`` if the request takes a body. Both come from the
``Usage`` of the view and method, unless the exception has a hint of its own (``with_hint``).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeVar

AnyException = TypeVar("AnyException", bound=Exception)


class Usage(NamedTuple):
    """How to send a request of one method to one route.

    ``hint``: a few sentences. ``example``: a body that the request accepts as it stands; None if it takes no body.
    """

    hint: str
    example: Any = None


SEND_JSON: Final = "Send the header Content-Type: application/json (curl --json does) and an object with"

ELSEWHERE: Final = Usage("/schema/ describes every request that this replica accepts; /docs/ shows the same.")
"""For a method of which a view says nothing."""


def with_hint(exc: AnyException, hint: str) -> AnyException:
    """Return ``exc`` with a hint for the client. It takes the place of the hint in the request's usage."""
    exc.add_note(hint)
    return exc


def hint_of(exc: Exception) -> str:
    """Return the hint of ``exc``; empty if it has none."""
    return " ".join(getattr(exc, "__notes__", ()))
