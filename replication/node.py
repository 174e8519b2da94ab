"""The node: one replica as part of a server. Threads, time and I/O are here; decisions are in the replica.

All code that touches the replica follows one pattern: lock, call the replica, unlock, then act. The lock is the
engine's, so clients' requests and peers' messages see one state, and no I/O happens under it.

The threads: one per peer (peer_thread.py), one that calls ``check_replica_health`` several times a second, one for
lookups of peers (discovery.py), and the server's own threads for requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from replication.discovery import Discovery
from replication.driver import ConversationDriver
from replication.errors import BadMessage, TableFull
from replication.exchange_metrics import ExchangeMetrics
from replication.inspector import NodeInspector
from replication.messages import Exchange, SnapshotRequest, decode, encode
from replication.node_warnings import WARNED_EVERY_S, NodeWarnings
from replication.peer_client import Endpoints, PeerClientSettings
from replication.peer_thread import Endpoint, ExchangeContext, PeerThreads
from replication.rate_limit import LogRateLimiter
from replication.rejected_senders import RejectedSenders
from replication.replica import Replica
from store.engine import Change, Engine, read_clocks
from store.errors import NotServing

logger = logging.getLogger("causeway.replication")

TICK_S = 0.1
"""Time between two ticks of the replica; far below every interval that it uses."""

DRAIN_CHECK_S = 0.02
"""While the node drains, it checks at this interval whether a member has everything."""


class Node:
    """A replica with its engine, threads and transport; the engine's ``Replication`` port.

    ``inspector``: what the node shows to operators. ``rejected_senders``: the edge and the views note there whom they
    reject.

    ``on_fatal``: called, from a thread of the node, with the reason when this process has to stop.
    ``discovery``: the source of further seeds, None for none; the replica must have been made with ``discovers``.
    ``traceparent``: returns the header that connects other requests with the one that this thread serves; empty for
    none (W3C Trace Context).
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
        traceparent: Callable[[], str] = lambda: "",
    ) -> None:
        self.replica = replica
        self.engine = engine
        self._lock = engine.lock
        self._discovery = discovery
        self._traceparent = traceparent
        self._endpoints = Endpoints(transport, discovery.address if discovery is not None else "")
        self._stopping = False
        self._metrics = ExchangeMetrics()
        self._driver = ConversationDriver(replica, engine, self._metrics)
        self._context = ExchangeContext(
            replica,
            self._driver,
            self._lock,
            self._metrics,
            self._endpoint_of,
            on_fatal,
            LogRateLimiter(WARNED_EVERY_S),
        )
        self._threads = PeerThreads(self._context)
        self._ticker = threading.Thread(target=self._tick_for_ever, name="tick", daemon=True)
        self._events_logged = 0
        self.rejected_senders = RejectedSenders()
        self._warnings = NodeWarnings(replica, self._context, discovery)
        self.inspector = NodeInspector(
            replica,
            engine,
            self._context,
            self._threads,
            self._warnings.unreached,
            self.rejected_senders.all,
            is_open=is_open,
        )
        engine.replication = self

    # -- life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start exchanging."""
        with self._lock:
            self.replica.begin_exchanging(read_clocks())
        self._ticker.start()
        if self._discovery is not None:
            self._discovery.start(self.discovered)

    def stop(self, timeout_s: float) -> int:
        """Drain: stop serving clients, leave the view, send all updates to other members, then end the threads.

        Waits until one other member has acknowledged all updates, for at most ``timeout_s``. Returns how many updates
        may be lost with this process (``Acks.unreplicated``).
        """
        deadline_s = time.monotonic() + timeout_s
        if self._discovery is not None:
            self._discovery.stop()
        with self._lock:
            self.replica.leave(read_clocks())
            self.engine.wake()
            self._threads.wake_due()
        while (unreplicated := self._unreplicated()) and time.monotonic() < deadline_s:
            time.sleep(DRAIN_CHECK_S)
        self._stopping = True
        self._threads.stop(deadline_s)
        return unreplicated

    def keys_that_end(self) -> int:
        """Return how many keys end with this process, because it reaches no other member; 0 if it reaches one."""
        with self._lock:
            now = read_clocks()
            is_last = not self.replica.membership.reaches_others(now.mono_s)
            return len(self.replica.store.table) if is_last else 0

    def _unreplicated(self) -> int:
        with self._lock:
            return self.replica.acks.unreplicated()

    @property
    def id(self) -> str:
        """The replica id, incarnation included."""
        return self.replica.id

    @property
    def ready(self) -> bool:
        """Whether the replica belongs to the view, has caught up, and agrees with its peers (recovery.py)."""
        return not self.replica.recovery.not_ready_reason

    @property
    def not_ready_reason(self) -> str:
        """Why the replica is not ready; empty if it is."""
        return self.replica.recovery.not_ready_reason

    @property
    def state(self) -> str:
        """``joining``, ``serving``, ``removed`` or ``leaving``."""
        return self.replica.state

    # -- the data to begin with --------------------------------------------------------------------------

    @property
    def may_seed(self) -> bool:
        """Whether this replica awaits an import, and has everything that others have."""
        return self.replica.recovery.awaits_seed and self.replica.recovery.is_caught_up

    @property
    def is_alone(self) -> bool:
        """Whether this replica has never met another one (``Recovery.is_alone``)."""
        with self._lock:
            return self.replica.recovery.is_alone(read_clocks().mono_s)

    def seed(self, changes: Sequence[Change]) -> None:
        """Apply ``changes`` before clients are served. Raises NotServing if this replica leaves meanwhile."""
        with self._lock:
            if self.state != "joining":
                raise NotServing(self.not_ready_reason)
            self.engine.seed(changes)

    def end_seed(self) -> None:
        """Serve clients from now on."""
        with self._lock:
            self.replica.recovery.awaits_seed = False
        self.check_replica_health()

    # -- messages of peers -----------------------------------------------------------------------------

    def exchange(self, body: bytes) -> bytes:
        """Answer a peer's exchange (wire form in and out). Raises BadMessage."""
        with self._counting_rejections():
            encoded = encode(self._driver.receive(decode(body, Exchange)))
            with self._lock:
                self._context.counts["exchanges_answered"] += 1
                self._metrics.record_message_sizes("answered", len(encoded), len(body))
                self._threads.wake_due()  # The message may be a reason to exchange with its sender, or others, at once.
            return encoded

    def snapshot(self, body: bytes) -> bytes:
        """Answer a peer's request for a piece of a snapshot (wire form in and out). Raises BadMessage."""
        with self._counting_rejections():
            return encode(self._driver.receive(decode(body, SnapshotRequest)))

    @contextmanager
    def _counting_rejections(self) -> Iterator[None]:
        """Count a rejected message, and log it with a limit: its sender usually sends it again."""
        try:
            yield
        except BadMessage as exc:
            with self._lock:
                self._context.counts["messages_refused"] += 1
            self._context.warn(str(exc)[:80], f"rejected a message: {exc}")
            raise

    # -- what the engine needs of peers (store.replication_port) -----------------------------------------

    def update_issued(self, update: object) -> None:
        """Send an update that was issued here to the peers."""
        self._threads.wake_for_write()

    def fetch(self, past: dict[str, int]) -> int:
        """Exchange at once with every peer that may have what ``past`` names and we lack; return a token."""
        token = self.replica.loss.fetch(past)
        self._trace_urgent()
        self._threads.wake_due()
        return token

    def fetch_for_retry(self, past: dict[str, int]) -> int:
        """Like ``fetch``, for a request that does not wait and may have asked before."""
        token = self.replica.loss.fetch_for_retry(past)
        self._trace_urgent()
        self._threads.wake_due()
        return token

    def unrecoverable(self, past: dict[str, int], token: int) -> dict[str, tuple[int, int]]:
        """Return replica id -> (first, last) counter of the updates in ``past`` that no replica can provide."""
        return self.replica.loss.unrecoverable(past, token)

    def can_report_loss(self, token: int) -> bool:
        """Return whether all members have reported since ``token`` was issued, so that a loss can be known."""
        return self.replica.loss.can_decide(token)

    def expect_acks(self, dot: tuple[str, int], required: int) -> None:
        """Send ``dot``, an update of this replica, at once: a client waits until ``required`` members have it."""
        peers = self.replica.acks.expect(dot, required, time.monotonic())
        if traceparent := self._traceparent():
            # Others have been sent the update already.
            self._threads.trace((peer for peer in peers if peer.awaited_counter > peer.acked.sent), traceparent)
        if idle := [peer for peer in peers if not peer.in_flight]:
            self._threads.wake_due(idle)

    def _trace_urgent(self) -> None:
        """Let the exchanges that fetch what a request lacks carry its trace."""
        if traceparent := self._traceparent():
            peers = (self.replica.peers.at(address) for address in self.replica.membership.table.others)
            self._threads.trace((peer for peer in peers if peer.urgent), traceparent)

    def ack_counters(self, origin: str) -> list[int]:
        """Return, for each other member, up to which counter of ``origin`` it is known to have applied; ascending."""
        return self.replica.acks.counters(origin)

    def acks_required(self, write_concern: str) -> int:
        """Return how many acks ``majority`` or ``all`` requires."""
        return self.replica.acks.required(write_concern)

    # -- the view --------------------------------------------------------------------------------------

    def view(self) -> list[str]:
        """Return the addresses of the live members."""
        with self._lock:
            return self.replica.membership.live(read_clocks().mono_s)

    def members(self) -> list[str]:
        """Return the addresses of all members, including those that are down."""
        with self._lock:
            return list(self.replica.membership.table.members)

    def holds_address(self, text: str) -> bool:
        """Return whether the membership table has an entry for ``text``, whether it is a valid address or not."""
        with self._lock:
            return text in self.replica.membership.table.entries

    def add_member(self, address: str) -> bool:
        """Make ``address`` belong; return False if it belongs already. Raises TableFull."""
        with self._logging_full_table(address, "not added"), self._lock:
            added = self.replica.add_replica_from_view(address, read_clocks())
        self._follow_replica()
        return added

    def remove_member(self, address: str) -> bool:
        """Make ``address`` not belong; return False if there is no such member or seed. It is recorded all the same.

        Raises TableFull if it cannot be recorded: only for an address that is no member.
        """
        with self._logging_full_table(address, "not recorded as removed"), self._lock:
            removed = self.replica.remove_replica_from_view(address, read_clocks())
            self.engine.wake()
        self._follow_replica()
        return removed

    @contextmanager
    def _logging_full_table(self, address: str, outcome: str) -> Iterator[None]:
        """Log that ``address`` is ``outcome`` if there is no room for a view change; with a limit for each outcome."""
        try:
            yield
        except TableFull as exc:
            self._context.warn(f"full table: {outcome}", f"{address} is {outcome}: {exc}")
            raise

    def discovered(self, addresses: Iterable[str]) -> None:
        """Process the addresses that a lookup of peers has found: all of them (replication/discovery.py)."""
        with self._lock:
            self.replica.discovered(addresses, read_clocks())
            self.engine.wake()
        self._follow_replica()

    # -- threads ---------------------------------------------------------------------------------------

    def _tick_for_ever(self) -> None:
        while not self._stopping:
            try:
                self.check_replica_health()
            except Exception:  # Log and continue: without ticks the replica would stop making progress.
                logger.exception("tick failed")
            time.sleep(TICK_S)

    def check_replica_health(self) -> None:
        """Do the periodic work: update who is reachable, finish joining, trim the log, exchange with new peers."""
        with self._lock:
            self.replica.tick(read_clocks())
            self.engine.wake()
            self.engine.wake_for_losses()
        self._follow_replica()
        self._warnings.check()
        self.inspector.sample()

    def _follow_replica(self) -> None:
        """Run one thread per target of the replica, and log its new events."""
        with self._lock:
            self._threads.follow(self.replica.targets(read_clocks()))
            # Events are numbered from the start of the process; the replica keeps the latest of them only.
            new = [event for event in self.replica.event_log.events if event.number > self._events_logged]
            self._events_logged = new[-1].number if new else self._events_logged
            self._threads.wake_due()
        for event in new:
            logger.info("%s %s %s", event.kind, event.subject, event.detail)

    def _endpoint_of(self, address: str) -> Endpoint:
        """Return the settings to call ``address`` with (replication/peer_client.py).

        Needs no lock: it reads a set that never changes, and a dict.
        """
        if self._discovery is None or address not in self._discovery.addresses:
            return self._endpoints.address_only
        membership = self.replica.membership
        is_known = address in membership.seeds.fixed or address in membership.table.entries
        return self._endpoints.address_first if is_known else self._endpoints.lookup_only
