"""Fetches the status of the members: all at once, one thread per member, within a bounded time.

A member that hangs would delay every page by the full timeout. A member that did not respond last time therefore gets
a shorter timeout: if it responds again, it does so within milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from replication.history import Window
from replication.node import Node
from store.address import is_canonical

FETCH_TIMEOUT_S = 0.7
"""Timeout for a member. A page refreshes once a second and must show the state of at most two seconds ago."""

UNRESPONSIVE_TIMEOUT_S = 0.25
"""Timeout for a member that did not respond last time."""

StatusData: TypeAlias = Mapping[str, Any]
"""A status as received, not validated."""


def member_addresses(node: Node) -> list[str]:
    """Return the addresses of all members that ``node`` knows, including its own. Sends no request.

    Texts in the membership table that are no addresses are left out: no page exists for them.
    """
    return sorted(filter(is_canonical, {node.replica.address, *node.members()}))


class StatusFetcher:
    """Fetches the status of members and remembers the last one of each. Thread-safe."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._unresponsive: set[str] = set()
        self._last: dict[int, dict[str, tuple[float, StatusData]]] = {}
        """``recent`` -> address -> (time of the request, status).

        Kept per ``recent``: a page that asks for recent updates must also find them in the last known status.
        """

    def fetch_all(self, node: Node, *, recent: int = 0) -> dict[str, dict[str, Any]]:
        """Return address -> {"status", "age_s", "reachable"} of all members. Every member is asked.

        If a member does not respond, "status" is its last known status, or None if there is none, and "age_s" is the
        age of that status. ``recent``: how many of the last applied updates each status should include.
        """
        addresses = member_addresses(node)
        requested_s = self._monotonic()
        fetched = self.fetch(node, addresses, recent=recent)
        known = self._last.get(recent, {}) | {address: (requested_s, status) for address, status in fetched.items()}
        self._last[recent] = {address: known[address] for address in addresses if address in known}
        results: dict[str, dict[str, Any]] = {}
        for address in addresses:
            at_s, status = known.get(address, (0.0, None))
            age_s = None if status is None else max(0.0, round(self._monotonic() - at_s, 3))
            results[address] = {"status": status, "age_s": age_s, "reachable": address in fetched}
        return results

    def fetch(
        self, node: Node, addresses: Iterable[str], *, history: Window | None = None, recent: int = 0
    ) -> dict[str, StatusData]:
        """Return address -> status, for each of ``addresses`` that is a member and responds in time.

        ``history``, ``recent``: which optional parts to include (see ``NodeInspector.status``).
        """
        query = "&".join([*([f"history={history}"] if history else []), *([f"recent={recent}"] if recent else [])])
        local_address, wanted = node.replica.address, set(addresses)
        fetched: dict[str, StatusData] = {}

        def fetch_one(address: str) -> None:
            status = node.inspector.status_of(address, query)
            if status is None:
                self._unresponsive.add(address)
            else:
                self._unresponsive.discard(address)
                fetched[address] = status

        started_s = time.monotonic()
        threads: list[tuple[threading.Thread, str, float]] = []
        for address in wanted & set(member_addresses(node)) - {local_address}:
            timeout_s = UNRESPONSIVE_TIMEOUT_S if address in self._unresponsive else FETCH_TIMEOUT_S
            thread = threading.Thread(target=fetch_one, args=(address,), daemon=True)
            thread.start()
            threads.append((thread, address, started_s + timeout_s))
        if local_address in wanted:
            fetched[local_address] = node.inspector.status(history=history, recent=recent)
        for thread, address, deadline_s in threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                self._unresponsive.add(address)
        return dict(fetched)


status_fetcher = StatusFetcher()
