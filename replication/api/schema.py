"""OpenAPI descriptions of the view, the status and the health of a replica (see store/api/schema/)."""

from __future__ import annotations

from typing import Final

from drf_spectacular.utils import extend_schema

from replication.history import WINDOWS
from replication.status import MAX_RECENT
from store.api.schema.building import (
    ETAG,
    NEXT,
    NO_TOKEN,
    OTHER,
    PAST,
    REPLICA,
    Object,
    closed_object_schema,
    object_schema,
    operation,
    parameter,
    ref,
    request_body,
    response,
)
from store.api.schema.parameters import KEY
from store.settings import RequestLimits

ADDRESS: Final = "10.0.0.4:8090"

# Host names and IPv4 addresses. The replica accepts IPv6 too, but a pattern for it would be unreadable.
_HOST: Final = (
    r"([A-Za-z_]([A-Za-z0-9_-]{0,60}[A-Za-z0-9_])?|(25[0-5]|2[0-4]\d|1?[1-9]?\d)(\.(25[0-5]|2[0-4]\d|1?[1-9]?\d)){3})"
)
_PORT: Final = r"([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3})"

SCHEMAS: Final[dict[str, Object]] = {
    "AddressBody": closed_object_schema(
        {
            "socket-address": {
                "type": "string",
                "description": f"host:port, or [IPv6]:port; for example {ADDRESS}",
                "pattern": f"^{_HOST}:{_PORT}$".replace(r"\d", "[0-9]"),
            }
        }
    ),
    "View": object_schema({"view": {"type": "array", "items": {"type": "string"}}}),
    "ViewChange": object_schema({"result": {"type": "string", "enum": ["added", "already present", "deleted"]}}),
    "Health": object_schema({"healthy": {"type": "boolean", "const": True}}),
    "Readiness": object_schema({"ready": {"type": "boolean"}}, reason={"type": "string"}),
    "Status": {"type": "object", "required": ["replica_id", "address", "state", "clock", "view", "pending"]},
    "Explanation": object_schema(
        {
            "key": {"type": "string"},
            "replica_id": {"type": "string"},
            "versions": {
                "type": "array",
                "items": object_schema(
                    {
                        "dot": {
                            "type": "array",
                            "items": {"type": ["string", "integer"]},
                            "description": "Replica id and counter.",
                        },
                        "past": ref("CausalMetadata"),
                        "timestamp": {"type": "integer", "description": "Hybrid time in microseconds."},
                        "expires": {"type": ["number", "null"], "description": "Unix seconds; null: never."},
                        "members": {"type": "array", "items": {"type": "object"}},
                    }
                ),
            },
            "last_updates": {
                "type": "array",
                "description": "Updates that no version follows: deletes, and writes whose value is gone.",
                "items": object_schema(
                    {
                        "dot": {
                            "type": "array",
                            "items": {"type": ["string", "integer"]},
                            "description": "Replica id and counter.",
                        },
                        "deletes": {"type": "boolean", "description": "Whether it deleted the key."},
                        "expired": {
                            "type": ["boolean", "null"],
                            "description": "Whether its value has expired; null: deleted or expired, it is not known.",
                        },
                        "wall_us": {
                            "type": ["integer", "null"],
                            "description": "When it was applied here, microseconds; null: long ago.",
                        },
                    }
                ),
            },
            "expired": {
                "type": ["number", "null"],
                "description": "When a value of the key expired last, Unix seconds; null: none is remembered.",
            },
            "started": {
                "type": ["number", "null"],
                "description": "When the replica started, Unix seconds: it remembers nothing older. null: not known.",
            },
            "note": {"type": "string", "description": "What became of the key, in words; may be empty."},
        }
    ),
}
hidden = extend_schema(exclude=True)
"""Decorator for endpoints that only replicas use. ``/schema/`` leaves them out, because clients must not call them."""


def error(description: str, text: str) -> Object:
    """Return the description of an error response with the text ``text`` as its example."""
    return response(description, ref("Error"), {"Error": {"error": text}})


PUBLIC: Final[list[Object]] = [{}]
"""The security of an operation that never needs a token."""

ACCESS_ERRORS: Final = {
    "401": NO_TOKEN,
    "403": error("The credentials do not permit this.", "Rejected: needs proof of KV_CLUSTER_SECRET"),
}
ADDRESS_ERRORS: Final = {
    "400": error("Invalid input; nothing has changed.", "socket-address: 'nonsense' is not of the form host:port"),
    "413": error("The body is too large.", f"Body is too large: at most {RequestLimits().max_body_bytes} bytes"),
    "415": error(
        "The body is not JSON.",
        'Unsupported media type "text/plain" in request; send the header Content-Type: application/json',
    ),
}


NO_ADDRESS: Final = request_body("AddressBody", required=True, fill_in_an_address={"socket-address": ""})
"""Empty on purpose: ``/docs/`` sends the example, and a view change with a made-up address is a real one."""


def _view_change(description: str, result: str) -> Object:
    return response(description, ref("ViewChange"), {description: {"result": result}})


