"""``show_view``: who is in the view, as one replica sees it."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from replication.management.remote import Remote, add_at


class Command(BaseCommand):
    """GET /view."""

    help = "Print the live members, one address a line, as the replica at --at sees them."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the replica to ask."""
        add_at(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask and print."""
        for member in Remote(options["at"]).ask("GET", "/view")["view"]:
            self.stdout.write(member)
