"""Routes of the view, of the exchange between replicas, and of health checks."""

from __future__ import annotations

from django.urls import path, re_path

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

urlpatterns = [
    path("view", ViewView.as_view(), name="view"),
    path("replication/exchange", ExchangeView.as_view(), name="exchange"),
    path("replication/snapshot", SnapshotView.as_view(), name="snapshot"),
    path("replication/status", StatusView.as_view(), name="status"),
    re_path(r"^replication/explain/(?P<rest>(?s:.*))$", ExplainView.as_view(), name="explain"),
    path("metrics", MetricsView.as_view(), name="metrics"),
    path("healthz", HealthView.as_view(), name="healthz"),
    path("readyz", ReadyView.as_view(), name="readyz"),
]
