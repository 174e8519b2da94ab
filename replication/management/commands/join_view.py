"""``join_view ADDRESS``: add a replica to the membership table of the cluster."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandParser

from replication.management.remote import ENVIRONMENT, EXIT_CODES, TIMEOUT_S, Remote, address_argument
from store.management.base import CausewayCommand, add_json_argument, add_timeout_argument
from store.management.connection import add_at_argument, why_not_reachable


class Command(CausewayCommand):
    """PUT /view."""

    help = "Add the replica at ADDRESS to the view. It does not have to run yet."
    exit_codes = EXIT_CODES
    environment = ENVIRONMENT

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("address", metavar="ADDRESS", help="host:port or [ipv6]:port of the replica to add")
        add_at_argument(parser)
        add_timeout_argument(parser, TIMEOUT_S)
        add_json_argument(parser, "the result")

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the change to one replica, which passes it on to the others. Warn if nobody listens at the address."""
        member = address_argument(options["address"])
        remote = Remote(options["at"], timeout_s=options["timeout"])
        result = remote.request("PUT", "/view", {"socket-address": member})["result"]
        reason = why_not_reachable(member, options["timeout"])
        if options["json"]:
            self.stdout.write(json.dumps({"address": member, "result": result, "reachable": not reason}))
        else:
            self.stdout.write(f"{member} {result}")
        if reason:
            self.stderr.write(
                f'{member} cannot be reached from here: {reason}. It is a member all the same, so "majority" and "all" '
                "count it. If that is a mistake: leave_view",
                self.style.WARNING,
            )
