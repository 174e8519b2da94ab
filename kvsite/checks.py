"""``manage.py check --deploy``: what is still open, as the replica's own log says it at the start."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Tags, Warning, register  # noqa: A004  # Django's name

from kvsite.config import current


@register(Tags.security, deploy=True)
def check_secured(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Return a warning for each part that nothing guards."""
    return [Warning(f"Not secured: {warning}.", id="causeway.W001") for warning in current().security_warnings]
