"""OpenAPI descriptions of /kvs: operations with examples, and the schemas that they refer to.

The schemas of request bodies come from the structs that decode them (store/api/parsing.py), with the bounds of the
limits in force. Everything else is written out, because responses are rendered without serializers.
tests/kvsite/test_schema.py checks that the descriptions are true, by sending requests that they allow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from drf_spectacular.utils import extend_schema

from store.api import parsing
from store.api.query import DEFAULT_PAGE_KEYS, MAX_PAGE_KEYS, MAX_WAIT_S
from store.engine import ABSENT_ETAG
from store.settings import RequestLimits

Json = Any
Object = dict[str, Json]
Handler = TypeVar("Handler", bound=Callable[..., Any])

JSON: Final = "application/json"
COMPONENTS: Final = "#/components/schemas/{name}"

# Ids, clocks and tags that the examples share.
REPLICA: Final = "10.0.0.1:8090@3440b4cb61180bc6"
OTHER: Final = "10.0.0.2:8090@3440b4cb61206d0a"
PAST: Final = {REPLICA: 7}
NEXT: Final = {REPLICA: 8}
ETAG: Final = f'"{REPLICA}:7"'


def described(operation: Object) -> Callable[[Handler], Handler]:
    """Return a decorator that attaches an operation to a handler, for ``/schema/``."""
    return extend_schema(operation=operation)


# --- parts of a description ------------------------------------------------------------------------------------------


def ref(name: str) -> Object:
    """Return a reference to the component schema ``name``."""
    return {"$ref": COMPONENTS.format(name=name)}


def object_schema(required: Mapping[str, Json], **optional: Json) -> Object:
    """Return the schema of an object with ``required`` and ``optional`` properties."""
    return {"type": "object", "required": list(required), "properties": {**required, **optional}}


def closed_object_schema(required: Mapping[str, Json], **optional: Json) -> Object:
    """Return the schema of an object that has no other properties."""
    return {**object_schema(required, **optional), "additionalProperties": False}


def response(
    description: str,
    schema: Object | None = None,
    examples: Mapping[str, Json] | None = None,
    *,
    headers: Sequence[str] = (),
    media_type: str = JSON,
) -> Object:
    """Return the description of a response. ``examples``: summary -> body. ``headers``: keys of ``HEADERS``."""
    described: Object = {"description": description}
    if headers:
        described["headers"] = {name: HEADERS[name] for name in headers}
    if schema is not None:
        numbered = {
            f"example{n}": {"summary": summary, "value": value}
            for n, (summary, value) in enumerate((examples or {}).items())
        }
        described["content"] = {media_type: {"schema": schema, **({"examples": numbered} if numbered else {})}}
    return described


def request_body(schema: str, *, required: bool = False, **examples: Json) -> Object:
    """Return the description of a JSON body with the component schema ``schema``. ``examples``: name -> body."""
    named = {name: {"summary": name.replace("_", " "), "value": value} for name, value in examples.items()}
    return {"required": required, "content": {JSON: {"schema": ref(schema), "examples": named}}}


def parameter(name: str, place: str, description: str, schema: Object, example: Json = None) -> Object:
    """Return the description of a parameter, optional unless it is part of the path."""
    described: Object = {"name": name, "in": place, "description": description, "schema": schema}
    if place == "path":
        described["required"] = True
    return described if example is None else {**described, "example": example}


HEADERS: Final[dict[str, Object]] = {
    "ETag": {
        "description": 'Names all versions of the key that the replica has. An absent key has the tag "absent".',
        "schema": {"type": "string"},
        "example": ETAG,
    },
    "X-Causal-Metadata": {
        "description": "The same as causal-metadata in the body; left out if it is longer than 4 KiB, or if the body "
        "of the request had it.",
        "schema": {"type": "string"},
        "example": '{"10.0.0.1:8090@3440b4cb61180bc6":7}',
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "string"}, "example": "1"},
}


# --- component schemas -----------------------------------------------------------------------------------------------


def component_schemas(limits: RequestLimits) -> dict[str, Object]:
    """Return the component schemas by name, with the bounds in ``limits``."""
    return {
        "CausalMetadata": {
            "type": "object",
            "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 2**53 - 1},
            "description": "A vector clock: replica id -> highest counter. Clients send the latest one back unread.",
            "maxProperties": limits.max_clock_entries,
            "example": PAST,
        },
        "Past": {
            "description": 'The causal past of the client. null, "", {} or no field mean that it has none.',
            "anyOf": [ref("CausalMetadata"), {"type": "null"}, {"const": ""}],
            "example": PAST,
        },
        "Key": {
            "description": f"Any non-empty text, at most {limits.max_key_bytes} bytes in UTF-8.",
            "type": "string",
            "minLength": 1,
            "maxLength": limits.max_key_bytes,
            "example": "user/1",
        },
        "Value": {
            "description": f"Any JSON value, null included; at most {limits.max_value_bytes} bytes encoded. Whole "
            "numbers are signed or unsigned 64-bit integers."
        },
        **_request_bodies(limits),
        **_RESPONSES,
    }


_FIELD_COMPONENTS: Final = {"causal-metadata": "Past", "key": "Key", "value": "Value"}
"""Fields of request bodies, wherever they occur -> their component schema, which has the bounds in force."""

_FIELD_DESCRIPTIONS: Final = {
    "w": 'How many members must have the write: 1 (this replica), a number, "majority" or "all" of the members.',
    "w-timeout": f"Seconds to wait for their acks; {parsing.DEFAULT_ACK_WAIT_S:g} if the field is absent.",
    "ttl": "Seconds after which the version counts as deleted.",
}


def _request_bodies(limits: RequestLimits) -> dict[str, Object]:
    """Return the schemas of the request bodies, by the names of their structs.

    They are as strict as the checks that follow the decoding: a request that they allow is accepted.
    """
    structs = (parsing.PutBody, parsing.WriteConcernBody, parsing.TransactionBody)
    schemas: dict[str, Object] = msgspec.json.schema_components(structs, ref_template=COMPONENTS)[1]
    for schema in schemas.values():
        schema["description"] = schema["description"].replace("``", "`")
        properties = schema["properties"]
        for name in properties:
            if name in _FIELD_COMPONENTS:
                properties[name] = ref(_FIELD_COMPONENTS[name])
            elif name in _FIELD_DESCRIPTIONS:
                properties[name] = {**properties[name], "description": _FIELD_DESCRIPTIONS[name]}
        if "w" in properties:
            # In JSON Schema 1.0 is an integer, so the number that the parser accepts too says nothing more.
            options = [each for each in properties["w"]["anyOf"] if each.get("type") != "number"]
            properties["w"] = {**properties["w"], "anyOf": options}
    schemas["PutBody"]["required"] = ["value"]

    transaction = schemas["TransactionBody"]
    transaction["anyOf"] = [{"required": ["reads"]}, {"required": ["writes"]}]
    # The limit is on reads and writes together, which JSON Schema cannot express: half of it for each is always right.
    transaction["properties"]["reads"] |= {"items": ref("Key"), "maxItems": limits.max_batch // 2}
    transaction["properties"]["writes"] |= {"maxItems": limits.max_batch // 2}

    write = schemas["WriteBody"]
    is_value = {"delete": {"const": False}}
    is_delete = {"delete": {"const": True}, "value": False, "ttl": {"type": "null"}}
    schemas["WriteBody"] = {
        "description": write["description"],
        "oneOf": [
            {**write, "required": ["key", "value"], "properties": {**write["properties"], **is_value}},
            {**write, "required": ["key", "delete"], "properties": {**write["properties"], **is_delete}},
        ],
    }
    return schemas


_METADATA: Final = {"causal-metadata": ref("CausalMetadata")}
_LOST: Final = {"lost": ref("Lost")}
_ACKS: Final = {"acks": {"type": "integer", "minimum": 1}, **_LOST}
_SIBLING: Final = object_schema(
    {
        "value": ref("Value"),
        "version": {"type": "string", "description": "The dot as text."},
        "origin": {"type": "string"},
        "timestamp": {"type": "integer", "description": "Hybrid time in microseconds."},
    }
)

_CHANGE: Final = object_schema(
    {"key": {"type": "string"}},
    value=ref("Value"),
    etag={"type": "string"},
    type={"enum": ["json"]},
    conflicts={"type": "integer", "minimum": 2},
    expires={"type": "number", "description": "Unix seconds."},
    deleted={"const": True, "description": "The key is absent; then nothing else is said about it."},
)
_META: Final = object_schema(
    {
        "etag": {"type": "string"},
        "conflicts": {"type": "integer", "minimum": 1, "description": "The number of versions; 1: no conflict."},
        "expires": {"type": ["number", "null"], "description": "Unix seconds; null: never."},
        "bytes": {"type": "integer", "description": "Length of the value as JSON."},
        "type": {"enum": ["json"]},
    }
)

_RESPONSES: Final[dict[str, Object]] = {
    "Lost": {
        "type": "object",
        "description": "Replica id -> first and last update of the client's causal past that no replica has any more.",
        "additionalProperties": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    },
    "Found": {
        **object_schema(
            {"result": {"const": "found"}, "value": ref("Value"), **_METADATA},
            conflicts={"type": "integer", "minimum": 2},
            expires={"type": "number", "description": "When the value expires, Unix seconds."},
            siblings={"type": "array", "items": _SIBLING},
            **_LOST,
        ),
        "description": "conflicts: the number of versions, if there are several.",
    },
    "Written": object_schema({"result": {"enum": ["created", "replaced"]}, **_METADATA}, **_ACKS),
    "Deleted": object_schema({"result": {"const": "deleted"}, **_METADATA}, **_ACKS),
    "Listed": object_schema(
        {
            "keys": {"type": "array", "items": {"type": "string"}},
            "next": {"type": ["string", "null"]},
            **_METADATA,
        },
        items={"type": "object"},
        meta={"type": "object", "additionalProperties": _META},
        count={"type": "integer", "minimum": 0},
        **_LOST,
    ),
    "Changes": object_schema(
        {
            "changes": {"type": "array", "items": _CHANGE},
            "reset": {"type": "boolean"},
            "more": {"type": "boolean"},
            "next": {"type": "string"},
            **_METADATA,
        },
        **_LOST,
    ),
    "RangeDeleted": object_schema(
        {"deleted": {"type": "integer", "minimum": 0}, "more": {"type": "boolean"}, **_METADATA}, **_ACKS
    ),
    "Transacted": object_schema(
        {
            "values": {"type": "object"},
            "missing-keys": {"type": "array", "items": {"type": "string"}},
            "etags": {"type": "object", "additionalProperties": {"type": "string"}},
            **_METADATA,
        },
        **_ACKS,
    ),
    "Error": object_schema({"error": {"type": "string", "minLength": 1}}, **_METADATA),
    "Unavailable": object_schema(
        {"error": {"type": "string"}},
        missing={
            "type": "object",
            "additionalProperties": object_schema({"has": {"type": "integer"}, "needs": {"type": "integer"}}),
        },
        **_METADATA,
    ),
}


# --- parameters ------------------------------------------------------------------------------------------------------

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


# --- operations ------------------------------------------------------------------------------------------------------

SECURITY: Final[list[Object]] = [{}, {"token": []}]
"""A token, if the replica has KV_API_TOKENS."""

NO_TOKEN: Final = response(
    "The request needs a token (KV_API_TOKENS).",
    ref("Error"),
    {"No token": {"error": "Needs an API token: Authorization: Bearer …"}},
)


def error_responses(bad_input: str) -> Object:
    """Return the error responses that every operation of /kvs has. ``bad_input``: an example of a 400's text."""
    return {
        "400": response("Invalid input; nothing has changed.", ref("Error"), {"Invalid": {"error": bad_input}}),
        "401": NO_TOKEN,
        "403": response(
            "The token only permits reading.", ref("Error"), {"Read-only": {"error": "Token 'web' may only read"}}
        ),
        "413": response(
            "The body or the value is too large.",
            ref("Error"),
            {"Value": {"error": f"Value is too large: at most {RequestLimits().max_value_bytes} bytes"}},
        ),
        "415": response(
            "The body is not JSON.",
            ref("Error"),
            {"Form": {"error": 'Unsupported media type "text/plain" in request.'}},
        ),
        "503": response(
            "The client's causal past has not arrived in time, too many large bodies or responses exist, or the "
            "replica does not serve clients.",
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


def operation(
    tag: str,
    operation_id: str,
    summary: str,
    responses: Mapping[str, Object],
    *,
    description: str = "",
    parameters: Sequence[Object] = (),
    body: Object | None = None,
    security: Sequence[Object] = SECURITY,
) -> Object:
    """Return the description of an operation."""
    described: Object = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "parameters": list(parameters),
        "security": list(security),
        "responses": dict(responses),
    }
    if description:
        described["description"] = description
    if body is not None:
        described["requestBody"] = body
    return described


def kvs_operation(
    operation_id: str,
    summary: str,
    description: str,
    responses: Mapping[str, Object],
    *,
    parameters: Sequence[Object] = (),
    body: Object | None = None,
    bad_input: str,
) -> Object:
    """Return the description of an operation of /kvs, with the parameters and errors that all of them have."""
    return operation(
        "kvs",
        operation_id,
        summary,
        {**responses, **error_responses(bad_input)},
        description=description,
        parameters=[*parameters, WAIT, METADATA_HEADER, METADATA_PARAMETER],
        body=body,
    )


_VERSION_HEADERS: Final = ("ETag", "X-Causal-Metadata")
_ABSENT: Final = response(
    "The key is absent.",
    ref("Error"),
    {"Absent": {"error": "Key does not exist", "causal-metadata": NEXT}},
    headers=_VERSION_HEADERS,
)
_FULL: Final = response(
    "The data has reached KV_MAX_MEMORY.",
    ref("Error"),
    {"Full": {"error": "Out of memory: delete something, or ask for a higher KV_MAX_MEMORY"}},
)
_MISMATCH: Final = response(
    "The precondition does not hold. The ETag and the metadata are those of the current version.",
    ref("Error"),
    {"Mismatch": {"error": "Precondition failed", "causal-metadata": PAST}},
    headers=_VERSION_HEADERS,
)


def _too_few_acks(schema: str, example: Json) -> Object:
    return response(
        "Written here, but fewer acks than requested arrived in time. The write is applied and replication continues.",
        ref(schema),
        {"Too few acks": example},
        headers=("X-Causal-Metadata",),
    )


GET_KEY: Final = kvs_operation(
    "getKey",
    "Read a key",
    "Returns the winner of the key's versions. With `If-None-Match` and `wait`, returns as soon as the key changes. "
    'The causal past can also be in a JSON body, as `{"causal-metadata": …}`.',
    {
        "200": response(
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
                        {"value": "b", "version": f"{OTHER}:2", "origin": OTHER, "timestamp": 1795391360636245},
                        {"value": "a", "version": f"{REPLICA}:7", "origin": REPLICA, "timestamp": 1795391360635105},
                    ],
                },
            },
            headers=_VERSION_HEADERS,
        ),
        "304": {
            "description": "The client has this version, or knows that the key is absent; with `wait`, the key did not "
            "change in that time.",
        },
        "404": _ABSENT,
    },
    parameters=[KEY, SIBLINGS, IF_CHANGED],
    bad_input="Key is too long",
)

