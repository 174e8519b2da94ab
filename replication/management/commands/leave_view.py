"""``leave_view [ADDRESS]``: take a replica out of the view and wait until it has handed over what only it has."""

from __future__ import annotations

import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from replication.management.remote import NoAnswer, Remote, add_at, address

POLL_S = 0.2


class Command(BaseCommand):
    """DELETE /view, then poll the leaver's status until it is drained."""

    help = "Take the replica at ADDRESS (default: the one at --at) out of the view, and wait until it is drained."
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Take the address and how long to wait."""
        parser.add_argument("address", metavar="ADDRESS", nargs="?", help="host:port of the replica that leaves")
        parser.add_argument(
            "--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait for the drain (60)"
        )
        add_at(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask one replica; the one that leaves learns of it, hands over, and says so in its status."""
        remote = Remote(options["at"])
        own = address(str(remote.status()["address"]))
        leaver = address(options["address"]) if options["address"] else own
        remote.ask("DELETE", "/view", {"socket-address": leaver})
        # The replica at --at may be reachable under another address than its own.
        if self._drained(remote if leaver == own else Remote(leaver), options["timeout"], sure=leaver == own):
            self.stdout.write(f"{leaver} left; all that it had is elsewhere")
        else:
            self.stdout.write(f"{leaver} left")
            self.stderr.write(f"{leaver} does not answer: whether it had what nobody else has is not known")

    def _drained(self, leaver: Remote, timeout_s: float, *, sure: bool) -> bool:
        """Wait for the drain. False: the leaver cannot be asked, which is no error if it may be dead (not ``sure``).

        Raises ``CommandError`` when the time is over.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                status = leaver.status()
                # Drained alone may be the case before the leaver knows that it is out, and still takes writes.
                if status["state"] in {"removed", "leaving"} and status["drained"]:
                    return True
            except NoAnswer:
                if not sure:
                    return False
                raise
            if time.monotonic() >= deadline:
                raise CommandError(f"{leaver.at} left but is not drained after {timeout_s:g} s; it goes on by itself")
            time.sleep(POLL_S)
