"""How OpenAPI describes the view, the replica's state and its health (see store/api/schema.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from drf_spectacular.utils import extend_schema

from replication.status import MAX_RECENT
from store.api.schema import ETAG, KEY, NEXT, OTHER, PAST, REPLICA, Operation, answer, body, one, parameter, ref

ADDRESS: Final = "10.0.0.4:8090"

_HOST: Final = (
    r"([A-Za-z_]([A-Za-z0-9_-]{0,60}[A-Za-z0-9_])?|(25[0-5]|2[0-4]\d|1?[1-9]?\d)(\.(25[0-5]|2[0-4]\d|1?[1-9]?\d)){3})"
)
_PORT: Final = r"([1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3})"

SCHEMAS: Final[dict[str, Operation]] = {
    "Address": {
        "type": "object",
        "required": ["socket-address"],
        "properties": {
            "socket-address": {
                "type": "string",
                "description": "host:port, or [IPv6]:port",
                "pattern": f"^{_HOST}:{_PORT}$".replace(r"\d", "[0-9]"),
                "example": ADDRESS,
            }
        },
    },
    "View": one({"view": {"type": "array", "items": {"type": "string"}}}),
    "Changed": one({"result": {"enum": ["added", "already present", "deleted"]}}),
    "Health": one({"healthy": {"const": True}}),
    "Ready": {
        "type": "object",
        "required": ["ready"],
        "properties": {"ready": {"type": "boolean"}, "reason": {"type": "string"}},
    },
    "Status": {"type": "object", "required": ["replica_id", "address", "state", "clock", "view", "pending"]},
    "Explanation": one(
        {
            "key": {"type": "string"},
            "replica_id": {"type": "string"},
            "versions": {
                "type": "array",
                "items": one(
                    {
                        "dot": {"type": "array"},
                        "past": ref("CausalMetadata"),
                        "timestamp": {"type": "integer"},
                        "members": {"type": "array", "items": {"type": "object"}},
                    }
                ),
            },
        }
    ),
}
hidden = extend_schema(exclude=True)
"""For what only replicas of this version say to each other: no client is to build on it."""


def operate(
    tag: str,
    operation_id: str,
    summary: str,
    answers: Mapping[str, Operation],
    *,
    parameters: Sequence[Operation] = (),
    request: Operation | None = None,
    is_public: bool = False,
) -> Operation:
    """Return an operation. ``is_public``: it needs no token even where there are some."""
    refusals = {} if is_public else REFUSALS
    told: Operation = {
        "operationId": operation_id,
        "summary": summary,
        "tags": [tag],
        "parameters": list(parameters),
        "security": [{}] if is_public else [{}, {"token": []}],
        "responses": {**answers, **refusals},
    }
    return told if request is None else {**told, "requestBody": request}


def error(description: str, text: str) -> Operation:
    """Return a response with an error in JSON."""
    return answer(description, ref("Error"), {"Error": {"error": text}})


REFUSALS: Final = {
    "401": error("Needs a token (KV_API_TOKENS).", "Needs an API token: Authorization: Bearer …"),
    "403": error("Needs more than was shown.", "Refused: needs proof of KV_CLUSTER_SECRET"),
}
BAD_ADDRESS: Final = {
    "400": error("Bad input; nothing has changed.", "socket-address: 'nonsense' is not of the form host:port"),
    "413": error("Body is too large.", "Body is too large: at most 8388608 bytes"),
    "415": error("The body is not JSON.", 'Unsupported media type "text/plain" in request.'),
}


def _changed(description: str, result: str) -> Operation:
    return answer(description, ref("Changed"), {description: {"result": result}})


GET_VIEW: Final = operate(
    "view",
    "getView",
    "Who belongs and can be reached",
    {
        "200": answer(
            "The live members.", ref("View"), {"Three": {"view": ["10.0.0.1:8090", "10.0.0.2:8090", "10.0.0.3:8090"]}}
        )
    },
)
PUT_VIEW: Final = operate(
    "view",
    "addToView",
    "Let a replica in",
    {"200": _changed("It was in.", "already present"), "201": _changed("Added.", "added"), **BAD_ADDRESS},
    request=body("Address", required=True, one={"socket-address": ADDRESS}),
)
DELETE_VIEW: Final = operate(
    "view",
    "removeFromView",
    "Put a replica out",
    {
        "200": _changed("Removed; it stays out until it is added again or started again.", "deleted"),
        "404": error("There is no such replica.", "View has no such replica"),
        **BAD_ADDRESS,
    },
    request=body("Address", required=True, one={"socket-address": ADDRESS}),
)
STATUS: Final = operate(
    "operating",
    "getStatus",
    "How this replica sees itself and its peers",
    {
        "200": answer(
            "Its state.",
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
        "400": error("A parameter is none.", "recent has to be a whole number from 1 to 200"),
    },
    parameters=[
        parameter("history", "query", "The last ten minutes as well, a sample a second.", {"type": "boolean"}, False),
        parameter(
            "recent",
            "query",
            "So many of the updates applied last as well, with the wall time at which they were.",
            {"type": "integer", "minimum": 1, "maximum": MAX_RECENT},
            20,
        ),
    ],
)
EXPLAIN: Final = operate(
    "operating",
    "explainKey",
    "Why a key reads as it does here",
    {
        "200": answer(
            "The key's versions; none where it is absent.",
            ref("Explanation"),
            {
                "One version, not everywhere yet": {
                    "key": "user/1",
                    "replica_id": REPLICA,
                    "state": "serving",
                    "winner": [REPLICA, 7],
                    "versions": [
                        {
                            "dot": [REPLICA, 7],
                            "etag": ETAG,
                            "value": {"name": "Ada"},
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
                    "pending": [],
                    "deletes": {},
                    "clock": NEXT,
                }
            },
        ),
        "400": error("The key is none.", "Key is too long"),
    },
    parameters=[KEY],
)
METRICS: Final = operate(
    "operating",
    "getMetrics",
    "Metrics for Prometheus",
    {
        "200": answer(
            "Prometheus text.",
            {"type": "string"},
            {"Shortened": 'causeway_requests_total{operation="put",status="201"} 12.0\n'},
            media_type="text/plain",
        )
    },
)
HEALTHZ: Final = operate(
    "operating",
    "getHealth",
    "Whether the process serves",
    {"200": answer("It does.", ref("Health"), {"Healthy": {"healthy": True}})},
    is_public=True,
)
READYZ: Final = operate(
    "operating",
    "getReadiness",
    "Whether clients are served",
    {
        "200": answer("They are.", ref("Ready"), {"Ready": {"ready": True}}),
        "503": answer("They are not.", ref("Ready"), {"Joining": {"ready": False, "reason": "Replica is catching up"}}),
    },
    is_public=True,
)
