"""``join_view ADDRESS``: let a replica belong to the cluster (again)."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from replication.management.remote import Remote, add_at, address


class Command(BaseCommand):
    """PUT /view."""

    help = "Let the replica at ADDRESS belong to the view; it need not run yet."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the address."""
        parser.add_argument("address", metavar="ADDRESS", help="host:port or [ipv6]:port of the replica")
        add_at(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask one replica; it tells the others."""
        member = address(options["address"])
        result = Remote(options["at"]).ask("PUT", "/view", {"socket-address": member})["result"]
        self.stdout.write(f"{member} {result}")
