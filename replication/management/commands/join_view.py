"""``join_view ADDRESS``: add a replica to the membership table of the cluster."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandParser

from replication.management.remote import Remote, address_argument
from store.management.connection import add_at_argument


class Command(BaseCommand):
    """PUT /view."""

    help = "Add the replica at ADDRESS to the view. It does not have to run yet."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("address", metavar="ADDRESS", help="host:port or [ipv6]:port of the replica to add")
        add_at_argument(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the change to one replica, which passes it on to the others."""
        member = address_argument(options["address"])
        result = Remote(options["at"]).request("PUT", "/view", {"socket-address": member})["result"]
        self.stdout.write(f"{member} {result}")
