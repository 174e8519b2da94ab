"""Peer threads: one thread per peer, which sends this replica's requests to that peer.

A peer that does not answer delays only its own thread. Every turn of a thread follows one pattern: lock, call the
replica, unlock, then send or sleep.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from replication.driver import ConversationDriver
from replication.errors import (
    BadMessage,
    DuplicateAddress,
    MessageRejected,
    NotTrusted,
    ReplicationError,
    Unreachable,
    failure_of,
    refusal_of,
)
from replication.exchange_metrics import ExchangeMetrics
from replication.messages import Exchange
from replication.peer_client import PeerClientSettings
from replication.progress import PeerProgress
from replication.rate_limit import LogRateLimiter
from replication.replica import Outgoing, Replica
from replication.transport import Transport
from store.engine import read_clocks

logger = logging.getLogger("causeway.replication")

MAX_SLEEP_S = 1.0
"""A thread checks what is due at least this often."""

AWAKE = float("-inf")
"""``PeerThread.sleeps_until_s`` of a thread that is not asleep, or has been woken."""

PAUSE_AFTER_FAULT_S = 0.1
"""Pause after a turn that raised an unexpected exception."""

Endpoint = tuple[PeerClientSettings, ...]
"""The settings to call a peer with: the preferred ones first, then those to try if the peer rejects them."""


class PeerConnection:
    """The connection of one thread to one peer, and the choice between the names to call the peer by.

    ``settings``: the ones in use, one of the settings in ``endpoint``.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.settings = endpoint[0]
        self._index = 0
        self._open: tuple[PeerClientSettings, Transport] | None = None

    def try_next(self) -> bool:
        """Use the next settings, because the peer rejected these; return False after the last: the first come again."""
        self._index = (self._index + 1) % len(self.endpoint)
        self.settings = self.endpoint[self._index]
        return self._index > 0

    def transport(self, endpoint: Endpoint) -> Transport:
        """Return the open connection; ``endpoint``: the settings to choose from now on. For one thread only.

        If they have changed, the first of them is used again, whatever was rejected before.
        """
        if endpoint is not self.endpoint:
            self.endpoint, self._index, self.settings = endpoint, 0, endpoint[0]
        if self._open is None or self._open[0] is not self.settings:
            self.close()
            self._open = (self.settings, Transport(self.settings))
        return self._open[1]

    def close(self) -> None:
        """Close the connection."""
        if self._open is not None:
            self._open[1].close()
            self._open = None


@dataclass(slots=True)
class ExchangeContext:
    """What peer threads share.

    ``endpoint_of``: returns the settings to call an address with. ``on_fatal``: called with the reason when this
    process has to stop. ``warnings``: limits the log lines about each peer. ``counts``: changed under ``lock`` only.
    """

    replica: Replica
    driver: ConversationDriver
    lock: threading.RLock
    metrics: ExchangeMetrics
    endpoint_of: Callable[[str], Endpoint]
    on_fatal: Callable[[str], None]
    warnings: LogRateLimiter
    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(
            ("exchanges", "exchange_failures", "exchanges_answered", "messages_refused"), 0
        )
    )

    def warn(self, about: str, text: str) -> None:
        """Log that a peer and this replica reject each other; not at every attempt."""
        if self.warnings.allow(about, time.monotonic()):
            logger.warning("%s", text)


