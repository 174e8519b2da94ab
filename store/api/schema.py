"""How OpenAPI describes /kvs: operations with examples, as plain data that views are decorated with.

DRF's serializers, from which such descriptions are usually made, do not run here (store/api/base.py), so the
descriptions are written out; that they are true is tested by sending what they allow (tests/kvsite/test_schema.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from drf_spectacular.utils import extend_schema

from store.api.query import MAX_WAIT_S

Json = Any
Operation = dict[str, Json]
Handler = TypeVar("Handler", bound=Callable[..., Any])

JSON: Final = "application/json"

REPLICA: Final = "10.0.0.1:8090@3440b4cb61180bc6"
OTHER: Final = "10.0.0.2:8090@3440b4cb61206d0a"
PAST: Final = {REPLICA: 7}
NEXT: Final = {REPLICA: 8}
ETAG: Final = f'"{REPLICA}:7"'


def described(operation: Operation) -> Callable[[Handler], Handler]:
    """Return a decorator that lets ``/schema/`` tell ``operation`` of a handler."""
    return extend_schema(operation=operation)


def ref(name: str) -> Operation:
    """Return a reference to one of the component schemas."""
    return {"$ref": f"#/components/schemas/{name}"}


def one(properties: Mapping[str, Json]) -> Operation:
    """Return the schema of an object that has all of ``properties``."""
    return {"type": "object", "required": list(properties), "properties": dict(properties)}


def answer(
    description: str,
    schema: Operation | None = None,
    examples: Mapping[str, Json] | None = None,
    *,
    headers: Sequence[str] = (),
    media_type: str = JSON,
) -> Operation:
    """Return one response. ``examples``: what happened -> body."""
    told: Operation = {"description": description}
    if headers:
        told["headers"] = {name: HEADERS[name] for name in headers}
    if schema is not None:
        named = {
            f"example{n}": {"summary": what, "value": value} for n, (what, value) in enumerate((examples or {}).items())
        }
        told["content"] = {media_type: {"schema": schema, **({"examples": named} if named else {})}}
    return told


def body(schema: str, *, required: bool = False, **examples: Json) -> Operation:
    """Return a request's body. ``examples``: name -> body."""
    named = {name: {"summary": name.replace("_", " "), "value": value} for name, value in examples.items()}
    return {"required": required, "content": {JSON: {"schema": ref(schema), "examples": named}}}


HEADERS: Final[dict[str, Operation]] = {
    "ETag": {"description": "Names the version: its dot.", "schema": {"type": "string"}, "example": ETAG},
    "X-Causal-Metadata": {
        "description": "The same as causal-metadata in the body; left out above 4 KiB.",
        "schema": {"type": "string"},
        "example": '{"10.0.0.1:8090@3440b4cb61180bc6":7}',
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "string"}, "example": "1"},
}

