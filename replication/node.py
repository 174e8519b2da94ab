"""The node: one Replica under a real server. Threads, time and I/O are here; decisions are not.

Every peer has a thread of its own, so a peer that hangs holds up nobody else; one more thread ticks. All of
them follow one pattern: lock, call the replica, unlock, then act. The lock is the engine's, so that clients'
requests and peers' messages see one state, and no I/O happens under it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from replication.discovery import Discovery
from replication.errors import BadMessage, DuplicateAddress, MessageRejected, NotTrusted, ReplicationError, Unreachable
from replication.exchange_metrics import ExchangeMetrics, first_unapplied
from replication.explain import explain, list_keys
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest, Updates, decode, encode
from replication.peer_client import Endpoints, PeerClientSettings
from replication.rate_limit import LogRateLimiter
from replication.replica import Outgoing, Replica
from replication.status import CounterSamples, missing_updates, recent_updates, replica_status
from replication.transport import Transport
from store.engine import Engine, read_clocks

logger = logging.getLogger("causeway.replication")

CHUNK_UPDATES = 64
"""Updates applied per turn of the lock."""

WARNED_EVERY_S = 600.0

LONGEST_SLEEP_S = 1.0
AWAKE = float("-inf")
"""Of a thread that is about to look what is due, or has been told to."""

TICK_S = 0.1
"""How often the replica is told the time; far below every interval that it reckons with."""


class Node:
    """Replica + engine + threads + transport.

    ``on_fatal`` is called, from a thread of the node, with the reason when this process has to stop.
    ``discovery``: where further seeds come from, None where from nowhere; the replica has to be one that ``discovers``.
    """

    def __init__(
        self,
        replica: Replica,
        engine: Engine,
        transport: PeerClientSettings,
        *,
        on_fatal: Callable[[str], None],
        is_open: bool = True,
        discovery: Discovery | None = None,
    ) -> None:
        self.replica = replica
        self.engine = engine
        self.is_open = is_open
        self._lock = engine.lock
        self._discovery = discovery
        self._endpoints = Endpoints(transport, discovery.address if discovery is not None else "")
        self._on_fatal = on_fatal
        self._stopping = False
        self._warned = LogRateLimiter(WARNED_EVERY_S)
        self._peer_threads: dict[str, _PeerThread] = {}
        self._some_idle = True
        """Whether a thread may sleep that has no write to bring to its peer: the next write may have to wake it."""
        self._ticker = threading.Thread(target=self._tick_for_ever, name="tick", daemon=True)
        self._counts = dict.fromkeys(("exchanges", "exchange_failures", "exchanges_answered", "messages_refused"), 0)
        self._exchange_metrics = ExchangeMetrics()
        self._events_logged = 0
        self._samples = CounterSamples()
        engine.dependencies = self

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start exchanging."""
        with self._lock:
            self.replica.go(read_clocks())
        self._ticker.start()
        if self._discovery is not None:
            self._discovery.start(self.discovered)

    def stop(self, timeout_s: float) -> int:
        """Leave: refuse clients, hand all updates to a member, then end the threads.

        Returns how many updates die with this process because no member could be given them in ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        if self._discovery is not None:
            self._discovery.stop()
        with self._lock:
            self.replica.leave(read_clocks())
            self.engine.wake()
            self._poke()
        while (unreplicated := self._unreplicated()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._stopping = True
        for peer_thread in list(self._peer_threads.values()):
            peer_thread.wakeup.set()
        for peer_thread in list(self._peer_threads.values()):
            peer_thread.thread.join(max(0.0, min(deadline - time.monotonic(), 1.0)))
        return unreplicated

    def _unreplicated(self) -> int:
        with self._lock:
            return self.replica.unreplicated()

    @property
    def id(self) -> str:
        """The replica id, incarnation included."""
        return self.replica.id

    @property
    def ready(self) -> bool:
        """Whether clients are served: in the view and caught up."""
        return self.replica.store.not_serving_reason is None

    @property
    def not_ready_reason(self) -> str:
        """Why clients are not served; empty when they are."""
        return self.replica.store.not_serving_reason or ""

    # -- messages of peers -----------------------------------------------------------------------------

    def exchange(self, body: bytes) -> bytes:
        """Answer a peer's exchange (wire form in and out). Raises BadMessage."""
        with self._noting_bad():
            return self._answer(decode(body, Exchange), len(body))

    def _answer(self, message: Exchange, size: int) -> bytes:
        try:
            updates = message.updates
            with self._lock:
                now = read_clocks()
                self._exchange_metrics.record_peer_time(message.sender, message.time, self.replica.store, now)
                peer = self.replica.take(message, now)
                self.engine.wake()
            if peer is not None:
                self._deliver(updates)
            with self._lock:
                reply = self.replica.answer(peer, message, read_clocks())
                self._counts["exchanges_answered"] += 1
                self._poke()  # The message may be a reason to talk to its sender, or to others, at once.
        except DuplicateAddress as exc:
            self._on_fatal(str(exc))
            raise BadMessage(str(exc)) from exc
        encoded = encode(reply)
        with self._lock:
            self._exchange_metrics.record_message_sizes("answered", len(encoded), size)
        return encoded

    def _deliver(self, updates: Updates) -> int:
        """Apply updates in turns, between which clients' requests come in; return how many were applied."""
        store, applied = self.replica.store, 0
        oldest = first_unapplied(updates, store.clock)
        for start in range(0, len(updates), CHUNK_UPDATES):
            with self._lock:
                applied += self.replica.deliver(updates[start : start + CHUNK_UPDATES], read_clocks())
                if oldest is not None:
                    self._exchange_metrics.record_visibility(oldest, store, read_clocks())
                    oldest = None
                self.engine.wake()
        return applied

    def snapshot(self, body: bytes) -> bytes:
        """Answer a peer's request for a piece of a snapshot (wire form in and out). Raises BadMessage."""
        with self._noting_bad():
            request = decode(body, SnapshotRequest)
            with self._lock:
                piece = self.replica.give(request, read_clocks())
            return encode(piece)

    @contextmanager
    def _noting_bad(self) -> Iterator[None]:
        """Count a message that is none, and log it: not every one, whoever sends it goes on doing so."""
        try:
            yield
        except BadMessage as exc:
            with self._lock:
                self._counts["messages_refused"] += 1
            self._warn_seldom(str(exc)[:80], f"refused a message: {exc}")
            raise

    # -- what the engine needs of peers (store.engine.Dependencies) -----------------------------------

    def wrote(self, update: object) -> None:
        """An update was issued here: peers lack it."""
        if self._some_idle:
            self._some_idle = False
            self._poke()

    def ask(self, past: dict[str, int]) -> int:
        """A request waits for ``past``: exchange at once with whoever may have it."""
        token = self.replica.ask(past)
        self._poke()
        return token

    def ask_again(self, past: dict[str, int]) -> int:
        """The same for a request that may not wait."""
        token = self.replica.ask_again(past)
        self._poke()
        return token

    def unrecoverable(self, past: dict[str, int], token: int) -> dict[str, tuple[int, int]]:
        """What of ``past`` is lost for good."""
        return self.replica.unrecoverable(past, token)

    def acks(self, dot: tuple[str, int]) -> int:
        """How many members have applied ``dot``."""
        return self.replica.acks(dot)

    def acks_required(self, write_concern: str) -> int:
        """How many members ``majority`` or ``all`` are."""
        return self.replica.acks_required(write_concern)

    # -- the view --------------------------------------------------------------------------------------

    def view(self) -> list[str]:
        """Return the addresses of the live members."""
        with self._lock:
            return self.replica.membership.live(read_clocks().mono_s)

    def members(self) -> list[str]:
        """Return the addresses of all members, down ones too."""
        with self._lock:
            return list(self.replica.membership.members())

    def add_member(self, address: str) -> bool:
        """Let ``address`` in; False when it is in already. Raises BadMessage when the register is full."""
        with self._lock:
            added = self.replica.add_replica_from_view(address, read_clocks())
        self._after_change()
        return added

    def remove_member(self, address: str) -> bool:
        """Put ``address`` out; False when it is not in."""
        with self._lock:
            removed = self.replica.remove_replica_from_view(address, read_clocks())
            self.engine.wake()
        self._after_change()
        return removed

    def discovered(self, addresses: Iterable[str]) -> None:
        """Ask whoever is at ``addresses``: all that a lookup of peers has found (replication/discovery.py)."""
        with self._lock:
            self.replica.discovered(addresses, read_clocks())
            self.engine.wake()
        self._after_change()

    # -- threads ---------------------------------------------------------------------------------------

    def _tick_for_ever(self) -> None:
        while not self._stopping:
            try:
                self.check_replica_health()
            except Exception:  # The replica must live on, whatever one tick met; what it met is logged.
                logger.exception("tick failed")
            time.sleep(TICK_S)

    def check_replica_health(self) -> None:
        """Do what time brings: judge who is reachable, finish joining, trim, and talk to whoever is new."""
        with self._lock:
            self.replica.tick(read_clocks())
            self.engine.wake()
        self._after_change()
        self._samples.sample(time.monotonic(), self._sample)

    def _after_change(self) -> None:
        """Start a thread for each new peer, end those of peers that are gone, and log what has happened."""
        with self._lock:
            targets = set() if self._stopping else set(self.replica.targets(read_clocks()))
            for address in targets - self._peer_threads.keys():
                self._peer_threads[address] = _PeerThread(address, self.sync, self._endpoints_for(address))
            for address in self._peer_threads.keys() - targets:
                self._peer_threads.pop(address).ended = True
            # Events are numbered by how many there ever were; the replica keeps the last of them only.
            new = [event for event in self.replica.event_log.events if event.number > self._events_logged]
            self._events_logged = new[-1].number if new else self._events_logged
            self._poke()
        for event in new:
            logger.info("%s %s %s", event.kind, event.subject, event.detail)

    def _poke(self) -> None:
        """Wake each thread that would sleep beyond the time of its next exchange; called under the lock.

        No others: what waits for its time already is not to be disturbed.
        """
        now = read_clocks()
        for peer_thread in self._peer_threads.values():
            sleeps = peer_thread.sleeps_until_s != AWAKE
            if sleeps and self.replica.due_at(peer_thread.address, now) < peer_thread.sleeps_until_s:
                peer_thread.sleeps_until_s = AWAKE
                peer_thread.wakeup.set()

    def sync(self, peer_thread: _PeerThread) -> None:
        """Talk to one peer for as long as it is one: whenever an exchange is due, until the node stops."""
        try:
            while not (peer_thread.ended or self._stopping):
                try:
                    self._exchange_or_sleep(peer_thread)
                except Exception:  # This thread is the only one that talks to this peer: it must live on.
                    logger.exception("turn of %s failed", peer_thread.address)
                    time.sleep(TICK_S)
        finally:
            peer_thread.hang_up()

    def _exchange_or_sleep(self, peer_thread: _PeerThread) -> None:
        transport = peer_thread.line(self._endpoints_for(peer_thread.address))
        with self._lock:
            peer_thread.wakeup.clear()
            now = read_clocks()
            outgoing = self.replica.begin(peer_thread.address, now)
            until_s = now.mono_s
            if outgoing is None:
                due_at = self.replica.due_at(peer_thread.address, now)
                until_s = peer_thread.sleeps_until_s = min(due_at, now.mono_s + LONGEST_SLEEP_S)
                # Where a write waits for its time already, another one calls for nothing sooner.
                self._some_idle |= not self.replica.has_news_for(peer_thread.address)
        if outgoing is not None:
            self._exchange(transport, outgoing)
        elif not peer_thread.wakeup.wait(max(0.0, until_s - now.mono_s)):
            woke_s = time.monotonic()
            with self._lock:
                self.replica.pacing.record_wakeup(woke_s - until_s, woke_s)

    def _endpoints_for(self, address: str) -> tuple[PeerClientSettings, ...]:
        """Return by which names to call ``address``, the right one first (replication/peer_client.py).

        Needs no lock: it looks whether something is in a set that never changes, and in a dict.
        """
        if self._discovery is None or address not in self._discovery.addresses:
            return self._endpoints.address_only
        is_known = address in self.replica.seeds or address in self.replica.membership.table
        return self._endpoints.address_first if is_known else self._endpoints.lookup_only

    def _exchange(self, transport: Transport, outgoing: Outgoing) -> None:
        try:
            began_s = time.monotonic()
            reply = transport.send(outgoing.to, outgoing.message)
            self._finish(outgoing, reply)
            self._warned.reset(outgoing.to)
            with self._lock:
                self._counts["exchanges"] += 1
                self._exchange_metrics.exchange_s.observe(time.monotonic() - began_s)
                self._exchange_metrics.record_message_sizes("asked", transport.sent_bytes, transport.received_bytes)
                self.engine.wake()
        except DuplicateAddress as exc:
            self._on_fatal(str(exc))
        except ReplicationError as exc:
            self._fail(outgoing, exc)
        except Exception as exc:  # This thread is the only one that talks to this peer: it must live on.
            logger.exception("exchange with %s failed", outgoing.to)
            self._fail(outgoing, exc)

    def _finish(self, outgoing: Outgoing, reply: Exchange | SnapshotPiece) -> None:
        """Take in a reply, and note what it shows."""
        if not isinstance(reply, Exchange):
            with self._lock:
                self.replica.finish(outgoing.to, outgoing.serial, reply, read_clocks())
            return
        updates = reply.updates
        with self._lock:
            now = read_clocks()
            self._exchange_metrics.record_peer_time(reply.sender, reply.time, self.replica.store, now)
            peer_thread = self.replica.take_reply(outgoing.to, outgoing.serial, reply, now)
        if peer_thread is None:
            return
        applied = self._deliver(updates)
        with self._lock:
            self.replica.conclude(outgoing.to, outgoing.serial, peer_thread, reply, applied, read_clocks())

    def _fail(self, outgoing: Outgoing, exc: Exception) -> None:
        is_refused = isinstance(exc, NotTrusted | MessageRejected)
        peer_thread = self._peer_threads.get(outgoing.to) if is_refused else None
        has_another_name = peer_thread is not None and peer_thread.try_another()
        with self._lock:
            self._counts["exchange_failures"] += 1
            self._counts["messages_refused"] += isinstance(exc, BadMessage)
            self.replica.failed(outgoing.to, outgoing.serial, read_clocks())
        if is_refused:
            if not has_another_name:
                self._warn_seldom(outgoing.to, f"no exchange: {exc}")
        elif isinstance(exc, BadMessage):
            self._warn_seldom(outgoing.to, f"no exchange with {outgoing.to}: {exc}")
        elif not isinstance(exc, Unreachable):
            logger.warning("exchange with %s: %s", outgoing.to, exc)

    def _warn_seldom(self, about: str, text: str) -> None:
        """Log that a peer and this replica do not take or understand each other; not at every attempt."""
        if self._warned.allow(about, time.monotonic()):
            logger.warning("%s", text)

    # -- for people ------------------------------------------------------------------------------------

    def _counters(self) -> dict[str, int]:
        return {**self.engine.stats(), **self._counts}

    def _sample(self) -> dict[str, int]:
        with self._lock:
            return {**self._counters(), "missing": missing_updates(self.replica)}

    def status(self, *, history: bool = False, recent: int = 0) -> dict[str, Any]:
        """Return what ``/replication/status`` tells (replication/status.py).

        ``history``: the last ten minutes as well, a sample a second; ``recent``: so many of the updates applied last.
        """
        counters = self._counters()
        with self._lock:
            status = replica_status(self.replica, counters, read_clocks())
            if recent:
                status["recent"] = recent_updates(self.replica, recent)
        if history:
            status["history"] = self._samples.history(time.monotonic())
        status["throughput"].update(self._samples.per_second())
        status["open"] = self.is_open
        return status

    def exchange_metrics(self) -> ExchangeMetrics:
        """Return what exchanges showed so far, of the addresses that the register knows."""
        with self._lock:
            return self._exchange_metrics.copy(frozenset(self.replica.membership.table))

    def explain(self, key: str) -> dict[str, Any]:
        """Return what ``/replication/explain/<key>`` tells (replication/explain.py)."""
        with self._lock:
            return explain(self.replica, key, read_clocks())

    def keys(self, prefix: str, after: str, limit: int, *, conflicts: bool) -> list[dict[str, Any]]:
        """Return up to ``limit`` keys for people to look at (replication/explain.py)."""
        with self._lock:
            return list_keys(self.replica, prefix, after, limit, conflicts=conflicts)

    def status_of(self, address: str, query: str = "") -> Mapping[str, Any] | None:
        """Ask the replica at ``address`` for its status; None where it does not answer."""
        peer_thread, endpoints = self._peer_threads.get(address), self._endpoints_for(address)
        transport = Transport(
            peer_thread.settings if peer_thread is not None and peer_thread.endpoints is endpoints else endpoints[0]
        )
        try:
            return transport.status(address, query)
        except Unreachable as exc:
            logger.debug("status of %s: %s", address, exc)
            return None
        finally:
            transport.close()


