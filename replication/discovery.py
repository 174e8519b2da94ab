"""Discovery of peers by DNS. ``KV_VIEW_DNS=name:port`` is resolved repeatedly; each address found becomes a seed.

A discovered address is an address to contact (seeds.py), not a member. A name service drops a replica that does not
answer for a moment, and keeps one that has died. So no replica leaves the view because its address disappears from
DNS: replicas leave when they drain, or by DELETE /view.

``getaddrinfo`` blocks, possibly for many seconds when no name server answers. So lookups run one at a time in a thread
of their own that takes no lock during a lookup. A slow name server delays neither clients nor exchanges.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from typing import Final

from store.address import join_address, parse_address, split_address

logger = logging.getLogger("causeway.replication")

FIRST_INTERVAL_S: Final = 0.2
"""Longest pause between lookups until the first one succeeds, because a joining replica waits for that."""

MAX_ADDRESSES: Final = 256
"""Addresses used of one lookup at most, because each address that does not answer occupies a thread."""

OnAddresses = Callable[[frozenset[str]], None]


class LookupFailed(Exception):
    """The name did not resolve. The text is the reason, for the log."""


def resolve(name: str, port: int) -> frozenset[str]:
    """Return the addresses (``host:port``, IPv4 and IPv6) of ``name``. Blocks. Raises ``LookupFailed``.

    Returns at least 1 and at most ``MAX_ADDRESSES``: the first ones in sorted order, so that all replicas use the same.
    """
    try:
        records = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        # Skip addresses with a zone (fe80::1%eth0): a zone is meaningful on one machine only.
        hosts = {host for record in records if "%" not in (host := str(record[4][0]))}
    except (OSError, UnicodeError) as exc:
        raise LookupFailed(getattr(exc, "strerror", None) or str(exc)) from exc
    if not hosts:
        raise LookupFailed("no address that other machines can use")
    addresses = sorted(parse_address(join_address(host, port)) for host in hosts)
    return frozenset(addresses[:MAX_ADDRESSES])


class Discovery:
    """Resolves ``address`` (``name:port``) every ``interval_s`` seconds, in a thread of its own."""

    def __init__(
        self, address: str, interval_s: float, *, lookup: Callable[[str, int], frozenset[str]] = resolve
    ) -> None:
        self.address = address
        self.addresses: frozenset[str] = frozenset()
        """Result of the last successful lookup; empty before it. Replaced as a whole, so any thread may read it."""
        self.failure = ""
        """Why the last lookup failed; empty if it did not, or there was none yet."""
        self._host, self._port = split_address(address)
        self._interval_s = interval_s
        self._lookup = lookup
        self._stopped = threading.Event()
        self._last_logged = ""

    def start(self, on_addresses: OnAddresses) -> None:
        """Start the thread. It calls ``on_addresses`` with the result of each successful lookup."""
        threading.Thread(target=self._run, args=(on_addresses,), name="discovery", daemon=True).start()

    def stop(self) -> None:
        """Stop without waiting for a lookup in progress, which may block for long. Its result is not reported."""
        self._stopped.set()

    def _run(self, on_addresses: OnAddresses) -> None:
        while not self._stopped.is_set():
            try:
                self.look_up(on_addresses)
            except Exception:  # This thread must survive: no other one finds replicas that start later.
                logger.exception("lookup of %s failed", self.address)
            pause_s = self._interval_s if self.addresses else min(self._interval_s, FIRST_INTERVAL_S)
            self._stopped.wait(pause_s)

    def look_up(self, on_addresses: OnAddresses) -> None:
        """Resolve the name once and report its addresses. If that fails, keep the previous addresses.

        The outcome is logged if it differs from that of the previous lookup.
        """
        try:
            addresses = self._lookup(self._host, self._port)
        except LookupFailed as exc:
            self.failure = str(exc)
            self._log_change(logging.WARNING, f"KV_VIEW_DNS: {self._host} does not resolve: {exc}")
            return
        self.addresses, self.failure = addresses, ""
        self._log_change(logging.INFO, f"KV_VIEW_DNS: {self._host} resolves to {', '.join(sorted(addresses))}")
        if not self._stopped.is_set():
            on_addresses(addresses)

    def _log_change(self, level: int, outcome: str) -> None:
        if outcome != self._last_logged:
            self._last_logged = outcome
            logger.log(level, "%s", outcome)
