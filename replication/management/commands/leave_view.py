"""``leave_view [ADDRESS]``: remove a replica from the view, and wait until another member has all its updates."""

from __future__ import annotations

import time
from typing import Any

import requests
from django.core.management.base import BaseCommand, CommandError, CommandParser

from replication.management.remote import ErrorResponse, NoAnswer, Remote, address_argument
from store.management.connection import add_at_argument

POLL_S = 0.2


class Command(BaseCommand):
    """DELETE /view, then poll the status of the removed replica until it is drained."""

    help = (
        "Remove the replica at ADDRESS (default: the one at --at) from the view, and wait until it is drained, which "
        "means that at least one other member has all its updates."
    )
    requires_system_checks = ()

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("address", metavar="ADDRESS", nargs="?", help="host:port of the replica to remove")
        parser.add_argument(
            "--timeout",
            type=float,
            default=60.0,
            metavar="SECONDS",
            help="how long to wait for the drain (default: 60)",
        )
        add_at_argument(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the removal to one replica. Then poll the removed replica, whose status says when it is drained."""
        remote = Remote(options["at"])
        own = address_argument(str(remote.status()["address"]))
        leaver = address_argument(options["address"]) if options["address"] else own
        try:
            remote.request("DELETE", "/view", {"socket-address": leaver})
        except ErrorResponse as exc:
            if exc.status != requests.codes.not_found:
                raise
            raise CommandError(
                f"{exc}\nThe removal of {leaver} is recorded all the same: clients that depend on updates which only a "
                "replica there had, started before now, are served without them."
            ) from None
        # The replica at --at may be reachable under another address than its own, so keep the connection to it.
        is_own = leaver == own
        status = self._wait_until_drained(remote if is_own else Remote(leaver), options["timeout"], is_reachable=is_own)
        if status is None:
            self.stdout.write(f"{leaver} left")
            self.stderr.write(f"{leaver} does not answer: it may have had updates that no other member has")
        elif all(member["self"] or member["state"] == "left" for member in status["view"]):
            # Without another member, a replica counts as drained: there is nobody to send its updates to.
            self.stdout.write(f"{leaver} left")
            self.stderr.write(f"{leaver} was the only member: no other member has its updates")
        else:
            self.stdout.write(f"{leaver} left; at least one other member has all its updates")

    def _wait_until_drained(self, leaver: Remote, timeout_s: float, *, is_reachable: bool) -> dict[str, Any] | None:
        """Wait until ``leaver`` is drained and return its status. Return None if it does not answer: it may be dead.

        ``is_reachable``: it has answered before, so that no answer is an error. Raises ``CommandError`` for that, and
        after ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                status = leaver.status()
                # A member can be drained before it learns of its removal, and still accept writes then.
                if status["state"] in {"removed", "leaving"} and status["drained"]:
                    return status
            except NoAnswer:
                if not is_reachable:
                    return None
                raise
            if time.monotonic() >= deadline:
                raise CommandError(f"{leaver.at} left but is not drained after {timeout_s:g} s; draining continues")
            time.sleep(POLL_S)
