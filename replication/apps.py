"""The middle floor as a Django application: it brings the view's management commands, and no models."""

from __future__ import annotations

from django.apps import AppConfig


class ReplicationConfig(AppConfig):
    """Named in INSTALLED_APPS as ``replication``."""

    name = "replication"
    verbose_name = "Replication"