PUT_EXAMPLES: Final = {
    "plain": {"value": {"name": "Ada"}, "causal-metadata": PAST},
    "for_an_hour": {"value": "session", "ttl": 3600, "causal-metadata": None},
    "on_two_replicas": {"value": 1, "w": 2, "w-timeout": 0.5},
}


def _put(operation_id: str, summary: str) -> Object:
    return kvs_operation(
        operation_id,
        summary,
        "Replaces every version of the key that this replica has.",
        {
            "200": response(
                "Replaced.",
                ref("Written"),
                {"Replaced": {"result": "replaced", "causal-metadata": NEXT}},
                headers=_VERSION_HEADERS,
            ),
            "201": response(
                "Created.",
                ref("Written"),
                {"Created, with w": {"result": "created", "causal-metadata": NEXT, "acks": 2}},
                headers=_VERSION_HEADERS,
            ),
            "202": _too_few_acks("Written", {"result": "created", "causal-metadata": NEXT, "acks": 1}),
            "412": _MISMATCH,
            "507": _FULL,
        },
        parameters=[KEY, IF_MATCH, IF_ABSENT],
        body=request_body("PutBody", required=True, **PUT_EXAMPLES),
        bad_input="PUT request does not specify a value",
    )


PUT_KEY: Final = _put("putKey", "Write a key")
POST_KEY: Final = _put("postKey", "Write a key (the same as PUT)")

