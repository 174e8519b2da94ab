"""Routes of the view, of the exchange between replicas, and of status, metrics and health checks."""

from __future__ import annotations

from typing import Final

from replication.api.metrics import MetricsView
from replication.api.views import (
    ExchangeView,
    ExplainView,
    HealthView,
    ReadyView,
    SnapshotView,
    StatusView,
    ViewView,
)
from store.api.routing import Route

ROUTES: Final = (
    Route("view", ViewView, name="view"),
    Route("replication/exchange", ExchangeView, name="exchange"),
    Route("replication/snapshot", SnapshotView, name="snapshot"),
    Route("replication/status", StatusView, name="status"),
    Route("replication/explain/", ExplainView, name="explain", takes_rest=True),
    Route("metrics", MetricsView, name="metrics"),
    Route("healthz", HealthView, name="healthz"),
    Route("readyz", ReadyView, name="readyz"),
)

urlpatterns = [route.url_pattern() for route in ROUTES]
