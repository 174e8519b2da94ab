"""``show_view``: print the live members, as one replica sees them."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from replication.management.remote import Remote, printable
from store.management.connection import add_at_argument


class Command(BaseCommand):
    """GET /view."""

    help = "Print the addresses of the live members, one per line, as the replica at --at sees them."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        add_at_argument(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Request the view and print it."""
        for member in Remote(options["at"]).request("GET", "/view")["view"]:
            self.stdout.write(printable(str(member)))