SCHEMAS: Final[dict[str, Operation]] = {
    "CausalMetadata": {
        "type": "object",
        "description": "A vector clock: replica id to highest counter. Opaque: send back the latest one.",
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
        "maxProperties": 1024,
        "example": PAST,
    },
    "Past": {
        "description": "The causal past of the client; null, absent or {} mean that it has none.",
        "anyOf": [{"$ref": "#/components/schemas/CausalMetadata"}, {"type": "null"}],
        "example": PAST,
    },
    "Value": {"description": "Any JSON value, null included; at most 1 MiB encoded."},
    "WriteConcern": {
        "description": "How many members are to have the write: 1 (this replica), a number, or of all that belong.",
        "anyOf": [
            {"type": "integer", "minimum": 1, "maximum": 2**53 - 1},
            {"type": "string", "enum": ["majority", "all"]},
            {"type": "null"},
        ],
    },
    "AckSeconds": {
        "description": "How long to wait for them; 1 where it is not said.",
        "type": ["number", "null"],
        "minimum": 0,
        "maximum": MAX_WAIT_S,
    },
    "Ttl": {
        "description": "Seconds after which the version counts as deleted.",
        "type": ["number", "null"],
        "exclusiveMinimum": 0,
        "maximum": 1e10,
    },
    "Put": {
        "type": "object",
        "required": ["value"],
        "properties": {
            "value": ref("Value"),
            "causal-metadata": ref("Past"),
            "ttl": ref("Ttl"),
            "w": ref("WriteConcern"),
            "w-timeout": ref("AckSeconds"),
        },
    },
    "Delete": {
        "type": "object",
        "properties": {"causal-metadata": ref("Past"), "w": ref("WriteConcern"), "w-timeout": ref("AckSeconds")},
    },
    "Key": {
        "description": "Any non-empty text, at most 512 bytes in UTF-8.",
        "type": "string",
        "minLength": 1,
        "maxLength": 512,
        "example": "user/1",
    },
    "Write": {
        "description": "A value, or a delete.",
        "oneOf": [
            {
                "type": "object",
                "required": ["key", "value"],
                "properties": {
                    "key": ref("Key"),
                    "value": ref("Value"),
                    "delete": {"const": False},
                    "ttl": ref("Ttl"),
                    "if-match": {"type": ["string", "null"]},
                    "if-none-match": {"enum": ["*", None]},
                },
            },
            {
                "type": "object",
                "required": ["key", "delete"],
                "properties": {
                    "key": ref("Key"),
                    "value": False,
                    "delete": {"const": True},
                    "ttl": {"type": "null"},
                    "if-match": {"type": ["string", "null"]},
                    "if-none-match": {"enum": ["*", None]},
                },
            },
        ],
    },
    "Transaction": {
        "type": "object",
        "anyOf": [{"required": ["reads"]}, {"required": ["writes"]}],
        "properties": {
            "reads": {"type": "array", "items": ref("Key"), "maxItems": 500},
            "writes": {"type": "array", "items": ref("Write"), "maxItems": 500},
            "causal-metadata": ref("Past"),
            "w": ref("WriteConcern"),
            "w-timeout": ref("AckSeconds"),
        },
    },
    "Lost": {
        "type": "object",
        "description": "Replica id to first and last update of the client's past that no replica has any more.",
        "additionalProperties": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    },
    "Found": {
        **one({"result": {"const": "found"}, "value": ref("Value"), "causal-metadata": ref("CausalMetadata")}),
        "description": "conflicts: how many versions there are, where there is more than one.",
    },
    "Written": one({"result": {"enum": ["created", "replaced"]}, "causal-metadata": ref("CausalMetadata")}),
    "Deleted": one({"result": {"const": "deleted"}, "causal-metadata": ref("CausalMetadata")}),
    "Listed": one(
        {
            "keys": {"type": "array", "items": {"type": "string"}},
            "next": {"type": ["string", "null"]},
            "causal-metadata": ref("CausalMetadata"),
        }
    ),
    "Transacted": one(
        {
            "values": {"type": "object"},
            "missing-keys": {"type": "array", "items": {"type": "string"}},
            "causal-metadata": ref("CausalMetadata"),
        }
    ),
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string", "minLength": 1}, "causal-metadata": ref("CausalMetadata")},
    },
    "Unavailable": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {"type": "string"},
            "missing": {
                "type": "object",
                "additionalProperties": one({"has": {"type": "integer"}, "needs": {"type": "integer"}}),
            },
            "causal-metadata": ref("CausalMetadata"),
        },
    },
}

SCHEMAS["Found"]["properties"] |= {
    "conflicts": {"type": "integer", "minimum": 2},
    "siblings": {
        "type": "array",
        "items": one(
            {
                "value": ref("Value"),
                "etag": {"type": "string"},
                "origin": {"type": "string"},
                "timestamp": {"type": "integer", "description": "Hybrid time, microseconds."},
            }
        ),
    },
    "lost": ref("Lost"),
}
for _name in ("Written", "Deleted", "Transacted"):
    SCHEMAS[_name]["properties"] |= {"acks": {"type": "integer", "minimum": 1}, "lost": ref("Lost")}
SCHEMAS["Listed"]["properties"] |= {"items": {"type": "object"}, "lost": ref("Lost")}


# --- parameters ------------------------------------------------------------------------------------------------------


def parameter(name: str, place: str, description: str, schema: Operation, example: Json = None) -> Operation:
    """Return an optional parameter; one of the path is required."""
    told: Operation = {"name": name, "in": place, "description": description, "schema": schema}
    if place == "path":
        told["required"] = True
    return told if example is None else {**told, "example": example}


_TAG: Final[Operation] = {
    "description": "An entity tag, several with commas between them, or *.",
    "anyOf": [
        {"type": "string", "const": "*"},
        {"type": "string", "pattern": r'^"[!#-~]*"(, *"[!#-~]*")*$'},
    ],
}

KEY: Final = parameter("key", "path", "Percent-encoded; may contain / as it is.", ref("Key"), "user/1")
WAIT: Final = parameter(
    "wait",
    "query",
    "Seconds for which the request may be held: until its causal past is here (default: KV_DEFER_TIMEOUT, 1), or "
    "with If-None-Match on GET until the key changes.",
    {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S},
    0,
)
IN_HEADER: Final[Operation] = {
    "name": "X-Causal-Metadata",
    "in": "header",
    "description": "The client's causal past, where it is not in the body.",
    "content": {JSON: {"schema": ref("CausalMetadata"), "example": {}}},
}
IN_QUERY: Final[Operation] = {
    "name": "causal-metadata",
    "in": "query",
    "description": "The client's causal past, where it is neither in the body nor in the header.",
    "content": {JSON: {"schema": ref("CausalMetadata"), "example": {}}},
}
SIBLINGS: Final = parameter("siblings", "query", "Show all concurrent versions.", {"type": "boolean"}, False)
KNOWN: Final = parameter("If-None-Match", "header", "Versions that the client knows.", _TAG, ETAG)
IF_MATCH: Final = parameter("If-Match", "header", "Write only over this version.", _TAG, ETAG)
IF_ABSENT: Final = parameter(
    "If-None-Match", "header", "*: only if the key is absent.", {"type": "string", "enum": ["*"]}
)


