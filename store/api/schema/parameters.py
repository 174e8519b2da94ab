"""The parameters that operations of /kvs share.

``/docs/`` sends the example of a parameter with the request. So only parameters of the path have one: what is optional
stays empty until a reader fills it in.
"""

from __future__ import annotations

from typing import Final

from store.api.query import MAX_WAIT_S
from store.api.rendering import JSON
from store.api.schema.building import TTL, W_TIMEOUT, Object, W, parameter, ref
from store.engine import ABSENT_ETAG

_TAGS: Final[Object] = {
    "description": "One or more entity tags, separated by commas, or *.",
    "type": "string",
    "pattern": r'^\*$|^"[!#-~]*"(, *"[!#-~]*")*$',
}
_ENTRY: Final = r'"[!#-\[\]-~]{1,320}": *(0|[1-9][0-9]{0,14})'
_PAST: Final[Object] = {
    "description": "JSON: an object as in CausalMetadata, or nothing.",
    "type": "string",
    "contentMediaType": JSON,
    "contentSchema": ref("CausalMetadata"),
    # Generators of clients know patterns, and not contentSchema. Ids of replicas are ASCII.
    "pattern": rf"^(\{{({_ENTRY}(, *{_ENTRY})*)?\}})?$",
}

_IN_BODY: Final = "If the body is JSON, it can also be there, which counts first."

KEY: Final = parameter("key", "path", "Percent-encoded. It may contain / as it is.", ref("Key"), "example/user")
COUNTER_KEY: Final = {**KEY, "example": "example/visits"}
"""The key of a PATCH: its examples are for a counter, which no PUT of another example replaces."""
WAIT: Final = parameter(
    "wait",
    "query",
    "Seconds that the request may wait: for its causal past (default: KV_DEFER_TIMEOUT), or on a GET with "
    "If-None-Match until the key changes.",
    {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S},
)
METADATA_HEADER: Final = parameter(
    "X-Causal-Metadata", "header", "The client's causal past, if it is not in the body.", _PAST
)
METADATA_PARAMETER: Final = parameter(
    "causal-metadata", "query", "The client's causal past, if it is neither in the body nor in the header.", _PAST
)
SIBLINGS: Final = parameter("siblings", "query", "Return all concurrent versions.", {"type": "boolean"})
TTL_PARAMETER: Final = parameter(
    "ttl", "query", f"{TTL} {_IN_BODY}", {"type": "number", "exclusiveMinimum": 0, "maximum": 1e10}
)
W_PARAMETER: Final = parameter(
    "w",
    "query",
    f"{W} {_IN_BODY}",
    {
        "anyOf": [
            {"type": "integer", "minimum": 1, "exclusiveMaximum": 2**53},
            {"type": "string", "enum": ["majority", "all"]},
        ]
    },
)
W_TIMEOUT_PARAMETER: Final = parameter(
    "w-timeout", "query", f"{W_TIMEOUT} {_IN_BODY}", {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S}
)
IF_CHANGED: Final = parameter(
    "If-None-Match",
    "header",
    'Tags of states that the client has; "absent": it knows that the key is absent.',
    _TAGS,
)
IF_MATCH: Final = parameter(
    "If-Match", "header", 'Write only if the key has this tag; "absent": if the key is absent.', _TAGS
)
IF_ABSENT: Final = parameter(
    "If-None-Match",
    "header",
    '*: write only if the key is absent. "absent": only if it is present.',
    {"type": "string", "enum": ["*", ABSENT_ETAG]},
)