DELETE_KEY: Final = kvs_operation(
    "deleteKey",
    "Delete a key",
    "Deletes every version of the key that this replica has. A concurrent write survives.",
    {
        "200": response(
            "Deleted.",
            ref("Deleted"),
            {"Deleted": {"result": "deleted", "causal-metadata": NEXT}},
            headers=_VERSION_HEADERS,
        ),
        "202": _too_few_acks("Deleted", {"result": "deleted", "causal-metadata": NEXT, "acks": 2}),
        "404": _ABSENT,
        "412": _MISMATCH,
    },
    parameters=[KEY, IF_MATCH, IF_ABSENT],
    body=request_body(
        "WriteConcernBody", plain={"causal-metadata": PAST}, everywhere={"causal-metadata": PAST, "w": "all"}
    ),
    bad_input="Key is too long",
)

LIST_KEYS: Final = kvs_operation(
    "listKeys",
    "List keys",
    "Keys are ordered by code point, or in reverse. One response is one causal snapshot.",
    {
        "200": response(
            "A page.",
            ref("Listed"),
            {
                "More pages follow": {"keys": ["user/1", "user/2"], "next": "user/2", "causal-metadata": PAST},
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
        parameter("prefix", "query", "Only keys with this prefix.", {"type": "string"}, "user/"),
        parameter(
            "after", "query", "Only keys after this one: `next` of the previous page.", {"type": "string"}, "user/1"
        ),
        parameter(
            "limit",
            "query",
            "Most keys on the page.",
            {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_KEYS, "default": DEFAULT_PAGE_KEYS},
            DEFAULT_PAGE_KEYS,
        ),
        parameter("end", "query", "Only keys before this one.", {"type": "string"}, "user/9"),
        parameter("reverse", "query", "From the last key to the first.", {"type": "boolean"}, False),
        parameter("values", "query", "Return the values too, in `items`.", {"type": "boolean"}, True),
        parameter("meta", "query", "Return what is known about each key, in `meta`.", {"type": "boolean"}, False),
        parameter(
            "count",
            "query",
            "Return the number of all keys with the prefix and before `end`, whatever the page.",
            {"type": "boolean"},
            False,
        ),
        parameter("conflicts", "query", "Only keys with several versions.", {"type": "boolean"}, False),
    ],
    bad_input=f"limit has to be a whole number from 1 to {MAX_PAGE_KEYS}",
)

CHANGES: Final = kvs_operation(
    "getChanges",
    "Follow what changes",
    "Returns what has changed under a prefix since a token (`next` of the previous response), at any replica. Whenever "
    "`more` is false, the client's copy is a causal snapshot. With `Accept: text/event-stream`, streams the same "
    "objects as events.",
    {
        "200": response(
            "The changes. Without any, the request waited for `wait` seconds.",
            ref("Changes"),
            {
                "A change and a delete": {
                    "changes": [
                        {"key": "user/1", "value": {"name": "Ada"}, "etag": ETAG, "type": "json"},
                        {"key": "user/2", "deleted": True},
                    ],
                    "reset": False,
                    "more": False,
                    "next": "eNqrVkrLz1eyUkpKLFKqBQAkSgRE",
                    "causal-metadata": PAST,
                }
            },
            headers=("X-Causal-Metadata",),
        )
    },
    parameters=[
        parameter("prefix", "query", "Only keys with this prefix.", {"type": "string"}, "user/"),
        parameter(
            "since",
            "query",
            "`next` of the previous response. Without it, every key is returned.",
            {"type": "string"},
            "",
        ),
    ],
    bad_input="since has to be the `next` of an earlier response",
)

DELETE_KEYS: Final = kvs_operation(
    "deleteKeys",
    "Delete the keys with a prefix",
    "Deletes up to KV_MAX_BATCH keys as one update. `more` says whether further keys have the prefix.",
    {
        "200": response(
            "Done.",
            ref("RangeDeleted"),
            {"Done": {"deleted": 2, "more": False, "causal-metadata": NEXT}},
            headers=("X-Causal-Metadata",),
        ),
        "202": _too_few_acks("RangeDeleted", {"deleted": 2, "more": False, "causal-metadata": NEXT, "acks": 1}),
    },
    parameters=[
        {
            **parameter(
                "prefix",
                "query",
                "The keys start with it. It must not be empty.",
                {"type": "string", "minLength": 1},
                "user/",
            ),
            "required": True,
        }
    ],
    body=request_body(
        "WriteConcernBody", plain={"causal-metadata": PAST}, everywhere={"causal-metadata": PAST, "w": "all"}
    ),
    bad_input="DELETE of several keys needs a prefix, for example ?prefix=user/",
)

TRANSACT: Final = kvs_operation(
    "transact",
    "Read and write several keys at once",
    "The reads are one causal snapshot taken before the writes; the writes are one update that every replica shows "
    "completely or not at all. At most KV_MAX_BATCH keys, reads and writes together.",
    {
        "200": response(
            "Done.",
            ref("Transacted"),
            {
                "Done": {
                    "values": {"user/1": {"name": "Ada"}},
                    "missing-keys": ["user/2"],
                    "etags": {"user/1": ETAG},
                    "causal-metadata": NEXT,
                }
            },
            headers=("X-Causal-Metadata",),
        ),
        "202": _too_few_acks(
            "Transacted", {"values": {}, "missing-keys": [], "etags": {}, "causal-metadata": NEXT, "acks": 1}
        ),
        "412": _MISMATCH,
        "507": _FULL,
    },
    body=request_body(
        "TransactionBody",
        required=True,
        read_two_write_one={"reads": ["user/1", "user/2"], "writes": [{"key": "user/2", "value": {"name": "Bob"}}]},
        move={
            "writes": [{"key": "old", "delete": True}, {"key": "new", "value": 1, "ttl": 60, "if-none-match": "*"}],
            "w": "majority",
        },
    ),
    bad_input="A transaction needs reads or writes",
)
