"""Hooks of schemathesis for what JSON Schema cannot express about this API; its configuration loads them.

A schema cannot say that whole numbers have 64 bits, if doubles such as 1e300 are allowed; nor which texts are tokens of
the change feed; nor how many items two arrays have together.

Parameters with wrong metadata or entity tags are not sent: the replica does not read metadata if an earlier place has
some, and schemathesis makes headers of letters and digits only if their pattern has alternatives, as that of tags has.
tests/store/api/test_bad_input.py sends wrong ones. Nor are numbers sent as empty parameters, which count as absent.
"""

from __future__ import annotations

import json
import re
from typing import Any

import schemathesis

from store.api.schema.parameters import IF_MATCH
from store.settings import RequestLimits

VALUE_FIELDS = ("value", "writes", "increment", "add", "remove", "set")
TOKEN = "since"
NUMBERS = ("limit", "recent", "ttl", "w", "w-timeout", "wait")
MAX_BATCH = RequestLimits().max_batch
TAGS = re.compile(IF_MATCH["schema"]["pattern"])


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


def as_one_patch(write: Any) -> Any:
    """Return a PATCH whose lists have nothing in common, and whose elements are signed 64-bit integers or doubles."""
    if not isinstance(write, dict):
        return write
    write = dict(write)
    for name in ("add", "remove"):
        if isinstance(write.get(name), list):
            write[name] = [min(each, 2**63 - 1) if isinstance(each, int) else each for each in write[name]]
    for name, other in (("add", "remove"), ("set", "unset")):
        if isinstance(write.get(name), list | dict) and isinstance(write.get(other), list):
            write[other] = [each for each in write[other] if each not in list(write[name])]
    return write


def map_part(context: Any, part: Any) -> Any:
    """Return a generated body or query with numbers that values may have, and without a token."""
    if not isinstance(part, dict):
        return part
    kept = {name: value for name, value in part.items() if name != TOKEN}
    kept = as_one_patch({name: within_64_bits(v) if name in VALUE_FIELDS else v for name, v in kept.items()})
    writes = kept.get("writes")
    if isinstance(writes, list):
        # A key that is patched may be written only once.
        by_key = {str(each.get("key")) if isinstance(each, dict) else n: each for n, each in enumerate(writes)}
        kept["writes"] = [as_one_patch(write) for write in by_key.values()]
    return kept


for _name in ("map_body", "map_query"):
    schemathesis.hook(_name)(map_part)


@schemathesis.hook
def map_case(context: Any, case: schemathesis.Case[Any]) -> schemathesis.Case[Any]:
    """Return a request with at most ``MAX_BATCH`` keys."""
    body: Any = case.body
    if isinstance(body, dict) and isinstance(body.get("reads"), list) and isinstance(body.get("writes"), list):
        case.body = {**body, "writes": body["writes"][: max(0, MAX_BATCH - len(body["reads"]))]}
    return case


@schemathesis.hook
def filter_case(context: Any, case: schemathesis.Case[Any]) -> bool:
    """Return whether metadata and entity tags in the parameters are valid, or absent, and no number is empty.

    The example of a view change has no address, on purpose.
    """
    if case.body == {"socket-address": ""}:
        return False
    headers: dict[str, Any] = dict(case.headers or {})
    query: dict[str, Any] = dict(case.query or {})
    pasts = headers.get("X-Causal-Metadata", ""), query.get("causal-metadata", "")
    tags = headers.get("If-Match", "*"), headers.get("If-None-Match", "*")
    # Of an object in place of a number, only its members would be sent.
    are_sent = not any(query.get(name, 0) in ("", None) or isinstance(query.get(name), dict | list) for name in NUMBERS)
    return are_sent and all(map(is_metadata, pasts)) and all(TAGS.search(str(each)) for each in tags)


def is_metadata(text: Any) -> bool:
    """Return whether a parameter is metadata."""
    try:
        return text == "" or isinstance(json.loads(text), dict)
    except (TypeError, ValueError):
        return False
