"""The component schemas of /kvs and /changes, which operations refer to.

The schemas of request bodies come from the structs that decode them (store/api/parsing.py), with the bounds of the
limits in force. Everything else is written out, because responses are rendered without serializers.
"""

from __future__ import annotations

from typing import Final

import msgspec

from store.api import parsing
from store.api.schema.building import (
    COMPONENTS,
    PAST,
    TTL,
    W_TIMEOUT,
    Object,
    W,
    closed_object_schema,
    object_schema,
    ref,
)
from store.merging import MAX_INT, MIN_INT
from store.settings import RequestLimits
from store.values import BASE64, KINDS


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
            "anyOf": [ref("CausalMetadata"), {"type": "null"}, {"type": "string", "const": ""}],
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
            "numbers are signed or unsigned 64-bit integers. A value that is bytes is a string in base64, with an "
            "`encoding` beside it."
        },
        **_request_bodies(limits),
        **_RESPONSES,
    }


_FIELD_COMPONENTS: Final = {"causal-metadata": "Past", "key": "Key", "value": "Value"}
"""Fields of request bodies, wherever they occur -> their component schema, which has the bounds in force."""

_FIELD_DESCRIPTIONS: Final = {"w": W, "w-timeout": W_TIMEOUT, "ttl": TTL}


def _request_bodies(limits: RequestLimits) -> dict[str, Object]:
    """Return the schemas of the request bodies, by the names of their structs.

    They are as strict as the checks that follow the decoding: a request that they allow is accepted.
    """
    structs = (parsing.PutBody, parsing.PatchBody, parsing.WriteConcernBody, parsing.TransactionBody)
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
            properties["w"]["anyOf"] = [each for each in properties["w"]["anyOf"] if each.get("type") != "number"]
        for field in properties.values():
            for option in field.get("anyOf", ()):
                if "enum" in option:
                    option["type"] = "string"
    schemas["PutBody"]["required"] = ["value"]

    transaction = schemas["TransactionBody"]
    # With anyOf, generators of clients would take the alternatives for types and lose the fields.
    transaction |= {"if": {"not": {"required": ["reads"]}}, "then": {"required": ["writes"]}}
    # The limit is on reads and writes together, which JSON Schema cannot express.
    transaction["properties"]["reads"] |= {"items": ref("Key"), "maxItems": limits.max_batch}
    transaction["properties"]["writes"] |= {"maxItems": limits.max_batch}
    transaction["description"] += f" At most {limits.max_batch} keys, reads and writes together."

    patch = schemas.pop("PatchBody")["properties"]
    common = {name: patch[name] for name in ("causal-metadata", "w", "w-timeout")}
    schemas["PatchBody"] = _patches(schemas, "Patch", patch, {}, common)

    write = schemas.pop("WriteBody")
    fields = write["properties"]
    of_delete = {name: fields[name] for name in ("if-match", "if-none-match")}
    patches_in_writes = _patches(schemas, "Write", patch, {"key": ref("Key")}, of_delete)
    for name in ("delete", *parsing.PATCH_FIELDS):
        del fields[name]
    schemas["PutWrite"] = {
        **write,
        "title": "PutWrite",
        "required": ["key", "value"],
        "description": "A value for a key.",
    }
    schemas["DeleteWrite"] = {
        **closed_object_schema({"key": ref("Key"), "delete": {"type": "boolean", "const": True}}, **of_delete),
        "description": "The delete of a key.",
    }
    kinds = [ref("PutWrite"), ref("DeleteWrite"), *patches_in_writes["oneOf"]]
    schemas["WriteBody"] = {"description": write["description"], "oneOf": kinds}
    return schemas


def _patches(schemas: dict[str, Object], ending: str, fields: Object, required: Object, optional: Object) -> Object:
    """Add a schema for each operation of a PATCH, whose names have ``ending``. Return the schema of any of them.

    ``fields``: of all operations. ``required``, ``optional``: fields of every operation.
    """
    elements = {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "number"}]}}
    names = {"type": "array", "items": {"type": "string"}}
    values = {"type": "object", "additionalProperties": ref("Value")}
    whole = {"type": "integer", "minimum": MIN_INT, "maximum": MAX_INT}
    both = "No {} is in both."
    others, optional = optional, {**optional, "ttl": fields["ttl"]}
    kinds: dict[str, tuple[str, Object]] = {
        "Counter": ("Adds to a counter.", closed_object_schema({**required, "increment": whole}, **optional)),
        "Set": (
            f"Adds elements to a set and removes elements from it. {both.format('element')}",
            {**closed_object_schema(required, add=elements, remove=elements, **optional), **_one_of("add", "remove")},
        ),
        "Map": (
            f"Sets fields of a map and unsets fields. {both.format('field')}",
            {**closed_object_schema(required, set=values, unset=names, **optional), **_one_of("set", "unset")},
        ),
        "Ttl": (
            "Renews or clears the time to live.",
            closed_object_schema({**required, "ttl": optional["ttl"]}, **others),
        ),
    }
    for kind, (description, schema) in kinds.items():
        schemas[f"{kind}{ending}"] = {**schema, "title": f"{kind}{ending}", "description": description}
    return {"oneOf": [ref(f"{kind}{ending}") for kind in kinds]}


