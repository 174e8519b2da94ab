"""The operations of /kvs, /changes and /export, with examples.

tests/kvsite/test_schema.py checks that the descriptions are true, by sending requests that they allow.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from store.api.exports import MAX_EXPORTS
from store.api.query import DEFAULT_PAGE_KEYS, MAX_PAGE_KEYS
from store.api.schema.building import (
    ETAG,
    NEXT,
    NO_TOKEN,
    OTHER,
    PAST,
    REPLICA,
    Json,
    Object,
    operation,
    parameter,
    ref,
    request_body,
    response,
    with_bytes,
)
from store.api.schema.parameters import (
    COUNTER_KEY,
    IF_ABSENT,
    IF_CHANGED,
    IF_MATCH,
    KEY,
    METADATA_HEADER,
    METADATA_PARAMETER,
    SIBLINGS,
    TTL_PARAMETER,
    W_PARAMETER,
    W_TIMEOUT_PARAMETER,
    WAIT,
)
from store.settings import RequestLimits


def error_responses(bad_input: str) -> Object:
    """Return the error responses that every operation of /kvs has. ``bad_input``: an example of a 400's text."""
    return {
        "400": response("Invalid input; nothing has changed.", ref("Error"), {"Invalid": {"error": bad_input}}),
        "401": NO_TOKEN,
        "403": response(
            "The token only permits reading, or only keys with other prefixes.",
            ref("Error"),
            {
                "Read-only": {"error": "Token 'web' may only read"},
                "Other keys": {"error": "Token 'shop' is only for keys that begin with 'cart/' or 'order/'"},
            },
        ),
        "413": response(
            "The body or the value is too large.",
            ref("Error"),
            {"Value": {"error": f"Value is too large: at most {RequestLimits().max_value_bytes} bytes"}},
        ),
        "415": response(
            "The body is of a type that the operation does not take.",
            ref("Error"),
            {
                "Text": {
                    "error": 'Unsupported media type "text/plain" in request; send the header Content-Type: '
                    "application/json",
                    "hint": "Send the header Content-Type: application/json (curl --json does) and an object …",
                }
            },
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
_OTHER_TYPE: Final = response(
    "A PATCH is for another type than the key holds. The ETag and the metadata are those of what the key holds.",
    ref("Error"),
    {"Other type": {"error": "Key holds a set, not a counter", "key": "views", "causal-metadata": PAST}},
    headers=_VERSION_HEADERS,
)
_MISMATCH: Final = response(
    "The precondition does not hold. The ETag and the metadata are those of the current version.",
    ref("Error"),
    {"Mismatch": {"error": "Precondition failed", "key": "user/1", "causal-metadata": PAST}},
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
        "200": with_bytes(
            response(
                "The value. With `Accept: application/octet-stream`, a value that is bytes is the body.",
                ref("Found"),
                {
                    "Found": {"result": "found", "value": {"name": "Ada"}, "causal-metadata": PAST},
                    "Bytes": {
                        "result": "found",
                        "value": "R0lGODlh",
                        "encoding": "base64",
                        "causal-metadata": PAST,
                    },
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
                headers=(*_VERSION_HEADERS, "X-Conflicts", "X-Expires", "X-Lost"),
            )
        ),
        "304": {
            "description": "The client has this version, or knows that the key is absent; with `wait`, the key did not "
            "change in that time.",
        },
        "404": _ABSENT,
        "406": response(
            "The client accepts only bytes, and the value is JSON or the metadata is too long for a header.",
            ref("Error"),
            {
                "JSON": {
                    "error": "Value is JSON, not bytes; ask with Accept: application/json",
                    "causal-metadata": PAST,
                }
            },
        ),
    },
    parameters=[KEY, SIBLINGS, IF_CHANGED],
    bad_input="Key is too long",
)

PUT_EXAMPLES: Final = {
    "plain": {"value": {"name": "Ada"}, "causal-metadata": {}},
    "for_an_hour": {"value": "session", "ttl": 3600, "causal-metadata": None},
    "on_a_majority": {"value": 1, "w": "majority", "w-timeout": 0.5},
}


def _put(operation_id: str, summary: str) -> Object:
    return kvs_operation(
        operation_id,
        summary,
        "Replaces every version of the key that this replica has. A body that is not JSON but "
        "`application/octet-stream` is the value itself, as bytes.",
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
        parameters=[KEY, IF_MATCH, IF_ABSENT, TTL_PARAMETER, W_PARAMETER, W_TIMEOUT_PARAMETER],
        body=with_bytes(request_body("PutBody", required=True, **PUT_EXAMPLES)),
        bad_input="PUT request does not specify a value",
    )


PUT_KEY: Final = _put("putKey", "Write a key")
POST_KEY: Final = _put("postKey", "Write a key (the same as PUT)")

PATCH_EXAMPLES: Final = {
    "count": {"increment": 1, "causal-metadata": {}},
    "renew": {"ttl": 60},
}

PATCH_KEY: Final = kvs_operation(
    "patchKey",
    "Change a value that merges",
    "Changes a counter, a set or a map, or the time to live of any value. Concurrent PATCHes of one key merge. The "
    'body of a set is for example `{"add": ["red", 7], "remove": ["blue"]}`, that of a map '
    '`{"set": {"name": "Ada", "age": 36}, "unset": ["draft"]}`. A key holds one kind of value, so each needs its own.',
    {
        "200": response(
            "Changed.",
            ref("Patched"),
            {"Merged": {"result": "merged", "causal-metadata": NEXT}},
            headers=_VERSION_HEADERS,
        ),
        "201": response(
            "Created.",
            ref("Patched"),
            {"Created": {"result": "created", "causal-metadata": NEXT}},
            headers=_VERSION_HEADERS,
        ),
        "202": _too_few_acks("Patched", {"result": "merged", "causal-metadata": NEXT, "acks": 1}),
        "404": _ABSENT,
        "409": _OTHER_TYPE,
        "412": _MISMATCH,
        "507": _FULL,
    },
    parameters=[COUNTER_KEY, IF_MATCH, IF_ABSENT],
    body=request_body("PatchBody", required=True, **PATCH_EXAMPLES),
    bad_input="increment has to be a 64-bit integer",
)

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
        "WriteConcernBody", plain={"causal-metadata": {}}, everywhere={"causal-metadata": {}, "w": "all"}
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
        parameter("prefix", "query", "Only keys with this prefix, for example user/.", {"type": "string"}),
        parameter("after", "query", "Only keys after this one: `next` of the previous page.", {"type": "string"}),
        parameter(
            "limit",
            "query",
            "Most keys on the page.",
            {"type": "integer", "minimum": 1, "maximum": MAX_PAGE_KEYS, "default": DEFAULT_PAGE_KEYS},
        ),
        parameter("end", "query", "Only keys before this one.", {"type": "string"}),
        parameter("reverse", "query", "From the last key to the first.", {"type": "boolean"}),
        parameter("values", "query", "Return the values too, in `items`.", {"type": "boolean"}),
        parameter("meta", "query", "Return what is known about each key, in `meta`.", {"type": "boolean"}),
        parameter(
            "count",
            "query",
            "Return the number of all keys with the prefix and before `end`, whatever the page.",
            {"type": "boolean"},
        ),
        parameter("conflicts", "query", "Only keys with several versions.", {"type": "boolean"}),
    ],
    bad_input=f"limit has to be a whole number from 1 to {MAX_PAGE_KEYS}",
)