# --- what goes wrong -------------------------------------------------------------------------------------------------

_ABSENT: Final = {"error": "Key does not exist", "causal-metadata": NEXT}
_SECURITY: Final[list[Operation]] = [{}, {"token": []}]


def refusals(bad: str) -> Operation:
    """Return the responses that every operation of /kvs may give. ``bad``: an example of what a 400 says."""
    return {
        "400": answer("Bad input; nothing has changed.", ref("Error"), {"Bad input": {"error": bad}}),
        "401": answer(
            "Needs a token (KV_API_TOKENS).",
            ref("Error"),
            {"No token": {"error": "Needs an API token: Authorization: Bearer …"}},
        ),
        "403": answer("The token may only read.", ref("Error"), {"Read-only": {"error": "Token 'web' may only read"}}),
        "413": answer(
            "Body or value is too large.",
            ref("Error"),
            {"Value": {"error": "Value is too large: at most 1048576 bytes"}},
        ),
        "415": answer(
            "The body is not JSON.",
            ref("Error"),
            {"Form": {"error": 'Unsupported media type "text/plain" in request.'}},
        ),
        "503": answer(
            "The client's causal past is not here yet, too many requests wait, or the replica serves nobody now.",
            ref("Unavailable"),
            {
                "Causal past": {
                    "error": "Causal dependencies not satisfied; try again later",
                    "missing": {OTHER: {"has": 3, "needs": 4}},
                    "causal-metadata": {OTHER: 4},
                },
                "Removed": {"error": "Replica is not in the view", "causal-metadata": {}},
                "Joining": {"error": "Replica is catching up", "causal-metadata": {}},
            },
            headers=("Retry-After",),
        ),
    }


def kvs(
    operation_id: str,
    summary: str,
    description: str,
    answers: Mapping[str, Operation],
    *,
    parameters: Sequence[Operation] = (),
    request: Operation | None = None,
    bad: str,
) -> Operation:
    """Return an operation of /kvs."""
    told: Operation = {
        "operationId": operation_id,
        "summary": summary,
        "description": description,
        "tags": ["kvs"],
        "parameters": [*parameters, WAIT, IN_HEADER, IN_QUERY],
        "security": _SECURITY,
        "responses": {**answers, **refusals(bad)},
    }
    return told if request is None else {**told, "requestBody": request}


_VERSION_HEADERS: Final = ("ETag", "X-Causal-Metadata")
_FULL: Final = answer(
    "KV_MAX_MEMORY is reached.",
    ref("Error"),
    {"Full": {"error": "Out of memory: delete something, or ask for a higher KV_MAX_MEMORY"}},
)
_MISMATCH: Final = answer(
    "A precondition does not hold; tells what is there.",
    ref("Error"),
    {"Mismatch": {"error": "Precondition failed", "causal-metadata": PAST}},
    headers=_VERSION_HEADERS,
)


def _late(schema: str, example: Json) -> Operation:
    return answer(
        "Written here, but fewer acks came in time than were asked for; the write stands and goes on spreading.",
        ref(schema),
        {"Too few acks": example},
        headers=("X-Causal-Metadata",),
    )


GET_KEY: Final = kvs(
    "getKey",
    "Read a key",
    "Returns the winner of the key's versions. With `If-None-Match` and `wait`, returns as soon as the key changes. "
    'The causal past may also stand in a JSON body, as `{"causal-metadata": …}`.',
    {
        "200": answer(
            "The value.",
            ref("Found"),
            {
                "Found": {"result": "found", "value": {"name": "Ada"}, "causal-metadata": PAST},
                "With siblings=true, in conflict": {
                    "result": "found",
                    "value": "b",
                    "causal-metadata": {REPLICA: 7, OTHER: 2},
                    "conflicts": 2,
                    "siblings": [
                        {"value": "b", "etag": f'"{OTHER}:2"', "origin": OTHER, "timestamp": 1795391360636245},
                        {"value": "a", "etag": ETAG, "origin": REPLICA, "timestamp": 1795391360635105},
                    ],
                },
            },
            headers=_VERSION_HEADERS,
        ),
        "304": {"description": "The client knows this version; with `wait`, still after that time."},
        "404": answer("The key is absent.", ref("Error"), {"Absent": _ABSENT}, headers=("X-Causal-Metadata",)),
    },
    parameters=[KEY, SIBLINGS, KNOWN],
    bad="Key is too long",
)

