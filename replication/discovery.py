"""Peers from DNS (``KV_VIEW_DNS=name:port``): the name is resolved again and again, each address found is a seed.

An address from DNS says whom to ask (replication/seeds.py), never who belongs: a name service forgets a replica that
does not answer for a moment, and remembers one that is gone. So nobody leaves the view because a name lost an
address; replicas leave by draining, or by DELETE /view.

``getaddrinfo`` blocks, for many seconds where no name server answers. It runs in one thread of its own, one lookup at
a time, without any lock: whatever a name server does, clients and exchanges do not notice.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Final

from replication.address import join_address, parse_address, split_address

logger = logging.getLogger("causeway.replication")

FIRST_INTERVAL_S: Final = 0.2
"""Pause between lookups until the first one has found somebody: a replica that starts waits for that."""

MAX_ADDRESSES: Final = 256
"""Addresses of one lookup that are used at most: each one that does not answer holds a thread."""

OnAddresses = Callable[[frozenset[str]], None]


class LookupFailed(Exception):
    """The name did not resolve; the text says how, for the log."""


def resolve(name: str, port: int) -> frozenset[str]:
    """Return the addresses (``host:port``, IPv4 and IPv6) that ``name`` has now. Raises ``LookupFailed``; blocks."""
    try:
        records = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        # A zone (fe80::1%eth0) means something on one machine only.
        hosts = {host for record in records if "%" not in (host := str(record[4][0]))}
    except (OSError, UnicodeError) as exc:
        raise LookupFailed(getattr(exc, "strerror", None) or str(exc)) from exc
    if not hosts:
        raise LookupFailed("no address that other machines can use")
    addresses = sorted(parse_address(join_address(host, port)) for host in hosts)
    return frozenset(addresses[:MAX_ADDRESSES])


class Discovery:
    """Looks ``address`` (``name:port``) up every ``interval_s`` seconds, in a thread of its own.

    ``found``: the addresses of the last lookup that found any.
    """

    def __init__(
        self, address: str, interval_s: float, *, lookup: Callable[[str, int], frozenset[str]] = resolve
    ) -> None:
        self.address = address
        self.addresses: frozenset[str] = frozenset()
        self._host, self._port = split_address(address)
        self._interval_s = interval_s
        self._lookup = lookup
        self._ended = threading.Event()
        self._told = ""

    def start(self, on_found: OnAddresses) -> None:
        """Begin. ``on_found`` is called from the thread, after each lookup that found somebody."""
        threading.Thread(target=self._run, args=(on_found,), name="discovery", daemon=True).start()

    def stop(self) -> None:
        """Look nothing up any more. A lookup under way is not waited for: it may take long, and nobody needs it."""
        self._ended.set()

    def _run(self, on_found: OnAddresses) -> None:
        while not self._ended.is_set():
            try:
                self.look_up(on_found)
            except Exception:  # Later peers are found by this thread alone: it must live on.
                logger.exception("lookup of %s failed", self.address)
            pause_s = self._interval_s if self.addresses else min(self._interval_s, FIRST_INTERVAL_S)
            self._ended.wait(pause_s)

    def look_up(self, on_found: OnAddresses) -> None:
        """Resolve once. Where that fails, what is known stays; the log is told when the outcome is another one."""
        try:
            found = self._lookup(self._host, self._port)
        except LookupFailed as exc:
            self._tell(logging.WARNING, f"KV_VIEW_DNS: {self._host} does not resolve: {exc}")
            return
        self.addresses = found
        self._tell(logging.INFO, f"KV_VIEW_DNS: {self._host} resolves to {', '.join(sorted(found))}")
        if not self._ended.is_set():
            on_found(found)

    def _tell(self, level: int, outcome: str) -> None:
        if outcome != self._told:
            self._told = outcome
            logger.log(level, "%s", outcome)
