"""The replication layer as a Django application, for its management commands; it has no models."""

from __future__ import annotations

from django.apps import AppConfig


class ReplicationConfig(AppConfig):
    """Named in INSTALLED_APPS as ``replication``."""

    name = "replication"
    verbose_name = "Replication"
