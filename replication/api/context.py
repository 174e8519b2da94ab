"""The context that the edge passes to the views of this package: that of the store, and the node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from django.http import HttpRequest

from replication.settings import (
    MAX_OPERATOR_RESPONSES,
    MAX_PEER_RESPONSES,
    OPERATOR_RESPONSES_BYTES,
    PEER_RESPONSES_BYTES,
)
from store.api.context import CONTEXT, StoreContext
from store.api.large_responses import LargeResponses

if TYPE_CHECKING:
    from replication.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaContext(StoreContext):
    """What the views of the replica need.

    ``large_peer_responses``, ``large_operator_responses``: large responses to peers, and to those who operate the
    replica. They have room of their own, so that clients that do not read responses keep no updates from peers and no
    status from operators.
    """

    node: Node
    dropped_log_lines: Callable[[], int] = lambda: 0
    """Returns how many lines of the log could not be written."""
    dropped_audit_lines: Callable[[], int] = lambda: 0
    """Returns how many lines of the audit log could not be written."""
    on_view_change: Callable[[str], None] = lambda _: None
    """Called with an address after a request has added or removed it, by the thread of the request. Must not block."""
    large_peer_responses: LargeResponses = field(
        default_factory=lambda: LargeResponses(PEER_RESPONSES_BYTES, MAX_PEER_RESPONSES)
    )
    large_operator_responses: LargeResponses = field(
        default_factory=lambda: LargeResponses(OPERATOR_RESPONSES_BYTES, MAX_OPERATOR_RESPONSES)
    )


def context_of(request: HttpRequest) -> ReplicaContext | None:
    """Return the context of a request of Django's handler; None if the request did not pass the edge."""
    context: ReplicaContext | None = request.META.get(CONTEXT)
    return context


def node_of(request: HttpRequest) -> Node | None:
    """Return the node that serves a request of Django's handler; None if the request did not pass the edge."""
    context = context_of(request)
    return None if context is None else context.node
