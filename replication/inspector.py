"""What a node shows to operators: status, metrics, explanations.

The inspector reads the replica under the engine's lock and changes none of its data. (``exchange_metrics`` drops the
metrics of addresses that are no longer in the membership table.) Everything describes this one replica, except for
``status_of``, which requests the status of another replica from it.
"""

from __future__ import annotations

import heapq
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from replication.errors import Unreachable
from replication.exchange_metrics import ExchangeMetrics
from replication.explain import (
    MAX_VALUES_BYTES,
    KeyOrder,
    count_keys,
    explain,
    list_keys,
    listed_keys,
    rank_keys,
)
from replication.explain_words import note_on
from replication.history import CounterSamples, Window
from replication.peer_thread import ExchangeContext, PeerThreads
from replication.rejected_senders import RejectedSender
from replication.replica import Replica
from replication.status import missing_updates, recent_updates, replica_status
from replication.transport import Transport
from replication.unreached import Unreached
from store.engine import Engine, read_clocks

MAX_RANKED: Final = 100_000
"""Keys that one list by size or age looks at."""

RANKED_AT_ONCE: Final = 500
"""Keys that it looks at before it releases the lock."""

logger = logging.getLogger("causeway.replication")


class NodeInspector:
    """Reads one node, and fetches the status of its peers. Thread-safe.

    ``unreached``: returns the addresses that were never reached; called under the lock. ``rejected``: returns the
    senders whose messages this replica has rejected.
    ``is_open``: whether the replica accepts requests without credentials; the status says so.
    """

    def __init__(
        self,
        replica: Replica,
        engine: Engine,
        context: ExchangeContext,
        threads: PeerThreads,
        unreached: Callable[[float], list[Unreached]],
        rejected: Callable[[], list[RejectedSender]],
        *,
        is_open: bool,
    ) -> None:
        self._replica = replica
        self._engine = engine
        self._context = context
        self._threads = threads
        self._unreached = unreached
        self._rejected = rejected
        self._is_open = is_open
        self._lock = context.lock
        self._samples = CounterSamples()
        self._ranking = threading.Lock()

    def sample(self) -> None:
        """Record the counters for the history, once a second. The node calls it several times a second."""
        self._samples.sample(time.monotonic(), self._sample)

    def _counters(self) -> dict[str, int]:
        return {**self._engine.stats(), **self._context.counts}

    def _sample(self) -> dict[str, int]:
        with self._lock:
            return {**self._counters(), "missing": missing_updates(self._replica)}

    def status(self, *, history: Window | None = None, recent: int = 0) -> dict[str, Any]:
        """Return the content of ``/replication/status`` (replication/status.py).

        ``history``: include the points of this window. ``recent``: include this many of the updates that were applied
        last.
        """
        counters = self._counters()
        with self._lock:
            now = read_clocks()
            status = replica_status(self._replica, counters, now, self._unreached(now.mono_s), self._rejected())
            if recent:
                status["recent"] = recent_updates(self._replica, recent)
        if history:
            status["history"] = self._samples.history(time.monotonic(), history)
        status["throughput"].update(self._samples.per_second())
        status["open"] = self._is_open
        return status

    def exchange_metrics(self) -> ExchangeMetrics:
        """Return a copy of the metrics of exchanges, for the addresses in the membership table."""
        with self._lock:
            return self._context.metrics.copy(frozenset(self._replica.membership.table.entries))

    def explain(self, key: str, max_values_bytes: int = MAX_VALUES_BYTES) -> dict[str, Any]:
        """Return the content of ``/replication/explain/<key>`` (replication/explain.py).

        ``note``: what became of the key, in words.
        """
        with self._lock:
            explanation = explain(self._replica, key, read_clocks(), max_values_bytes=max_values_bytes)
        return {**explanation, "note": note_on(explanation)}

    def keys(self, prefix: str, after: str, limit: int, *, conflicts: bool, before: str = "") -> list[dict[str, Any]]:
        """Return up to ``limit`` keys for the dashboard (replication/explain.py)."""
        with self._lock:
            return list_keys(self._replica, prefix, after, limit, conflicts=conflicts, before=before)

    def count_keys(self, prefix: str, *, conflicts: bool) -> int:
        """Return how many keys start with ``prefix``."""
        with self._lock:
            return count_keys(self._replica, prefix, conflicts=conflicts)

    def ranked_keys(
        self, prefix: str, order: KeyOrder, limit: int, *, conflicts: bool
    ) -> tuple[list[dict[str, Any]], bool]:
        """Return the first ``limit`` keys in ``order``, and whether all keys were looked at: at most ``MAX_RANKED``.

        One search runs at a time. It releases the lock after every ``RANKED_AT_ONCE`` keys, so it delays no request.
        """
        with self._ranking:
            best: list[tuple[int, str]] = []
            after, is_whole = "", False
            for _ in range(MAX_RANKED // RANKED_AT_ONCE):
                with self._lock:
                    ranks, after = rank_keys(self._replica, prefix, after, RANKED_AT_ONCE, order, conflicts=conflicts)
                best = heapq.nlargest(limit, [*best, *ranks])
                if not after:
                    is_whole = True
                    break
            with self._lock:
                return listed_keys(self._replica, [key for _, key in best]), is_whole

    def status_of(self, address: str, query: str = "") -> Mapping[str, Any] | None:
        """Fetch the status of the replica at ``address``; return None if it does not answer."""
        endpoint = self._context.endpoint_of(address)
        with self._lock:
            thread = self._threads.find(address)
        in_use = thread is not None and thread.connection.endpoint is endpoint
        transport = Transport(thread.connection.settings if thread is not None and in_use else endpoint[0])
        try:
            return transport.status(address, query)
        except Unreachable as exc:
            logger.debug("status of %s: %s", address, exc)
            return None
        finally:
            transport.close()