GET_VIEW: Final = operation(
    "view",
    "getView",
    "The live members",
    {
        "200": response(
            "Their addresses.", ref("View"), {"Three": {"view": ["10.0.0.1:8090", "10.0.0.2:8090", "10.0.0.3:8090"]}}
        ),
        **ACCESS_ERRORS,
    },
)
PUT_VIEW: Final = operation(
    "view",
    "addToView",
    "Add a replica",
    {
        "200": _view_change("It was a member already.", "already present"),
        "201": _view_change("Added.", "added"),
        **ADDRESS_ERRORS,
        **ACCESS_ERRORS,
    },
    body=NO_ADDRESS,
)
DELETE_VIEW: Final = operation(
    "view",
    "removeFromView",
    "Remove a replica",
    {
        "200": _view_change("Removed. It stays out until it is added or started again.", "deleted"),
        "404": error("There is no such replica. The removal is recorded all the same.", "View has no such replica"),
        **ADDRESS_ERRORS,
        **ACCESS_ERRORS,
    },
    body=NO_ADDRESS,
)
STATUS: Final = operation(
    "operating",
    "getStatus",
    "The state of this replica, and of its peers as it sees them",
    {
        "200": response(
            "The status.",
            ref("Status"),
            {
                "Shortened": {
                    "replica_id": REPLICA,
                    "address": "10.0.0.1:8090",
                    "incarnation": "3440b4cb61180bc6",
                    "uptime_s": 812.4,
                    "state": "serving",
                    "clock": {REPLICA: 7, OTHER: 4},
                    "view": [
                        {
                            "address": "10.0.0.2:8090",
                            "replica_id": OTHER,
                            "state": "alive",
                            "self": False,
                            "last_contact_s": 0.4,
                            "clock": {REPLICA: 6, OTHER: 4},
                            "missing_updates": 1,
                        }
                    ],
                    "pending": [],
                    "deferred_requests": 0,
                    "watchers": 0,
                    "keys": 3,
                    "conflicts": 0,
                }
            },
        ),
        "400": error("A parameter is invalid.", f"recent has to be a whole number from 1 to {MAX_RECENT}"),
        **ACCESS_ERRORS,
    },
    parameters=[
        parameter(
            "history",
            "query",
            "Include a history: `true`: ten minutes, one point per second; `hour`: one per 10 s; `day`: one per 2 min.",
            {"type": "string", "enum": ["false", *WINDOWS]},
        ),
        parameter(
            "recent",
            "query",
            "Include this many of the updates that were applied last, with the wall time of each.",
            {"type": "integer", "minimum": 1, "maximum": MAX_RECENT},
        ),
    ],
)
EXPLAIN: Final = operation(
    "operating",
    "explainKey",
    "Why this replica returns what it returns for a key",
    {
        "200": response(
            "The versions of the key; none if it is absent.",
            ref("Explanation"),
            {
                "One version that one member lacks": {
                    "key": "user/1",
                    "replica_id": REPLICA,
                    "state": "serving",
                    "winner": [REPLICA, 7],
                    "versions": [
                        {
                            "dot": [REPLICA, 7],
                            "etag": ETAG,
                            "value": {"name": "Ada"},
                            "type": "json",
                            "value_bytes": 14,
                            "origin": REPLICA,
                            "past": PAST,
                            "timestamp": 1795391360636245,
                            "expires": None,
                            "expires_in_s": None,
                            "members": [
                                {
                                    "address": "10.0.0.1:8090",
                                    "state": "alive",
                                    "self": True,
                                    "has": True,
                                    "last_contact_s": 0.0,
                                },
                                {
                                    "address": "10.0.0.2:8090",
                                    "state": "suspect",
                                    "self": False,
                                    "has": False,
                                    "last_contact_s": 1.8,
                                },
                            ],
                        }
                    ],
                    "version_count": 1,
                    "merged": None,
                    "pending": [],
                    "last_updates": [],
                    "expired": None,
                    "remembers_all": False,
                    "started": 1795391300.25,
                    "deletes": {},
                    "clock": NEXT,
                    "note": "",
                }
            },
        ),
        "400": error("The key is invalid.", "Key is too long"),
        **ACCESS_ERRORS,
    },
    parameters=[KEY],
)
METRICS: Final = operation(
    "operating",
    "getMetrics",
    "Metrics for Prometheus",
    {
        "200": response(
            "Prometheus text.",
            {"type": "string"},
            {"Shortened": 'causeway_requests_total{operation="put",status="201"} 12.0\n'},
            media_type="text/plain",
        ),
        **ACCESS_ERRORS,
    },
)
HEALTHZ: Final = operation(
    "operating",
    "getHealth",
    "Whether the process serves",
    {"200": response("It does.", ref("Health"), {"Healthy": {"healthy": True}})},
    security=PUBLIC,
)
READYZ: Final = operation(
    "operating",
    "getReadiness",
    "Whether the replica serves clients",
    {
        "200": response("It does.", ref("Readiness"), {"Ready": {"ready": True}}),
        "503": response(
            "It does not.", ref("Readiness"), {"Joining": {"ready": False, "reason": "Replica is catching up"}}
        ),
    },
    security=PUBLIC,
)
