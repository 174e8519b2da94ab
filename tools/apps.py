"""The development tools as a Django application: it adds their management commands, and no models."""

from __future__ import annotations

from django.apps import AppConfig


class ToolsConfig(AppConfig):
    """Installed only where the package is present: ``kvsite.settings`` looks for it. The image does not contain it."""

    name = "tools"
    verbose_name = "Development tools"
