"""Hooks of schemathesis for what JSON Schema cannot express about this API; its configuration loads them.

In JSON Schema 7.0 is an integer, and schemathesis sends such numbers on purpose. The replica rejects them as counters
and as ``w``, which must be written as whole numbers. Nor can a schema say that whole numbers have 64 bits, if doubles
such as 1e300 are allowed.
"""

from __future__ import annotations

from typing import Any

import schemathesis

VALUE_FIELDS = ("value", "writes")
WHOLE_NUMBER_FIELDS = ("causal-metadata", "X-Causal-Metadata", "w")


def without_fractions(value: Any) -> Any:
    """Return ``value`` with numbers such as 7.0 replaced by 7."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: without_fractions(each) for name, each in value.items()}
    return value


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
    """Return a generated body, query or set of headers with whole numbers in ``WHOLE_NUMBER_FIELDS``."""
    if not isinstance(part, dict):
        return part
    part = {name: without_fractions(value) if name in WHOLE_NUMBER_FIELDS else value for name, value in part.items()}
    return {name: within_64_bits(value) if name in VALUE_FIELDS else value for name, value in part.items()}


for _name in ("map_body", "map_query", "map_headers"):
    schemathesis.hook(_name)(map_part)
