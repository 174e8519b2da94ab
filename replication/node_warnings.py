"""What a node warns operators of: that its replica is not ready, and which seeds it never reached.

The reasons come from the replica (recovery.py, unreached.py). Here is when they are logged: once when they begin, then
every ``WARNED_EVERY_S`` for as long as they last.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from replication.discovery import Discovery
from replication.peer_thread import ExchangeContext
from replication.replica import Replica
from replication.unreached import Unreached, unreached_name
from store.engine import read_clocks

logger = logging.getLogger("causeway.replication")

WARNED_EVERY_S: Final = 600.0
"""Time between two log lines about the same peer, or for the same reason."""

NOT_READY: Final = "not ready"
"""The kind of the log lines about this replica's readiness."""

WAITED_FOR_S: Final = 3.0
"""A replica that waits for longer than this for other members says so in the log."""

NEVER_REACHED: Final = "never reached "
"""The begin of the kind of the log lines about one address of ``VIEW``."""

ALONE: Final = 'This replica has met no other one, so it is alone: "majority" and "all" count only itself'


class NodeWarnings:
    """Logs what keeps one replica from being ready or from its peers. For one thread only, but for ``unreached``."""

    def __init__(self, replica: Replica, context: ExchangeContext, discovery: Discovery | None) -> None:
        self._replica = replica
        self._context = context
        self._discovery = discovery
        self._unreached: set[str] = set()
        """The addresses that the last ``warn_of_unreached`` found."""

    def check(self) -> None:
        """Log what there is to say now. Must be called without the engine's lock."""
        self.warn_if_not_ready()
        self.warn_of_unreached()

    def warn_if_not_ready(self) -> None:
        """Log why others keep this replica from being ready."""
        recovery = self._replica.recovery
        # Replicas that start together take a moment to meet.
        waited_s = time.monotonic() - self._replica.membership.seeds.since_s
        waits = recovery.waiting_reason and waited_s > WAITED_FOR_S
        if recovery.refused_reason or waits:
            self._context.warn(NOT_READY, f"not ready: {recovery.not_ready_reason}")
        else:
            self._context.warnings.reset(NOT_READY)

    def warn_of_unreached(self) -> None:
        """Log each address of ``VIEW`` that was never reached, and the end of that."""
        with self._context.lock:
            unreached = self.unreached(read_clocks().mono_s)
            is_alone = not self._replica.membership.table.others
        for address in self._unreached - {each.address for each in unreached}:
            self._context.warnings.reset(f"{NEVER_REACHED}{address}")
            logger.info("%s is not missed any more: it has answered, or was removed", address)
        self._unreached = {each.address for each in unreached}
        alone = f". {ALONE}" if is_alone else ""
        for each in unreached:
            text = f"{each.address} in {each.setting} was never reached: {each.text}{alone}"
            self._context.warn(f"{NEVER_REACHED}{each.address}", text)

    def unreached(self, now_s: float) -> list[Unreached]:
        """Return what was never reached: addresses of ``VIEW``, and the name in ``KV_VIEW_DNS``. Needs the lock."""
        unreached = self._replica.recovery.unreached(now_s)
        if self._discovery is not None:
            name, failure = self._discovery.address, "" if self._discovery.addresses else self._discovery.failure
            after_s = self._replica.settings.silent_after_s
            unreached += unreached_name(name, failure, self._replica.membership.seeds, now_s, after_s=after_s)
        return unreached
