"""Drives the replica's conversations under the engine's lock, one step at a time.

Between two steps the lock is free, so that clients' requests and other messages are served while a long message is
applied. Updates are decoded before the first step, outside the lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, cast

from replication.exchange_metrics import ExchangeMetrics, first_unapplied
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest
from replication.replica import Conversation, Replica
from store.clock import Instant
from store.engine import Engine, read_clocks

Result = TypeVar("Result")
Message = Exchange | SnapshotRequest | SnapshotPiece


class ConversationDriver:
    """Runs conversations of ``replica`` to their end, and wakes waiting requests after each step. Thread-safe."""

    def __init__(self, replica: Replica, engine: Engine, metrics: ExchangeMetrics) -> None:
        self._replica = replica
        self._engine = engine
        self._metrics = metrics

    def receive(self, message: Exchange | SnapshotRequest) -> Exchange | SnapshotPiece:
        """Process a peer's request and return the reply. Raises BadMessage."""
        return self._run(message, lambda now: self._replica.receive(message, now))

    def complete(self, address: str, serial: int, reply: Exchange | SnapshotPiece) -> None:
        """Process the reply to request ``serial`` to ``address``. Raises BadMessage, DuplicateAddress."""
        self._run(reply, lambda now: self._replica.complete(address, serial, reply, now))

    def _run(self, message: Message, start: Callable[[Instant], Conversation[Result]]) -> Result:
        updates = message.updates if isinstance(message, Exchange) else []
        store, lock = self._replica.store, self._engine.lock
        with lock:
            now = read_clocks()
            ahead_us = message.time - store.hybrid_clock.read(now) if isinstance(message, Exchange) else None
            # The metric of the replication lag measures one update of the message: the oldest one that is new here.
            oldest = first_unapplied(updates, store.clock)
            conversation = start(now)
            result: list[Result] = []
            try:
                next(conversation)
            except StopIteration as done:
                result.append(done.value)
            finally:
                self._metrics.record_visibility(oldest, store, now)
                self._engine.wake()
            if ahead_us is not None:  # The message was not rejected.
                self._metrics.record_peer_time(message.sender, ahead_us)
            if result:
                return result[0]
        while True:
            with lock:
                try:
                    conversation.send(read_clocks())
                except StopIteration as done:
                    return cast("Result", done.value)
                finally:
                    self._engine.wake()
