"""The Django application of the store. It provides management commands and has no models."""

from __future__ import annotations

from django.apps import AppConfig


class StoreConfig(AppConfig):
    """Configuration of the application ``store`` in INSTALLED_APPS."""

    name = "store"
    verbose_name = "Causal store"
