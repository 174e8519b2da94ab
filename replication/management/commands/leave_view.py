"""``leave_view [ADDRESS]``: remove a replica from the view, and wait until another member has all its updates."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import requests
from django.core.management.base import CommandError, CommandParser

from replication.management.remote import (
    ENVIRONMENT,
    EXIT_CODES,
    TIMEOUT_S,
    ErrorResponse,
    NoAnswer,
    Remote,
    address_argument,
)
from store.management.base import CausewayCommand, add_json_argument, add_timeout_argument
from store.management.connection import add_at_argument

POLL_S = 0.2


class Command(CausewayCommand):
    """DELETE /view, then poll the status of the removed replica until it is drained."""

    help = (
        "Remove a replica from the view, and wait until it is drained. Then at least one other member has all its "
        "updates. Without ADDRESS, it removes the replica at --at, and asks first on a terminal."
    )
    exit_codes = {**EXIT_CODES, 1: "no replica answers, it rejects the request, or it is not drained in time"}
    environment = ENVIRONMENT

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("address", metavar="ADDRESS", nargs="?", help="host:port of the replica to remove")
        add_timeout_argument(parser, 60.0, "how long to wait for the drain")
        parser.add_argument("--yes", action="store_true", help="do not ask")
        add_at_argument(parser)
        add_json_argument(parser, "the result")

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the removal to one replica. Then poll the removed replica, whose status says when it is drained."""
        timeout_s = min(TIMEOUT_S, options["timeout"])
        remote = Remote(options["at"], timeout_s=timeout_s)
        own = address_argument(str(remote.status()["address"]))
        leaver = address_argument(options["address"]) if options["address"] else own
        # A script, such as the preStop hook of a pod, has no terminal, and means what it says.
        if not options["address"] and not options["yes"] and sys.stdin.isatty():
            self._confirm(own)
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
        other = remote if is_own else Remote(leaver, timeout_s=timeout_s)
        status = self._wait_until_drained(other, options["timeout"], is_reachable=is_own)
        # Without another member, a replica counts as drained: there is nobody to send its updates to.
        is_last = status is not None and all(each["self"] or each["state"] == "left" for each in status["view"])
        is_drained = status is not None and not is_last
        if options["json"]:
            self.stdout.write(json.dumps({"address": leaver, "result": "left", "drained": is_drained}))
        elif is_drained:
            self.stdout.write(f"{leaver} left; at least one other member has all its updates")
        else:
            self.stdout.write(f"{leaver} left")
        if status is None:
            self.stderr.write(f"{leaver} does not answer: it may have had updates that no other member has")
        elif is_last:
            self.stderr.write(f"{leaver} was the only member: no other member has its updates")

    def _confirm(self, own: str) -> None:
        """Ask whether to remove the replica at --at. Raises ``CommandError`` unless the answer is yes."""
        self.stderr.write(f"Remove {own}, the replica that this command talks to? It stops serving. [y/N] ", ending="")
        self.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was changed")

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
