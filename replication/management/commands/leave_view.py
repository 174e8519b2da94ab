"""``leave_view [ADDRESS]``: remove a replica from the view, and wait until another member has all its updates.

It refuses to remove the last member that serves, because nobody could read or write then. ``--force`` removes it. The
HTTP API has no such check: an orchestrator may know better.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import requests
from django.core.management.base import CommandError, CommandParser

from replication.management.remote import (
    ENVIRONMENT,
    EXIT_CODES,
    TIMEOUT_S,
    ErrorResponse,
    NoAnswer,
    NobodyListens,
    NoReplica,
    Remote,
    address_argument,
)
from store.management.base import USAGE_ERROR, CausewayCommand, add_json_argument, add_timeout_argument
from store.management.connection import add_at_argument
from store.management.progress import counted

POLL_S = 0.2

SPELLING: Final = (
    "Clients wait for the address that the replica was started with: localhost:8090 and 127.0.0.1:8090 are two. "
    '"missing" in a 503 names it.'
)


class NotDrained(CommandError):
    """The replica has left, and is not drained in time."""


class Command(CausewayCommand):
    """DELETE /view, then poll the status of the removed replica until it is drained."""

    help = (
        "Remove a replica from the view, and wait until it is drained. Then at least one other member has all its "
        "updates. Without ADDRESS, it removes the replica at --at: it asks first, and without a terminal needs --yes."
    )
    exit_codes = {
        **EXIT_CODES,
        0: "it is removed, and drained, or standard error says why that is unknown",
        1: "no replica answers, it rejects the request, it is the last that serves, or it is not drained in time",
    }
    environment = ENVIRONMENT

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("address", metavar="ADDRESS", nargs="?", help="host:port of the replica to remove")
        add_timeout_argument(parser, 60.0, "how long to wait for the drain")
        parser.add_argument("--yes", action="store_true", help="do not ask, and remove the replica at --at")
        parser.add_argument("--force", action="store_true", help="remove even the last member that serves")
        add_at_argument(parser)
        add_json_argument(parser, "the result")

    def handle(self, *args: Any, **options: Any) -> None:
        """Send the removal to one replica. Then poll the removed replica, whose status says when it is drained."""
        is_asked = not options["address"] and not options["yes"]
        if is_asked and not sys.stdin.isatty():
            raise CommandError(
                "nothing was changed: there is no terminal to ask on; name the ADDRESS to remove, or give --yes to "
                "remove the replica at --at",
                returncode=USAGE_ERROR,
            )
        timeout_s = min(TIMEOUT_S, options["timeout"])
        remote = Remote(options["at"], timeout_s=timeout_s)
        before = remote.status()
        own = address_argument(str(before["address"]))
        leaver = address_argument(options["address"]) if options["address"] else own
        # The replica at --at may be reachable under another address than its own, so keep the connection to it.
        is_own = leaver == own
        other = remote if is_own else Remote(leaver, timeout_s=timeout_s)
        keys = _keys_at_last_server(before, leaver, other, timeout_s)
        if keys is not None and not options["force"]:
            raise CommandError(
                f"nothing was changed: {leaver} is the last member that serves; {counted(keys, 'key')} would become "
                "unreachable; stop it instead, or use --force"
            )
        if is_asked:
            self._confirm(own)
        try:
            remote.request("DELETE", "/view", {"socket-address": leaver})
        except ErrorResponse as exc:
            if exc.status != requests.codes.not_found:
                raise
            known = (
                "" if _has_run(before, leaver) else f"\n{own} knows of no replica with exactly this address. {SPELLING}"
            )
            raise CommandError(
                f"{exc}\nThe removal of {leaver} is recorded all the same: clients that depend on updates which only a "
                f"replica there had, started before now, are served without them.{known}"
            ) from None
        if keys is not None:
            # Do not wait: no member that serves could take its updates.
            self._report(leaver, options, is_drained=False)
            self.stderr.write(
                f"{leaver} was the last member that serves: {counted(keys, 'key')} cannot be read before join_view"
            )
            return
        try:
            status = self._wait_until_drained(other, options["timeout"])
        except NotDrained:
            raise
        except CommandError as exc:
            if is_own:  # It has answered before, so its state matters.
                raise CommandError(f"{leaver} left, but whether it is drained is unknown: {exc}") from None
            self._report(leaver, options, is_drained=False)
            self.stderr.write(_why_unknown(leaver, own, exc, has_run=_has_run(before, leaver)))
            return
        # Without another member, a replica counts as drained: there is nobody to send its updates to.
        is_last = all(each["self"] or each["state"] == "left" for each in status["view"])
        self._report(leaver, options, is_drained=not is_last)
        if is_last:
            self.stderr.write(f"{leaver} was the only member: no other member has its updates")

    def _report(self, leaver: str, options: dict[str, Any], *, is_drained: bool) -> None:
        if options["json"]:
            self.stdout.write(json.dumps({"address": leaver, "result": "left", "drained": is_drained}))
        elif is_drained:
            self.stdout.write(f"{leaver} left; at least one other member has all its updates")
        else:
            self.stdout.write(f"{leaver} left")

    def _confirm(self, own: str) -> None:
        """Ask whether to remove the replica at --at. Raises ``CommandError`` unless the answer is yes."""
        self.stderr.write(f"Remove {own}, the replica that this command talks to? It stops serving. [y/N] ", ending="")
        self.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise CommandError("nothing was changed")

    def _wait_until_drained(self, leaver: Remote, timeout_s: float) -> dict[str, Any]:
        """Wait until ``leaver`` is drained and return its status.

        Raises ``CommandError``: ``NotDrained`` after ``timeout_s``, and another one if the status cannot be read.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                status = leaver.status()
                # A member can be drained before it learns of its removal, and still accept writes then.
                if status["state"] in {"removed", "leaving"} and status["drained"]:
                    return status
            except ErrorResponse as exc:
                if exc.status != requests.codes.service_unavailable:  # A busy replica answers later.
                    raise
            if time.monotonic() >= deadline:
                raise NotDrained(f"{leaver.at} left but is not drained after {timeout_s:g} s; draining continues")
            time.sleep(POLL_S)


