"""The parts of an OpenAPI description: functions that build them, and what the examples share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from drf_spectacular.utils import extend_schema

from store.api.parsing import DEFAULT_ACK_WAIT_S
from store.api.rendering import JSON, OCTETS

Json = Any
Object = dict[str, Json]
Handler = TypeVar("Handler", bound=Callable[..., Any])

COMPONENTS: Final = "#/components/schemas/{name}"

# Ids, clocks and tags that the examples share.
REPLICA: Final = "10.0.0.1:8090@3440b4cb61180bc6"
OTHER: Final = "10.0.0.2:8090@3440b4cb61206d0a"
PAST: Final = {REPLICA: 7}
NEXT: Final = {REPLICA: 8}
ETAG: Final = f'"{REPLICA}:7"'

# What bodies and parameters say of the same options.
W: Final = 'How many members must have the write: 1 (this replica), a number, "majority" or "all" of the members.'
W_TIMEOUT: Final = f"Seconds to wait for their acks; {DEFAULT_ACK_WAIT_S:g} if it is absent."
TTL: Final = "Seconds after which the version counts as deleted."


def described(operation: Object) -> Callable[[Handler], Handler]:
    """Return a decorator that attaches an operation to a handler, for ``/schema/``."""
    return extend_schema(operation=operation)


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
    """Return the description of a JSON body with the component schema ``schema``. ``examples``: name -> body.

    ``/docs/`` sends the examples, so each must work as it stands, at any replica.
    """
    named = {name: {"summary": name.replace("_", " "), "value": value} for name, value in examples.items()}
    return {"required": required, "content": {JSON: {"schema": ref(schema), "examples": named}}}


def with_bytes(described: Object) -> Object:
    """Return the description of a body or a response that can also be bytes, the value of a key."""
    example = {"value": {"summary": "Any bytes", "value": "GIF89a"}}
    as_bytes = {"schema": {"type": "string", "format": "binary"}, "examples": example}
    return {**described, "content": {**described["content"], OCTETS: as_bytes}}


def parameter(name: str, place: str, description: str, schema: Object, example: Json = None) -> Object:
    """Return the description of a parameter, optional unless it is part of the path.

    ``example``: ``/docs/`` sends it, so it must work as it stands.
    """
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
    "X-Conflicts": {
        "description": "The number of versions, if the body is bytes and there are several.",
        "schema": {"type": "string"},
        "example": "2",
    },
    "X-Expires": {
        "description": "When the value expires, Unix seconds, if the body is bytes.",
        "schema": {"type": "string"},
        "example": "1795391360.5",
    },
    "X-Lost": {
        "description": "JSON: the same as lost, if the body is bytes.",
        "schema": {"type": "string"},
        "example": '{"10.0.0.2:8090@3440b4cb61206d0a":[4,7]}',
    },
    "Retry-After": {"description": "Seconds.", "schema": {"type": "string"}, "example": "1"},
}


SECURITY: Final[list[Object]] = [{}, {"token": []}]
"""A token, if the replica has KV_API_TOKENS."""

NO_TOKEN: Final = response(
    "The request needs a token (KV_API_TOKENS).",
    ref("Error"),
    {"No token": {"error": "Needs an API token: Authorization: Bearer …"}},
)


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
