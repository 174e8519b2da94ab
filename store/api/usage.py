"""How requests are made: what error responses add, so that a client learns from its first mistake what to send.

An error response with a 4xx status has a ``hint``, and an ``example`` if the request takes a body. The example comes
from the ``Usage`` of the view and method. The hint is about what is wrong:

* If the exception has a hint of its own (``with_hint``), it is that one.
* If the request as a whole is not what the method and path take (``WrongForm``, and the statuses 405 and 415), it is
  the hint of the usage. It names the header that declares JSON only if the request lacks that header.
* Otherwise it says where all requests are described.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple, TypeVar

from rest_framework.exceptions import ParseError

AnyException = TypeVar("AnyException", bound=Exception)


class Usage(NamedTuple):
    """How to send a request of one method to one route.

    ``hint``: a few sentences. ``example``: a body that the request accepts as it stands; None if it takes no body.
    """

    hint: str
    example: Any = None

    def hint_for(self, *, declares_json: bool) -> str:
        """Return the hint for a request. ``declares_json``: whether it has the header for JSON."""
        return self.hint if declares_json else self.hint.replace(SEND_OBJECT, SEND_JSON, 1)


SEND_OBJECT: Final = "Send an object with"
SEND_JSON: Final = "Send the header Content-Type: application/json (curl --json does) and an object with"
"""Beginnings of the hint of a request that takes a body."""

ELSEWHERE: Final = Usage("/schema/ describes every request that this replica accepts; /docs/ shows the same.")
"""For a method of which a view says nothing."""


class WrongForm(ParseError):
    """The request lacks what the method and path need, or has it in another form. ``Usage`` says what to send."""


def with_hint(exc: AnyException, hint: str) -> AnyException:
    """Return ``exc`` with a hint for the client. It takes the place of the hint in the request's usage."""
    exc.add_note(hint)
    return exc


def hint_of(exc: Exception) -> str:
    """Return the hint of ``exc``; empty if it has none."""
    return " ".join(getattr(exc, "__notes__", ()))
