"""The context that the edge passes to the views: the replica that serves the request.

The server builds one context per replica. The edge (kvsite/wsgi.py) puts it into the WSGI environ of each request, and
``ApiView`` reads it from there. The classes follow the layers: ``StoreContext`` is what the views of the store need,
``replication.api.context`` adds the node, ``kvsite.context`` the configuration.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from store.api.bodies import Bodies
from store.api.event_stream import Streams
from store.api.exports import Exports
from store.api.large_responses import BUDGET_RESPONSES, LargeResponses
from store.api.request_metrics import RequestMetrics
from store.settings import RequestLimits

if TYPE_CHECKING:
    from store.engine import Engine

CONTEXT: Final = "causeway.context"
"""WSGI variable: the context of the replica that serves the request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreContext:
    """What the views of /kvs need."""

    engine: Engine
    limits: RequestLimits = field(default_factory=RequestLimits)
    request_metrics: RequestMetrics = field(default_factory=RequestMetrics)
    bodies: Bodies = field(default_factory=Bodies)
    large_responses: LargeResponses = field(init=False)
    streams: Streams = field(init=False)
    exports: Exports = field(default_factory=Exports)

    def __post_init__(self) -> None:
        """Give the large responses a budget that suits the limits, and let bodies end waits."""
        self.bodies.end_waits = self.engine.end_longest_waits
        object.__setattr__(self, "streams", Streams(self.engine.max_streams))
        object.__setattr__(self, "large_responses", LargeResponses(BUDGET_RESPONSES * self.limits.max_response_bytes))
