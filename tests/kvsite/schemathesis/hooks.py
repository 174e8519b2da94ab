"""Hooks of schemathesis for what JSON Schema cannot express about this API; its configuration loads them.

A schema cannot say that whole numbers have 64 bits, if doubles such as 1e300 are allowed; nor which texts are tokens of
the change feed.
"""

from __future__ import annotations

from typing import Any

import schemathesis

VALUE_FIELDS = ("value", "writes")
TOKEN = "since"


def within_64_bits(value: Any) -> Any:
    """Return ``value`` with whole numbers that a value may have."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return max(-(2**63), min(value, 2**64 - 1))
    if isinstance(value, list):
        return [within_64_bits(each) for each in value]
    if isinstance(value, dict):
        return {name: within_64_bits(each) for name, each in value.items()}
    return value


def map_part(context: Any, part: Any) -> Any:
    """Return a generated body or query with numbers that values may have, and without a token."""
    if not isinstance(part, dict):
        return part
    return {
        name: within_64_bits(value) if name in VALUE_FIELDS else value for name, value in part.items() if name != TOKEN
    }


for _name in ("map_body", "map_query"):
    schemathesis.hook(_name)(map_part)
