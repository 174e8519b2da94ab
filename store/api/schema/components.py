"""The component schemas of /kvs and /changes, which operations refer to.

The schemas of request bodies come from the structs that decode them (store/api/parsing.py), with the bounds of the
limits in force. Everything else is written out, because responses are rendered without serializers.
"""

from __future__ import annotations

from typing import Final

import msgspec

from store.api import parsing
from store.api.schema.building import COMPONENTS, PAST, Object, object_schema, ref
from store.settings import RequestLimits


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
