"""The context of one replica as a server: that of the layers below, and its configuration."""

from __future__ import annotations

from dataclasses import dataclass

from kvsite.audit import AuditLog
from kvsite.config import Config
from replication.api.context import ReplicaContext


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerContext(ReplicaContext):
    """One replica, put together: what the edge and the views need. ``kvsite.server.build`` makes it.

    ``audit``: None without ``KV_AUDIT_LOG``.
    """

    config: Config
    audit: AuditLog | None = None