class PeerThread:
    """The thread that sends requests to the peer at ``address``.

    ``wakeup``: set when a request is due earlier than the thread would wake. ``sleeps_until_s``: when it wakes by
    itself (monotonic seconds), ``AWAKE`` while it does not sleep. ``ended``: the replica does not exchange with the
    address any more. ``traceparent``: the header of the next exchange, because a traced request waits for it; empty if
    none does. Of several such requests it is the first one's: an exchange has one sender and one header.
    """

    def __init__(self, address: str, threads: PeerThreads, context: ExchangeContext) -> None:
        self.address = address
        self.connection = PeerConnection(context.endpoint_of(address))
        self.wakeup = threading.Event()
        self.sleeps_until_s = AWAKE
        self.ended = False
        self.traceparent = ""
        self._threads = threads
        self._context = context
        self._thread = threading.Thread(target=self.sync, name=f"exchange-{address}", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread, for at most ``timeout_s`` seconds."""
        self._thread.join(timeout_s)

    def sync(self) -> None:
        """Send a request whenever one is due, until the thread is to end."""
        try:
            while not self.ended:
                try:
                    self.turn()
                except Exception:  # No other thread sends to this peer, so this one must continue.
                    logger.exception("unexpected error in the thread for %s", self.address)
                    time.sleep(PAUSE_AFTER_FAULT_S)
        finally:
            self.connection.close()

    def turn(self) -> None:
        """Send the request that is due, or sleep until one is."""
        context, replica = self._context, self._context.replica
        transport = self.connection.transport(context.endpoint_of(self.address))
        with context.lock:
            self.wakeup.clear()
            now = read_clocks()
            outgoing = replica.begin(self.address, now)
            until_s, traceparent = now.mono_s, ""
            if outgoing is not None and isinstance(outgoing.message, Exchange):
                traceparent, self.traceparent = self.traceparent, ""
            if outgoing is None:
                until_s = self.sleeps_until_s = min(replica.due_at(self.address, now), now.mono_s + MAX_SLEEP_S)
                self._threads.note_sleep(has_news=replica.has_news_for(self.address))
        if outgoing is not None:
            self._exchange(transport, outgoing, traceparent)
        elif not self.wakeup.wait(max(0.0, until_s - now.mono_s)):
            # The thread woke by itself: how late shows how busy this process is.
            woke_s = time.monotonic()
            with context.lock:
                replica.pacing.record_wakeup(woke_s - until_s, woke_s)

    def _exchange(self, transport: Transport, outgoing: Outgoing, traceparent: str = "") -> None:
        context = self._context
        try:
            began_s = time.monotonic()
            reply = transport.send(outgoing.to, outgoing.message, traceparent)
            context.driver.complete(outgoing.to, outgoing.serial, reply)
            context.warnings.reset(outgoing.to)
            with context.lock:
                context.counts["exchanges"] += 1
                context.metrics.exchange_s.observe(time.monotonic() - began_s)
                context.metrics.record_message_sizes("asked", transport.sent_bytes, transport.received_bytes)
        except DuplicateAddress as exc:
            context.on_fatal(str(exc))
        except ReplicationError as exc:
            self._fail(outgoing, exc)
        except Exception as exc:  # No other thread sends to this peer, so this one must continue.
            logger.exception("exchange with %s failed", outgoing.to)
            self._fail(outgoing, exc)

    def _fail(self, outgoing: Outgoing, exc: Exception) -> None:
        context = self._context
        is_rejected = isinstance(exc, NotTrusted | MessageRejected)
        has_another_name = is_rejected and self.connection.try_next()
        with context.lock:
            context.counts["exchange_failures"] += 1
            context.counts["messages_refused"] += isinstance(exc, BadMessage)
            refusal = None if has_another_name else refusal_of(exc)
            context.replica.failed(outgoing.to, outgoing.serial, read_clocks(), refusal, failure_of(exc))
        if is_rejected:
            if not has_another_name:
                context.warn(outgoing.to, f"no exchange: {exc}")
        elif isinstance(exc, BadMessage):
            context.warn(outgoing.to, f"no exchange with {outgoing.to}: {exc}")
        elif not isinstance(exc, Unreachable):
            logger.warning("exchange with %s: %s", outgoing.to, exc)


class PeerThreads:
    """The peer threads of one replica, by address. All methods but ``stop`` are called under the lock.

    ``_may_sleep_without_news``: whether a thread may be asleep that has no update to send to its peer. Only then may
    the next write have to wake a thread; this saves a look at every thread per write.
    """

    def __init__(self, context: ExchangeContext) -> None:
        self._context = context
        self._by_address: dict[str, PeerThread] = {}
        self._may_sleep_without_news = True
        self._stopping = False

    def find(self, address: str) -> PeerThread | None:
        """Return the thread for ``address``, None if there is none."""
        return self._by_address.get(address)

    def follow(self, targets: Iterable[str]) -> None:
        """Start a thread for each new target. End the threads whose address is not a target any more."""
        wanted = set() if self._stopping else set(targets)
        for address in sorted(wanted - self._by_address.keys()):
            thread = self._by_address[address] = PeerThread(address, self, self._context)
            thread.start()
        for address in self._by_address.keys() - wanted:
            thread = self._by_address.pop(address)
            thread.ended = True
            thread.wakeup.set()

    def wake_due(self, peers: Iterable[PeerProgress] | None = None) -> None:
        """Wake each thread that would sleep past its next request. ``peers``: those to look at, None for all."""
        threads: Iterable[PeerThread | None] = self._by_address.values()
        if peers is not None:
            threads = [self._by_address.get(peer.address) for peer in peers]
        now = read_clocks()
        for thread in threads:
            is_asleep = thread is not None and thread.sleeps_until_s != AWAKE
            if thread and is_asleep and self._context.replica.due_at(thread.address, now) < thread.sleeps_until_s:
                thread.sleeps_until_s = AWAKE
                thread.wakeup.set()

    def wake_for_write(self) -> None:
        """Wake the threads that have to send the update just issued. Costs nothing if no thread can be asleep."""
        if self._may_sleep_without_news:
            self._may_sleep_without_news = False
            self.wake_due()

    def trace(self, peers: Iterable[PeerProgress], traceparent: str) -> None:
        """Let the next exchange with each of ``peers`` carry ``traceparent``, unless it carries another one."""
        for peer in peers:
            thread = self._by_address.get(peer.address)
            if thread is not None and not thread.traceparent:
                thread.traceparent = traceparent

    def note_sleep(self, *, has_news: bool) -> None:
        """Note that a thread goes to sleep. With news it sleeps until the news is due, which no write makes earlier."""
        if not has_news:
            self._may_sleep_without_news = True

    def stop(self, deadline_s: float) -> None:
        """End all threads, and wait for them until ``deadline_s`` (monotonic seconds), at most a second for each."""
        with self._context.lock:
            self._stopping = True
            threads = list(self._by_address.values())
            self.follow(())
        for thread in threads:
            thread.join(max(0.0, min(deadline_s - time.monotonic(), 1.0)))
