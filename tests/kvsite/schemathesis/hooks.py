"""What schemathesis is told of this API that JSON Schema cannot say; loaded by its config.

To JSON Schema 7.0 is an integer, and schemathesis sends such numbers on purpose. Counters and ``w`` have to be written
as whole numbers (SPEC 2: "non-negative whole numbers", and a float among them is bad input).
"""

from __future__ import annotations

from typing import Any

import schemathesis

WHOLE = ("causal-metadata", "X-Causal-Metadata", "w")


def whole(value: Any) -> Any:
    """Return ``value`` with its numbers like 7.0 as 7."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: whole(each) for name, each in value.items()}
    return value


def map_part(context: Any, part: Any) -> Any:
    """Return a body, a query or headers with whole numbers where they have to be."""
    if not isinstance(part, dict):
        return part
    return {name: whole(value) if name in WHOLE else value for name, value in part.items()}


for _name in ("map_body", "map_query", "map_headers"):
    schemathesis.hook(_name)(map_part)
