"""The node: one Replica under a real server. Threads, time and I/O are here; decisions are not.

Every peer has a thread of its own, so a peer that hangs holds up nobody else; one more thread ticks. All of
them follow one pattern: lock, call the replica, unlock, then act. The lock is the engine's, so that clients'
requests and peers' messages see one state, and no I/O happens under it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from replication.calling import CallSettings
from replication.errors import AddressTaken, BadMessage, NotTrusted, ReplicationError, Unreachable
from replication.explain import explain, list_keys
from replication.measures import Measures, first_new
from replication.messages import Exchange, SnapshotPiece, SnapshotRequest, decode, encode
from replication.replica import Outgoing, Replica
from replication.status import Rates, describe, lacking, latest
from replication.transport import Transport
from store.engine import Engine, read_clocks

logger = logging.getLogger("causeway.replication")

CHUNK_UPDATES = 64
"""Updates applied per turn of the lock: clients' requests come in between."""

DISTRUST_LOGGED_EVERY_S = 600.0

TICK_S = 0.1
"""How often the replica is told the time; far below every interval that it reckons with."""


class Node:
    """Replica + engine + threads + transport.

    ``on_fatal`` is called, from a thread of the node, with the reason when this process has to stop.
    """

    def __init__(
        self,
        replica: Replica,
        engine: Engine,
        transport: CallSettings,
        *,
        on_fatal: Callable[[str], None],
        is_open: bool = True,
    ) -> None:
        self.replica = replica
        self.engine = engine
        self.is_open = is_open
        self._lock = engine.lock
        self._transport_settings = transport
        self._on_fatal = on_fatal
        self._stopping = False
        self._distrusted: dict[str, float] = {}
        self._talkers: dict[str, _Talker] = {}
        self._ticker = threading.Thread(target=self._tick_for_ever, name="tick", daemon=True)
        self._counts = dict.fromkeys(("exchanges", "exchange_failures", "exchanges_answered", "messages_refused"), 0)
        self._measures = Measures()
        self._events_logged = 0
        self._rates = Rates()
        self._seen: dict[str, tuple[float, Mapping[str, Any]]] = {}
        engine.dependencies = self

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start exchanging."""
        self._ticker.start()

    def stop(self, timeout_s: float) -> int:
        """Leave: refuse clients, hand all updates to a member, then end the threads.

        Returns how many updates die with this process because no member could be given them in ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        with self._lock:
            self.replica.leave(read_clocks())
            self.engine.wake()
        self._poke(self._talkers.values())
        while (unshared := self._unshared()) and time.monotonic() < deadline:
            time.sleep(0.02)
        self._stopping = True
        self._poke(self._talkers.values())
        for talker in list(self._talkers.values()):
            talker.thread.join(max(0.0, min(deadline - time.monotonic(), 1.0)))
        return unshared

    def _unshared(self) -> int:
        with self._lock:
            return self.replica.unshared()

    @property
    def id(self) -> str:
        """The replica id, incarnation included."""
        return self.replica.id

    @property
    def ready(self) -> bool:
        """Whether clients are served: in the view and caught up."""
        return self.replica.store.closed is None

    @property
    def not_ready_reason(self) -> str:
        """Why clients are not served; empty when they are."""
        return self.replica.store.closed or ""

    # -- messages of peers -----------------------------------------------------------------------------

    def exchange(self, body: bytes) -> bytes:
        """Answer a peer's exchange (wire form in and out). Raises BadMessage."""
        message = decode(body, Exchange)
        try:
            with self._lock:
                now = read_clocks()
                self._measures.heard(message.sender, message.time, self.replica.store, now)
                peer = self.replica.take(message, now)
                self.engine.wake()
            if peer is not None:
                self._deliver(message)
            with self._lock:
                reply = self.replica.answer(peer, message, read_clocks())
                self._counts["exchanges_answered"] += 1
        except AddressTaken as exc:
            self._on_fatal(str(exc))
            raise BadMessage(str(exc)) from exc
        encoded = encode(reply)
        with self._lock:
            self._measures.sent_and_received("answered", len(encoded), len(body))
        return encoded

    def _deliver(self, message: Exchange) -> None:
        store = self.replica.store
        oldest = first_new(message.updates, store.clock)
        for start in range(0, len(message.updates), CHUNK_UPDATES):
            with self._lock:
                self.replica.deliver(message.updates[start : start + CHUNK_UPDATES], read_clocks())
                if oldest is not None:
                    self._measures.became_visible(oldest, store, read_clocks())
                    oldest = None
                self.engine.wake()

    def snapshot(self, body: bytes) -> bytes:
        """Answer a peer's request for a piece of a snapshot (wire form in and out). Raises BadMessage."""
        request = decode(body, SnapshotRequest)
        with self._lock:
            piece = self.replica.give(request, read_clocks())
        return encode(piece)

    # -- what the engine needs of peers (store.engine.Dependencies) -----------------------------------

    def wrote(self, update: object) -> None:
        """An update was issued here: peers lack it."""
        self._poke(self._talkers.values())

    def ask(self, past: dict[str, int]) -> int:
        """A request waits for ``past``: exchange at once with whoever may have it."""
        token = self.replica.ask(past)
        self._poke(self._talkers.values())
        return token

    def ask_again(self, past: dict[str, int]) -> int:
        """The same for a request that may not wait."""
        token = self.replica.ask_again(past)
        self._poke(self._talkers.values())
        return token

    def lost(self, past: dict[str, int], token: int) -> dict[str, tuple[int, int]]:
        """What of ``past`` is lost for good."""
        return self.replica.lost(past, token)

    def acks(self, dot: tuple[str, int]) -> int:
        """How many members have applied ``dot``."""
        return self.replica.acks(dot)

    def acks_wanted(self, write_concern: str) -> int:
        """How many members ``majority`` or ``all`` are."""
        return self.replica.acks_wanted(write_concern)

    # -- the view --------------------------------------------------------------------------------------

    def view(self) -> list[str]:
        """Return the addresses of the live members."""
        with self._lock:
            return self.replica.view.live(read_clocks().mono_s)

    def members(self) -> list[str]:
        """Return the addresses of all members, down ones too."""
        with self._lock:
            return list(self.replica.view.members())

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
        self._rates.sample(time.monotonic(), self._sample)

    def _after_change(self) -> None:
        """Start a thread for each new peer, end those of peers that are gone, and log what has happened."""
        with self._lock:
            targets = set() if self._stopping else set(self.replica.targets(read_clocks()))
            for address in targets - self._talkers.keys():
                self._talkers[address] = _Talker(address, self.sync)
            for address in self._talkers.keys() - targets:
                self._talkers.pop(address).ended = True
            # Events are numbered by how many there ever were; the replica keeps the last of them only.
            new = [event for event in self.replica.events if event.number > self._events_logged]
            self._events_logged = new[-1].number if new else self._events_logged
        self._poke(self._talkers.values())
        for event in new:
            logger.info("%s %s %s", event.kind, event.subject, event.detail)

    def _poke(self, talkers: Iterable[_Talker]) -> None:
        for talker in list(talkers):
            if not talker.wakeup.is_set():
                talker.wakeup.set()

    def sync(self, talker: _Talker) -> None:
        """Talk to one peer for as long as it is one: whenever an exchange is due, until the node stops."""
        transport = Transport(self._transport_settings)
        try:
            while not (talker.ended or self._stopping):
                talker.wakeup.clear()
                now = read_clocks()
                with self._lock:
                    outgoing = self.replica.begin(talker.address, now)
                    due_at = self.replica.due_at(talker.address, now)
                if outgoing is not None:
                    self._exchange(transport, outgoing)
                else:
                    talker.wakeup.wait(min(1.0, max(0.0, due_at - now.mono_s)))
        finally:
            transport.close()

    def _exchange(self, transport: Transport, outgoing: Outgoing) -> None:
        try:
            began_s = time.monotonic()
            reply = transport.send(outgoing.to, outgoing.message)
            with self._lock:
                self._finish(outgoing, reply)
                if self._distrusted:
                    self._distrusted.pop(outgoing.to, None)
                self._counts["exchanges"] += 1
                self._measures.exchange_s.observe(time.monotonic() - began_s)
                self._measures.sent_and_received("asked", transport.sent_bytes, transport.received_bytes)
                self.engine.wake()
        except AddressTaken as exc:
            self._on_fatal(str(exc))
        except ReplicationError as exc:
            self._fail(outgoing, exc)
        except Exception as exc:  # This thread is the only one that talks to this peer: it must live on.
            logger.exception("exchange with %s failed", outgoing.to)
            self._fail(outgoing, exc)

    def _finish(self, outgoing: Outgoing, reply: Exchange | SnapshotPiece) -> None:
        """Take in a reply, under the lock, and note what it shows."""
        now, store, oldest = read_clocks(), self.replica.store, None
        if isinstance(reply, Exchange):
            self._measures.heard(reply.sender, reply.time, store, now)
            oldest = first_new(reply.updates, store.clock)
        self.replica.finish(outgoing.to, outgoing.serial, reply, now)
        self._measures.became_visible(oldest, store, now)

    def _fail(self, outgoing: Outgoing, exc: Exception) -> None:
        if isinstance(exc, NotTrusted):
            self._distrust(outgoing.to, str(exc))
        elif not isinstance(exc, Unreachable):
            logger.warning("exchange with %s: %s", outgoing.to, exc)
        with self._lock:
            self._counts["exchange_failures"] += 1
            self.replica.failed(outgoing.to, outgoing.serial, read_clocks())

    def _distrust(self, address: str, reason: str) -> None:
        """Log that a peer and this replica do not take each other for members of one cluster; not at every attempt."""
        now_s, told_s = time.monotonic(), self._distrusted.get(address)
        if told_s is None or now_s - told_s > DISTRUST_LOGGED_EVERY_S:
            self._distrusted[address] = now_s
            logger.warning("no exchange: %s", reason)

    # -- for people ------------------------------------------------------------------------------------

    def _counters(self) -> dict[str, int]:
        return {**self.engine.stats(), **self._counts}

    def _sample(self) -> dict[str, int]:
        with self._lock:
            return {**self._counters(), "lacking": lacking(self.replica)}

    def status(self, *, history: bool = False, recent: int = 0) -> dict[str, Any]:
        """Return what ``/replication/status`` tells (replication/status.py).

        ``history``: the last ten minutes as well, a sample a second; ``recent``: so many of the updates applied last.
        """
        counters = self._counters()
        with self._lock:
            status = describe(self.replica, counters, read_clocks())
            if recent:
                status["recent"] = latest(self.replica, recent)
        if history:
            status["history"] = self._rates.history(time.monotonic())
        status["throughput"].update(self._rates.per_second())
        status["open"] = self.is_open
        return status

    def measures(self) -> Measures:
        """Return what exchanges showed so far, of the addresses that the register knows."""
        with self._lock:
            return self._measures.copy(frozenset(self.replica.view.register))

    def explain(self, key: str) -> dict[str, Any]:
        """Return what ``/replication/explain/<key>`` tells (replication/explain.py)."""
        with self._lock:
            return explain(self.replica, key, read_clocks())

    def keys(self, prefix: str, after: str, limit: int, *, conflicts: bool) -> list[dict[str, Any]]:
        """Return up to ``limit`` keys for people to look at (replication/explain.py)."""
        with self._lock:
            return list_keys(self.replica, prefix, after, limit, conflicts=conflicts)

    def statuses(
        self, addresses: Iterable[str], timeout_s: float, *, history: bool = False, recent: int = 0
    ) -> dict[str, Mapping[str, Any]]:
        """Return address -> its status with more, of those of ``addresses`` that belong and answer in time."""
        query = "&".join([*(["history=true"] if history else []), *([f"recent={recent}"] if recent else [])])
        own, found = self.replica.address, dict[str, Mapping[str, Any]]()
        asked = set(addresses)

        def ask(address: str) -> None:
            told = self._status_of(address, query)
            if told is not None:
                found[address] = told

        askers = [
            threading.Thread(target=ask, args=(address,), daemon=True)
            for address in asked & set(self.members()) - {own}
        ]
        began_s = time.monotonic()
        for asker in askers:
            asker.start()
        if own in asked:
            found[own] = self.status(history=history, recent=recent)
        for asker in askers:
            asker.join(max(0.0, began_s + timeout_s - time.monotonic()))
        return dict(found)

    def cluster(self, timeout_s: float = 1.0) -> dict[str, dict[str, Any]]:
        """Return address -> {"status", "age_s", "reachable"} of all members, each asked now, for at most ``timeout_s``.

        Of one that does not answer the last known status is told, with its age; ``status`` is None where none is known.
        """
        own = self.status()
        self._seen[self.replica.address] = (time.monotonic(), own)
        asked = [address for address in self.members() if address != self.replica.address]
        askers = [
            threading.Thread(target=self._ask_status, args=(address, timeout_s), daemon=True) for address in asked
        ]
        began_s = time.monotonic()
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join(max(0.0, began_s + timeout_s - time.monotonic()))
        cluster: dict[str, dict[str, Any]] = {}
        for address in sorted({self.replica.address, *asked}):
            at_s, status = self._seen.get(address, (0.0, None))
            reachable = (status is not None and at_s >= began_s) or address == self.replica.address
            age_s = None if status is None else max(0.0, round(time.monotonic() - at_s, 3))
            cluster[address] = {"status": status, "age_s": age_s, "reachable": reachable}
        return cluster

    def _ask_status(self, address: str, timeout_s: float) -> None:
        asked_s, told = time.monotonic(), self._status_of(address)
        if told is not None:
            self._seen[address] = (asked_s, told)

    def _status_of(self, address: str, query: str = "") -> Mapping[str, Any] | None:
        """Return the status of the replica at ``address``; None where it does not answer."""
        transport = Transport(self._transport_settings)
        try:
            return transport.status(address, query)
        except Unreachable as exc:
            logger.debug("status of %s: %s", address, exc)
            return None
        finally:
            transport.close()


class _Talker:
    """The thread that talks to one peer. ``wakeup``: something may be due; ``ended``: the peer is one no more."""

    def __init__(self, address: str, talk: Callable[[_Talker], None]) -> None:
        self.address = address
        self.wakeup = threading.Event()
        self.ended = False
        self.thread = threading.Thread(target=talk, args=(self,), name=f"exchange-{address}", daemon=True)
        self.thread.start()
