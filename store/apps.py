"""The ground floor as a Django application: it brings the store's management commands, and no models."""

from __future__ import annotations

from django.apps import AppConfig


class StoreConfig(AppConfig):
    """Named in INSTALLED_APPS as ``store``."""

    name = "store"
    verbose_name = "Causal store"
