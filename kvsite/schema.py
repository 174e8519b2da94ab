"""``/schema/``: the API as OpenAPI 3.1, in JSON or YAML; ``/docs/``: the same in a browser.

drf-spectacular finds the operations by their routes; what they mean is written beside the views (store/api/schema.py,
replication/api/schema.py). The page's scripts come from this replica: it works where nothing else can be reached.
"""

from __future__ import annotations

import functools
from typing import Any, Final

import msgspec
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.views.decorators.http import require_safe
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiYamlRenderer
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import ParseError

import replication.api.schema
import store.api.schema
from store.api.base import ApiView
from store.api.query import parameters
from store.api.rendering import JSON, encoded

Schema = dict[str, Any]
YAML: Final = "application/yaml"


@functools.cache
def document() -> Schema:
    """Return the OpenAPI document; it is the same for everybody and for as long as the process lives."""
    schema: Schema = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    schema["components"] = {
        "schemas": {**store.api.schema.SCHEMAS, **replication.api.schema.SCHEMAS},
        "securitySchemes": {
            "token": {"type": "http", "scheme": "bearer", "description": "Where KV_API_TOKENS is set."}
        },
    }
    return schema


@functools.cache
def as_json() -> bytes:
    """Return the document in JSON."""
    return msgspec.json.encode(document())


@functools.cache
def as_yaml() -> bytes:
    """Return the document in YAML."""
    text: bytes = OpenApiYamlRenderer().render(document())  # type: ignore[no-untyped-call]
    return text


def name_keys(endpoints: list[tuple[Any, ...]], **_: Any) -> list[tuple[Any, ...]]:
    """Call the rest of a path what it is; a hook of drf-spectacular's."""
    return [(path.replace("{rest}", "{key}"), *others) for path, *others in endpoints]


@extend_schema(exclude=True)
class SchemaView(ApiView):
    """``/schema/``: JSON, or YAML where ``?format=yaml`` or ``Accept`` asks for it."""

    operations = {"GET": "schema", "HEAD": "schema"}

    def get(self, request: HttpRequest) -> HttpResponse:
        """Tell the document."""
        wanted = parameters(self.http).get("format")
        if wanted not in (None, "json", "yaml"):
            raise ParseError("format has to be json or yaml")
        accepts_yaml = wanted is None and "yaml" in self.http.META.get("HTTP_ACCEPT", "")
        if wanted == "yaml" or accepts_yaml:
            return encoded(200, as_yaml(), YAML)
        return encoded(200, as_json(), JSON)


@require_safe
def docs(request: HttpRequest) -> HttpResponse:
    """``/docs/``: Swagger UI over ``/schema/``."""
    return TemplateResponse(request, "docs.html")