def _keys_at_last_server(status: dict[str, Any], leaver: str, remote: Remote, timeout_s: float) -> int | None:
    """Return how many keys ``leaver`` has if no other member serves; None if another one does, or it does not serve.

    ``status``: of the replica at --at. ``remote``: for requests to ``leaver``. Another live member counts as serving if
    it says so, or if this machine does not reach it: replicas may have addresses that only they can use.
    """
    own = str(status["address"])
    live = [str(each["address"]) for each in status["view"] if each["state"] in {"alive", "suspect"}]
    if leaver not in live:
        return None
    try:
        leaving = status if leaver == own else remote.status()
    except CommandError:
        return None
    if not leaving["ready"]:
        return None
    others = (each for each in live if each != leaver)
    if any(status["ready"] if each == own else _may_serve(each, timeout_s) for each in others):
        return None
    return int(leaving["keys"])


def _may_serve(address: str, timeout_s: float) -> bool:
    try:
        return bool(Remote(address, timeout_s=timeout_s).status()["ready"])
    except NobodyListens:
        return False
    except CommandError:
        return True


def _why_unknown(leaver: str, own: str, exc: CommandError, *, has_run: bool) -> str:
    """Return what to say of a removed replica whose status cannot be read because of ``exc``.

    ``has_run``: whether the replica at ``own`` knows of a process that was started under its address.
    """
    if not isinstance(exc, NoAnswer):
        kept = "; it may have updates that no other member has" if has_run else ""
        return f"whether {leaver} is drained is unknown{kept}: {exc}"
    absent = f"what answers at {leaver} is no replica" if isinstance(exc, NoReplica) else f"{leaver} does not answer"
    if has_run:
        return f"{absent}: it may have had updates that no other member has"
    return f"{absent}, and {own} knows of no replica that has ever run there"


def _has_run(status: dict[str, Any], address: str) -> bool:
    """Return whether the replica with ``status`` knows of a process that was started under ``address``."""
    return any(each["address"] == address and each["replica_id"] is not None for each in status["view"])