def _one_of(name: str, other: str) -> Object:
    """Return the condition that an object has at least one of two fields; see ``transaction`` above."""
    return {"if": {"not": {"required": [name]}}, "then": {"required": [other]}}


_METADATA: Final = {"causal-metadata": ref("CausalMetadata")}
_LOST: Final = {"lost": ref("Lost")}
_ACKS: Final = {"acks": {"type": "integer", "minimum": 1}, **_LOST}
_ENCODING: Final[Object] = {
    "encoding": {"type": "string", "const": BASE64, "description": "The value is bytes, as a string in base64."}
}
_ENCODINGS: Final[Object] = {
    "encodings": {
        "type": "object",
        "additionalProperties": {"type": "string", "const": BASE64},
        "description": "The keys whose values are bytes, as strings in base64. Left out if there is none.",
    }
}
_VALUES: Final[Object] = {"type": "object", "additionalProperties": ref("Value")}
_KIND: Final[Object] = {"type": "string", "enum": list(KINDS)}

_RESPONSES: Final[dict[str, Object]] = {
    "Sibling": object_schema(
        {
            "value": ref("Value"),
            "version": {"type": "string", "description": "The dot as text."},
            "origin": {"type": "string"},
            "timestamp": {"type": "integer", "description": "Hybrid time in microseconds."},
        },
        **_ENCODING,
        type=_KIND,
    ),
    "Change": object_schema(
        {"key": {"type": "string"}},
        value=ref("Value"),
        **_ENCODING,
        etag={"type": "string"},
        type=_KIND,
        conflicts={"type": "integer", "minimum": 2},
        expires={"type": "number", "description": "Unix seconds."},
        deleted={
            "type": "boolean",
            "const": True,
            "description": "The key is absent; then nothing else is said about it.",
        },
    ),
    "KeyMeta": object_schema(
        {
            "etag": {"type": "string"},
            "conflicts": {"type": "integer", "minimum": 1, "description": "The number of versions; 1: no conflict."},
            "expires": {"type": ["number", "null"], "description": "Unix seconds; null: never."},
            "bytes": {"type": "integer", "description": "Length of the value: of the JSON text, or of the bytes."},
            "type": _KIND,
        }
    ),
    "Lost": {
        "type": "object",
        "description": "Replica id -> first and last update of the client's causal past that no replica has any more.",
        "additionalProperties": {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2},
    },
    "Found": {
        **object_schema(
            {"result": {"type": "string", "const": "found"}, "value": ref("Value"), **_METADATA},
            **_ENCODING,
            type=_KIND,
            conflicts={"type": "integer", "minimum": 2},
            expires={"type": "number", "description": "When the value expires, Unix seconds."},
            siblings={"type": "array", "items": ref("Sibling")},
            **_LOST,
        ),
        "description": "conflicts: the number of versions, if there are several.",
    },
    "Written": object_schema({"result": {"type": "string", "enum": ["created", "replaced"]}, **_METADATA}, **_ACKS),
    "Patched": object_schema({"result": {"type": "string", "enum": ["created", "merged"]}, **_METADATA}, **_ACKS),
    "Deleted": object_schema({"result": {"type": "string", "const": "deleted"}, **_METADATA}, **_ACKS),
    "Listed": object_schema(
        {
            "keys": {"type": "array", "items": {"type": "string"}},
            "next": {"type": ["string", "null"]},
            **_METADATA,
        },
        items=_VALUES,
        **_ENCODINGS,
        meta={"type": "object", "additionalProperties": ref("KeyMeta")},
        count={"type": "integer", "minimum": 0},
        **_LOST,
    ),
    "Changes": object_schema(
        {
            "changes": {"type": "array", "items": ref("Change")},
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
            "values": _VALUES,
            "missing-keys": {"type": "array", "items": {"type": "string"}},
            "etags": {"type": "object", "additionalProperties": {"type": "string"}},
            **_METADATA,
        },
        **_ENCODINGS,
        **_ACKS,
    ),
    "Error": object_schema(
        {"error": {"type": "string", "minLength": 1}},
        hint={"type": "string", "description": "What to send instead, for people. Its text may change."},
        example={"type": "object", "description": "A body that a request of this method and path may have."},
        **_METADATA,
    ),
    "Unavailable": object_schema(
        {"error": {"type": "string"}},
        missing={
            "type": "object",
            "additionalProperties": object_schema({"has": {"type": "integer"}, "needs": {"type": "integer"}}),
        },
        **_METADATA,
    ),
}