EXPORT_EXAMPLE: Final = (
    f'{{"causeway-export":1,"replica":"{REPLICA}","time":1795391361.5,"prefix":"","keys":2,'
    f'"causal-metadata":{{"{REPLICA}":7}}}}\n'
    '{"key":"user/1","versions":[{"value":{"name":"Ada"},"timestamp":1795391360636245}]}\n'
    '{"key":"visits","versions":[{"value":7,"type":"counter","timestamp":1795391360636250}]}\n'
    '{"count":2,"sha256":"d5a1…"}\n'
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
        parameter("prefix", "query", "Only keys with this prefix, for example user/.", {"type": "string"}),
        parameter(
            "since",
            "query",
            "`next` of the previous response. Without it, every key is returned.",
            {"type": "string"},
        ),
    ],
    bad_input="since has to be the `next` of an earlier response",
)

EXPORT: Final = kvs_operation(
    "exportKeys",
    "Export the keys with a prefix",
    "Streams all keys with the prefix as one causal snapshot, whatever clients write meanwhile: lines of JSON. The "
    "first line is about the export, each further one is a key with its versions, the last one has the number of keys "
    "and the SHA-256 of all bytes before it. An export without its last line is not complete. At most "
    f"{MAX_EXPORTS} at once; a further one ends one that is read slowly, or gets 503.",
    {
        "200": response(
            "The export.",
            {"type": "string"},
            {"Two keys": EXPORT_EXAMPLE},
            media_type="application/x-ndjson",
        )
    },
    parameters=[parameter("prefix", "query", "Only keys with this prefix, for example user/.", {"type": "string"})],
    bad_input="causal-metadata is malformed",
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
                "The keys start with it. It must not be empty. It has no example here: what it names is deleted.",
                {"type": "string", "minLength": 1},
            ),
            "required": True,
        }
    ],
    body=request_body(
        "WriteConcernBody", plain={"causal-metadata": {}}, everywhere={"causal-metadata": {}, "w": "all"}
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
        "404": _ABSENT,
        "409": _OTHER_TYPE,
        "412": _MISMATCH,
        "507": _FULL,
    },
    body=request_body(
        "TransactionBody",
        required=True,
        read_two_write_one={
            "reads": ["example/user", "example/friend"],
            "writes": [{"key": "example/friend", "value": {"name": "Bob"}}],
        },
        write_and_delete={
            "writes": [{"key": "example/old", "delete": True}, {"key": "example/new", "value": 1, "ttl": 60}],
            "w": "majority",
        },
        count_and_collect={
            "writes": [{"key": "example/visits", "increment": 1}, {"key": "example/visitors", "add": ["ada"]}]
        },
    ),
    bad_input="A transaction needs reads or writes",
)
