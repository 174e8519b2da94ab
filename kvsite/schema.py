"""``/schema/``: the API as OpenAPI 3.1, in JSON or YAML. ``/docs/`` shows it in a browser (kvsite/docs_page.py).

drf-spectacular finds the operations by their routes. Their descriptions are beside the views (store/api/schema/,
replication/api/schema.py).
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiYamlRenderer
from drf_spectacular.utils import extend_schema

import replication.api.schema
from store.api.base import ApiView
from store.api.query import bad_parameter, parameters
from store.api.rendering import JSON, bytes_response
from store.api.response import ApiResponse
from store.api.schema.components import component_schemas
from store.api.usage import Usage
from store.settings import RequestLimits

Schema = dict[str, Any]
YAML: Final = "application/yaml"
USAGE: Final = Usage("GET /schema/ returns JSON, GET /schema/?format=yaml returns YAML. Neither needs a body.")


@functools.cache
def document(bounds: RequestLimits) -> Schema:
    """Return the OpenAPI document, with the bounds of the limits in force."""
    schema: Schema = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    schema["components"] = {
        "schemas": {**component_schemas(bounds), **replication.api.schema.SCHEMAS},
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer", "description": "If KV_API_TOKENS is set."}},
    }
    return schema


@functools.cache
def as_json(bounds: RequestLimits) -> bytes:
    """Return the document in JSON."""
    return msgspec.json.encode(document(bounds))


@functools.cache
def as_yaml(bounds: RequestLimits) -> bytes:
    """Return the document in YAML."""
    text: bytes = OpenApiYamlRenderer().render(document(bounds))  # type: ignore[no-untyped-call]
    return text


def name_keys(endpoints: list[tuple[Any, ...]], **_: Any) -> list[tuple[Any, ...]]:
    """Name the path parameter of a key ``key``; a preprocessing hook of drf-spectacular."""
    return [(path.replace("{rest}", "{key}"), *others) for path, *others in endpoints]


@extend_schema(exclude=True)
class SchemaView(ApiView):
    """``/schema/``: JSON, or YAML if ``?format=yaml`` or ``Accept`` asks for it."""

    operations = {"GET": "schema", "HEAD": "schema"}
    usage = {"GET": USAGE, "HEAD": USAGE}

    def get(self) -> ApiResponse:
        """Return the document."""
        limits = self.context.limits
        wanted = parameters(self.request).get("format")
        if wanted not in (None, "json", "yaml"):
            raise bad_parameter("format", "json or yaml", "yaml")
        accepts_yaml = wanted is None and "yaml" in self.request.environ.get("HTTP_ACCEPT", "")
        if wanted == "yaml" or accepts_yaml:
            return bytes_response(200, as_yaml(limits), YAML)
        return bytes_response(200, as_json(limits), JSON)
