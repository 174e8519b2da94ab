"""The members of the cluster, asked for their status: all at once, each by a thread, and for a bounded time.

Who hangs would make every page as late as the bound. So one that did not answer the last time is waited for briefly
from then on: where it answers again at all, it does so in milliseconds.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from replication.node import Node

ASK_TIMEOUT_S = 0.7
"""How long members are waited for. A page asks once a second and has to be right within two."""

SILENT_TIMEOUT_S = 0.25
"""The same for one that did not answer when it was last asked."""

Told: TypeAlias = Mapping[str, Any]
"""A status, as its replica tells it."""


def addresses_of(node: Node) -> list[str]:
    """Return the addresses of all members that ``node`` knows, its own among them; nobody is asked."""
    return sorted({node.replica.address, *node.members()})


class Members:
    """Asks the members that a node knows, and remembers what each said last. Threads share it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._silent: set[str] = set()
        self._last: dict[int, dict[str, tuple[float, Told]]] = {}
        """``recent`` -> address -> when it was asked, and what it answered: a page that asks for more has to find more
        in the last answer, too."""

    def cluster(self, node: Node, *, recent: int = 0) -> dict[str, dict[str, Any]]:
        """Return address -> {"status", "age_s", "reachable"} of all members, each asked now.

        Of one that does not answer the last known status is told, with its age; ``status`` is None where none is known.
        ``recent``: ask for so many of the updates applied last as well.
        """
        addresses = addresses_of(node)
        asked_s = self._clock()
        found = self.statuses(node, addresses, recent=recent)
        known = self._last.get(recent, {}) | {address: (asked_s, told) for address, told in found.items()}
        self._last[recent] = {address: known[address] for address in addresses if address in known}
        cluster: dict[str, dict[str, Any]] = {}
        for address in addresses:
            at_s, told = known.get(address, (0.0, None))
            age_s = None if told is None else max(0.0, round(self._clock() - at_s, 3))
            cluster[address] = {"status": told, "age_s": age_s, "reachable": address in found}
        return cluster

    def statuses(
        self, node: Node, addresses: Iterable[str], *, history: bool = False, recent: int = 0
    ) -> dict[str, Told]:
        """Return address -> its status, of those of ``addresses`` that belong and answer in time.

        ``history``, ``recent``: ask for more (see ``Node.status``).
        """
        query = "&".join([*(["history=true"] if history else []), *([f"recent={recent}"] if recent else [])])
        own, asked = node.replica.address, set(addresses)
        found: dict[str, Told] = {}

        def ask(address: str) -> None:
            told = node.status_of(address, query)
            if told is None:
                self._silent.add(address)
            else:
                self._silent.discard(address)
                found[address] = told

        began_s = time.monotonic()
        askers: list[tuple[threading.Thread, str, float]] = []
        for address in asked & set(node.members()) - {own}:
            patience_s = SILENT_TIMEOUT_S if address in self._silent else ASK_TIMEOUT_S
            thread = threading.Thread(target=ask, args=(address,), daemon=True)
            thread.start()
            askers.append((thread, address, began_s + patience_s))
        if own in asked:
            found[own] = node.status(history=history, recent=recent)
        for thread, address, deadline_s in askers:
            thread.join(max(0.0, deadline_s - time.monotonic()))
            if thread.is_alive():
                self._silent.add(address)
        return dict(found)


members = Members()
