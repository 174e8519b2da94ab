"""``show_view``: print the live members, as one replica sees them."""

from __future__ import annotations

import json
from typing import Any

from django.core.management.base import CommandParser

from replication.management.remote import ENVIRONMENT, EXIT_CODES, TIMEOUT_S, Remote, printable
from store.management.base import CausewayCommand, add_json_argument, add_timeout_argument
from store.management.connection import add_at_argument


class Command(CausewayCommand):
    """GET /view."""

    help = "Print the addresses of the live members, one per line, as the replica at --at sees them."
    exit_codes = EXIT_CODES
    environment = ENVIRONMENT

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        add_at_argument(parser)
        add_timeout_argument(parser, TIMEOUT_S)
        add_json_argument(parser, "the view")

    def handle(self, *args: Any, **options: Any) -> None:
        """Request the view and print it."""
        view = Remote(options["at"], timeout_s=options["timeout"]).request("GET", "/view")["view"]
        if options["json"]:
            self.stdout.write(json.dumps({"view": view}))
            return
        for member in view:
            self.stdout.write(printable(str(member)))
