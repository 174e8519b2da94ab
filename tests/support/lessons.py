"""What every error of a client teaches (contract P7): what to send, in words of HTTP and JSON."""

from __future__ import annotations

import re
from typing import Final

from tests.support.api import Response

FOREIGN: Final = re.compile(
    r"\b(?:int|float|str|dict|list|tuple|bool|NoneType|UnsetType|enum|Struct|msgspec|Traceback)\b|\$|Expected `"
)
"""Names of Python's types, and texts of libraries."""


def assert_teaches(response: Response) -> None:
    """Check that a 4xx says what to send."""
    assert 400 <= response.status < 500, response
    hint = response.body["hint"]
    assert 20 < len(hint) < 500, response
    assert hint.endswith("."), response
    if "rejected" not in response.body:  # That is for a replica, and the decoder's text for its log.
        assert FOREIGN.findall(f"{response.body['error']} {hint}") == [], response
