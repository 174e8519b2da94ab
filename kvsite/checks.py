"""System check for ``causeway check --deploy``: warns about what is not secured, as the replica's log does."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage, Tags, Warning, register  # noqa: A004  # Django's name

from kvsite.config import current


@register(Tags.security, deploy=True)
def check_secured(app_configs: Any, **options: Any) -> list[CheckMessage]:
    """Return one warning for each part of the API that is open."""
    return [Warning(f"Not secured: {warning}.", id="causeway.W001") for warning in current().security_warnings]