PUT_EXAMPLES: Final = {
    "plain": {"value": {"name": "Ada"}, "causal-metadata": PAST},
    "for_an_hour": {"value": "session", "ttl": 3600, "causal-metadata": None},
    "on_two_replicas": {"value": 1, "w": 2, "w-timeout": 0.5},
}


def _put(operation_id: str, summary: str) -> Operation:
    return kvs(
        operation_id,
        summary,
        "Replaces all that this replica holds of the key.",
        {
            "200": answer(
                "Replaced.",
                ref("Written"),
                {"Replaced": {"result": "replaced", "causal-metadata": NEXT}},
                headers=_VERSION_HEADERS,
            ),
            "201": answer(
                "Created.",
                ref("Written"),
                {"Created, with w": {"result": "created", "causal-metadata": NEXT, "acks": 2}},
                headers=_VERSION_HEADERS,
            ),
            "202": _late("Written", {"result": "created", "causal-metadata": NEXT, "acks": 1}),
            "412": _MISMATCH,
            "507": _FULL,
        },
        parameters=[KEY, IF_MATCH, IF_ABSENT],
        request=body("Put", required=True, **PUT_EXAMPLES),
        bad="PUT request does not specify a value",
    )


PUT_KEY: Final = _put("putKey", "Write a key")
POST_KEY: Final = _put("postKey", "Write a key (the same as PUT)")

DELETE_KEY: Final = kvs(
    "deleteKey",
    "Delete a key",
    "Deletes all that this replica holds of the key; a concurrent write survives it.",
    {
        "200": answer(
            "Deleted.",
            ref("Deleted"),
            {"Deleted": {"result": "deleted", "causal-metadata": NEXT}},
            headers=_VERSION_HEADERS,
        ),
        "202": _late("Deleted", {"result": "deleted", "causal-metadata": NEXT, "acks": 2}),
        "404": answer("The key is absent.", ref("Error"), {"Absent": _ABSENT}, headers=("X-Causal-Metadata",)),
        "412": _MISMATCH,
    },
    parameters=[KEY, IF_MATCH, IF_ABSENT],
    request=body("Delete", plain={"causal-metadata": PAST}, everywhere={"causal-metadata": PAST, "w": "all"}),
    bad="Key is too long",
)

LIST_KEYS: Final = kvs(
    "listKeys",
    "List keys",
    "Keys in the order of their code points. One response is one causal snapshot.",
    {
        "200": answer(
            "A page.",
            ref("Listed"),
            {
                "More to come": {"keys": ["user/1", "user/2"], "next": "user/2", "causal-metadata": PAST},
                "With values=true": {
                    "keys": ["user/1"],
                    "next": None,
                    "items": {"user/1": {"name": "Ada"}},
                    "causal-metadata": PAST,
                },
            },
            headers=("X-Causal-Metadata",),
        )
    },
    parameters=[
        parameter("prefix", "query", "Only keys that start with this.", {"type": "string"}, "user/"),
        parameter(
            "after", "query", "Only keys after this one: `next` of the page before.", {"type": "string"}, "user/1"
        ),
        parameter("limit", "query", "Keys of a page.", {"type": "integer", "minimum": 1, "maximum": 1000}, 100),
        parameter("values", "query", "Values as well, as `items`.", {"type": "boolean"}, True),
        parameter("conflicts", "query", "Only keys in conflict.", {"type": "boolean"}, False),
    ],
    bad="limit has to be a whole number from 1 to 1000",
)

TRANSACT: Final = kvs(
    "transact",
    "Read and write several keys at once",
    "The reads are one causal snapshot taken before the writes; the writes are one update that every replica shows "
    "whole or not at all. At most 1000 keys, reads and writes together.",
    {
        "200": answer(
            "Done.",
            ref("Transacted"),
            {"Done": {"values": {"user/1": {"name": "Ada"}}, "missing-keys": ["user/2"], "causal-metadata": NEXT}},
            headers=("X-Causal-Metadata",),
        ),
        "202": _late("Transacted", {"values": {}, "missing-keys": [], "causal-metadata": NEXT, "acks": 1}),
        "412": _MISMATCH,
        "507": _FULL,
    },
    request=body(
        "Transaction",
        required=True,
        read_two_write_one={"reads": ["user/1", "user/2"], "writes": [{"key": "user/2", "value": {"name": "Bob"}}]},
        move={
            "writes": [{"key": "old", "delete": True}, {"key": "new", "value": 1, "ttl": 60, "if-none-match": "*"}],
            "w": "majority",
        },
    ),
    bad="A transaction needs reads or writes",
)