class _PeerThread:
    """The thread that talks to one peer.

    ``wakeup``: something is due; ``sleeps_until_s``: when it looks by itself, monotonic seconds; ``ended``: the peer is
    one no more. ``endpoints``: names to call it by (replication/peer_client.py); ``settings``: the one in use.
    """

    def __init__(
        self, address: str, talk: Callable[[_PeerThread], None], endpoints: tuple[PeerClientSettings, ...]
    ) -> None:
        self.address = address
        self.wakeup = threading.Event()
        self.sleeps_until_s = AWAKE
        self.ended = False
        self.endpoints = endpoints
        self.settings = endpoints[0]
        self._refused = 0
        self._line: tuple[PeerClientSettings, Transport] | None = None
        self.thread = threading.Thread(target=talk, args=(self,), name=f"exchange-{address}", daemon=True)
        self.thread.start()

    def try_another(self) -> bool:
        """Take the next name, for the peer has refused the one in use. False: that was the last, so the first again."""
        self._refused = (self._refused + 1) % len(self.endpoints)
        self.settings = self.endpoints[self._refused]
        return self._refused > 0

    def line(self, endpoints: tuple[PeerClientSettings, ...]) -> Transport:
        """Return the connection to the peer, who is to be called in ``endpoints`` from now on; for this thread only.

        Where these are others than before, the first of them comes first again, whatever was refused.
        """
        if endpoints is not self.endpoints:
            self.endpoints, self._refused, self.settings = endpoints, 0, endpoints[0]
        if self._line is None or self._line[0] is not self.settings:
            self.hang_up()
            self._line = (self.settings, Transport(self.settings))
        return self._line[1]

    def hang_up(self) -> None:
        """Close the connection."""
        if self._line is not None:
            self._line[1].close()
            self._line = None
