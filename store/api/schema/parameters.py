"""The parameters that operations of /kvs share."""

from __future__ import annotations

from typing import Final

from store.api.query import MAX_WAIT_S
from store.api.schema.building import ETAG, JSON, Object, parameter, ref
from store.engine import ABSENT_ETAG

_TAGS: Final[Object] = {
    "description": "One or more entity tags, separated by commas, or *.",
    "anyOf": [
        {"type": "string", "const": "*"},
        {"type": "string", "pattern": r'^"[!#-~]*"(, *"[!#-~]*")*$'},
    ],
}

KEY: Final = parameter("key", "path", "Percent-encoded. It may contain / as it is.", ref("Key"), "user/1")
WAIT: Final = parameter(
    "wait",
    "query",
    "Seconds that the request may wait: for its causal past (default: KV_DEFER_TIMEOUT), or on a GET with "
    "If-None-Match until the key changes.",
    {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S},
    0,
)
METADATA_HEADER: Final[Object] = {
    "name": "X-Causal-Metadata",
    "in": "header",
    "description": "The client's causal past, if it is not in the body.",
    "content": {JSON: {"schema": ref("Past"), "example": {}}},
}
METADATA_PARAMETER: Final[Object] = {
    "name": "causal-metadata",
    "in": "query",
    "description": "The client's causal past, if it is neither in the body nor in the header.",
    "content": {JSON: {"schema": ref("Past"), "example": {}}},
}
SIBLINGS: Final = parameter("siblings", "query", "Return all concurrent versions.", {"type": "boolean"}, False)
IF_CHANGED: Final = parameter(
    "If-None-Match",
    "header",
    'Tags of states that the client has; "absent": it knows that the key is absent.',
    _TAGS,
    ETAG,
)
IF_MATCH: Final = parameter(
    "If-Match", "header", 'Write only if the key has this tag; "absent": if the key is absent.', _TAGS, ETAG
)
IF_ABSENT: Final = parameter(
    "If-None-Match",
    "header",
    '*: write only if the key is absent. "absent": only if it is present.',
    {"type": "string", "enum": ["*", ABSENT_ETAG]},
)
