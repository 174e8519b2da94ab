"""Builds one replica and serves it from this process.

    Config -> Replica (owns the CausalStore) -> Engine (serves that store) --+
              PeerClientSettings, Discovery ---------------------------------+-> Node -> ServerContext -> edge -> HTTP

granian serves HTTP: one Rust thread accepts connections, and a pool of Python threads runs requests. The replica's own
threads run beside them, all in this one process. granian's default server is not used, because it serves from a child
process: if the parent is killed with SIGKILL, the child keeps serving, and the parent's exit code is not the replica's.
granian's server for threads is meant for Python without a GIL and does not start with one. It works with a GIL, so
``ReplicaServer`` overrides that check. It overrides private methods of granian: granian's version is pinned, and
tests/kvsite/test_server.py starts a real server.

SIGTERM, SIGINT and SIGHUP stop a replica within ``STOP_TIMEOUT_S``, in these steps:

1. The node closes the gate and removes this replica from the view. Clients get 503, waiting requests are woken, and
   this replica issues no more updates.
2. The node sends its updates to peers until one other member has acknowledged all of them, for at most
   ``HAND_OVER_S``. HTTP is still served, because a member that needs a snapshot pulls it from this replica. If no
   other member is reachable, standard error and the log say how many keys end with this replica.
3. New connections are refused. Each open connection is closed after its next response, which says so
   (``Connection: close``). If a connection ends in another way, its client does not know whether its write was applied.
4. Requests in progress get a short time to end. Then the process exits: with 1 if step 2 did not complete, so that
   updates may be lost, else with 0.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import ipaddress
import logging
import os
import random
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from django.conf import settings
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, RuntimeModes
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mt import MTServer

from kvsite import connections, signals
from kvsite.audit import AuditLog
from kvsite.config import SETTINGS, Config, current
from kvsite.context import ServerContext
from kvsite.listener_shutdown import stop_listening
from kvsite.logs import current_traceparent, dropped_lines, write_line
from kvsite.malloc_arenas import limit_arenas
from kvsite.seeding import Seeder
from kvsite.signals import StopRequest
from replication.discovery import Discovery
from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.proof import derive_key
from replication.rate_limit import LogRateLimiter
from replication.replica import Replica
from store.address import join_address
from store.api.bodies import Bodies
from store.engine import Engine, read_clocks

if TYPE_CHECKING:
    from kvsite.wsgi import Edge

logger = logging.getLogger("causeway")

STOP_TIMEOUT_S = 9.0
"""Time from the signal to the exit. Contract 4 promises ten seconds."""

HAND_OVER_S = 7.0
"""Part of ``STOP_TIMEOUT_S`` in which the node sends its updates to peers."""

SETTLE_S = 0.2
"""Time for handshakes that have begun: they complete, and the server accepts their connections, before new connections
are refused. A handshake needs one or two round trips."""

LINGER_S = 0.5
"""After ``SETTLE_S``, open connections are served for this long. Then the server closes them. A client whose connection
was idle has had no response that announces this."""

IN_FLIGHT_S = 2.0
"""After ``LINGER_S``, requests in progress have this long to end. Waiting requests have been woken by then."""

MAX_CONNECTIONS = 8192
"""Limit of open connections, idle ones included. Each costs a file descriptor and little memory."""

RESERVED_FILES = 256
"""File descriptors that clients' connections leave free: for connections to peers, and for the process itself. With
a low limit of open files, a quarter of it, but at least ``MIN_RESERVED_FILES``."""

MIN_RESERVED_FILES = 64

IDLE_TIMEOUT_MS = 75_000
"""The server closes a connection that has been without a request for this long. Connection pools and proxies keep an
idle connection for about a minute, so the client usually closes it first."""

MAX_HEADER_BYTES: Final = 128 * 1024
"""Limit of a request's line and headers. The server answers 431, or 414 for a URL above 64 KiB, without a body."""

UNREAD_TIMEOUT_MS: Final = 10_000
"""A connection whose client takes nothing of a response for this long is closed: the response holds a thread."""

UNSENT_BYTES: Final = 64 * 1024
"""Bytes of a response that the kernel keeps for a client that does not read. Its own limit is megabytes for each
connection, which count as memory of the container. Bytes in flight are not limited, so this does not slow clients."""


class StartError(Exception):
    """The replica cannot start. The text is one line for the operator."""


class PortInUse(StartError):
    """Another process listens on the port."""


class ReplicaServer(MTServer):
    """granian's server for threads, with a listening socket that no other process can share.

    ``drain`` is called when a stop signal has arrived, while requests are still served. ``max_connections``: further
    connections wait to be accepted.
    ``stuck``: whether requests were still running when the server stopped.
    """

    def __init__(
        self,
        config: Config,
        drain: Callable[[], None],
        stop_request: StopRequest,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        super().__init__(
            "causeway",  # A name for messages. The application is passed to serve().
            interface=Interfaces.WSGI,
            runtime_mode=RuntimeModes.mt,
            blocking_threads=config.threads,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=IDLE_TIMEOUT_MS, max_buffer_size=MAX_HEADER_BYTES),
            websockets=False,
            backpressure=max_connections,
            log_level=LogLevels.error,  # granian warns at each start that threads are experimental
            log_dictconfig=settings.LOGGING,
            ssl_cert=config.tls_cert,
            ssl_key=config.tls_key,
        )
        self._listen = config.listen
        self._drain = drain
        self._stop_request = stop_request
        self._max_connections = max_connections
        self._deadline = 0.0
        self.stuck = False

    def _check_gil(self) -> None:
        """Accept a GIL, see the module's docstring."""

    def _init_shared_socket(self) -> None:
        """Bind. granian itself sets SO_REUSEPORT, with which a second replica could share the port."""
        self._descriptor, is_uds = bind(*self._listen).detach(), False
        self._shd: Any = SocketHolder(self._descriptor, is_uds, self.backlog)  # type: ignore[call-arg]  # its stub has no __new__
        self._ssp = None

    def _serve_loop(self, *_: Any) -> None:
        """Serve until a stop signal arrives, then drain and stop listening."""
        signals.keep_ignored()  # granian has set handlers.
        watch = DescriptorWatch(self._descriptor, self._max_connections)
        while not self._stop_request.wait(1.0):
            if self.interrupt_children:  # The worker ended by itself; granian has logged that.
                return
            watch.check(time.monotonic())
        self._deadline = time.monotonic() + STOP_TIMEOUT_S
        self._drain()
        # granian can only stop listening and close all connections at once, even those with a request in flight.
        stop_listening(self._descriptor, SETTLE_S)
        time.sleep(LINGER_S)

    def _stop_workers(self) -> None:
        """Close the connections and wait for requests in progress, but not for a client that never finishes."""
        workers: list[Any] = self.wrks  # without annotations
        for worker in workers:
            worker.terminate()
            worker.join(max(0.1, min(IN_FLIGHT_S, self._deadline - time.monotonic())))
            self.stuck |= worker.inner.is_alive()


class DescriptorWatch:
    """Logs, once a minute, that no file descriptor is left for another connection.

    ``descriptor``: any open one. The lowest free number tells how many are in use at least, and costs two system calls.
    """

    def __init__(self, descriptor: int, max_connections: int) -> None:
        self._descriptor = descriptor
        self._limit = open_files_limit()
        lowest_free = self._lowest_free()
        # Connections to peers come and go: a few descriptors more or less do not matter.
        self._full = min(self._limit, lowest_free + max_connections) - 4
        self._advice = "raise `ulimit -n`, or " if max_connections < MAX_CONNECTIONS else ""
        self._log_rate = LogRateLimiter()

    def check(self, now_s: float) -> None:
        """Log if descriptors are running out."""
        in_use = self._lowest_free()
        if in_use >= self._full and self._log_rate.allow("full", now_s):
            logger.warning(
                "file descriptors are running out: %d of %d are in use, so further connections wait; %sclose idle ones",
                in_use,
                self._limit,
                self._advice,
            )

    def _lowest_free(self) -> int:
        try:
            number = os.dup(self._descriptor)
        except OSError:
            return self._limit
        os.close(number)
        return number


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host`` and ``port``. Raises ``StartError`` if that is not possible."""
    bound = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # "::" includes IPv4
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux. Accepted connections inherit it.
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_MS)
            bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        bound.bind(address)
    except OSError as exc:
        if bound is not None:
            bound.close()
        error = PortInUse if exc.errno == errno.EADDRINUSE else StartError
        raise error(f"cannot listen on {host} port {port}: {exc.strerror or exc}") from exc
    bound.setblocking(False)
    return bound


def build(config: Config, on_fatal: Callable[[str], None]) -> ServerContext:
    """Build one replica. It does nothing until ``context.node.start()`` is called.

    ``on_fatal`` is called with a reason if this process must stop, for example because of a duplicate address. Raises
    ``StartError`` if the audit log cannot be opened.
    """
    replica = Replica(
        config.address,
        config.seeds,
        discovers=bool(config.view_dns),
        awaits_seed=config.seed_file is not None,
        now=read_clocks(),
        rng=random.SystemRandom(),
        settings=config.replication,
        store_settings=config.store,
    )
    engine = Engine(replica.store)
    transport = PeerClientSettings(
        # A peer that hangs must count as down as soon as a peer that has stopped.
        timeout_s=min(1.0, config.replication.down_after_s / 2),
        scheme=config.scheme,
        verify=str(config.tls_ca) if config.tls_ca else True,
        key=derive_key(config.cluster_secret) if config.cluster_secret else b"",
        max_body_bytes=config.limits.max_body_bytes,
        sender=config.address,
    )
    discovery = Discovery(config.view_dns, config.replication.sync_interval_s) if config.view_dns else None
    node = Node(
        replica,
        engine,
        transport,
        on_fatal=on_fatal,
        is_open=config.is_open,
        discovery=discovery,
        traceparent=current_traceparent,
    )
    bodies = Bodies()
    audit = _open_audit_log(config.audit_log, bodies)
    if audit is not None:
        engine.on_write = audit.record
    return ServerContext(
        engine=engine,
        limits=config.limits,
        bodies=bodies,
        node=node,
        config=config,
        audit=audit,
        dropped_log_lines=dropped_lines,
        dropped_audit_lines=lambda: audit.dropped_lines if audit else 0,
        on_view_change=audit.record_view_change if audit else lambda _: None,
    )


def _open_audit_log(target: str, bodies: Bodies) -> AuditLog | None:
    """Return the audit log; None without ``KV_AUDIT_LOG``. Raises ``StartError``."""
    if not target:
        return None
    try:
        return AuditLog.open(target, bodies.in_progress)
    except OSError as exc:
        raise StartError(f"KV_AUDIT_LOG: cannot write {target!r}: {exc.strerror or exc}") from None


def run(config: Config, *, until_stdin_closes: bool = False) -> int:
    """Serve one replica until a signal stops it. Return the exit code: 1 if there was a problem, else 0.

    The replica also stops itself for a reason given to ``on_fatal`` (see ``build``). Problems are printed on standard
    error. Raises ``StartError`` if it cannot start.

    ``until_stdin_closes``: also stop when standard input is closed.
    """
    check_access(config, config.listen[0])
    limit_arenas()
    # Block signals before any thread starts, so that every thread inherits that. One thread waits for them instead.
    signals.block()
    stop_request = StopRequest()
    if until_stdin_closes:
        threading.Thread(target=_stop_when_stdin_closes, args=(stop_request,), name="stdin", daemon=True).start()
    problems: list[str] = []
    notes: list[str] = []

    def stop_because(reason: str) -> None:
        problems.append(reason)
        stop_request.make()

    def drain() -> None:
        logger.info("stopping: rejecting requests, sending updates to peers")
        unacknowledged = context.node.stop(HAND_OVER_S)
        if unacknowledged:
            updates = "1 update" if unacknowledged == 1 else f"{unacknowledged} updates"
            problems.append(f"{updates} may be lost: no other member acknowledged all within {HAND_OVER_S:g} s")
        if keys := context.node.keys_that_end():
            end = "1 key ends" if keys == 1 else f"{keys:,} keys end"
            notes.append(f"{end} with this replica: it reaches no other member, and data is in memory only")
            logger.warning("%s", notes[-1])
        edge.close_connections()

    raise_file_limit(MAX_CONNECTIONS + RESERVED_FILES)
    max_connections = connections_within(open_files_limit())
    forget_secrets()
    context = build(config, stop_because)
    edge = load_edge(context)
    server = ReplicaServer(config, drain, stop_request, max_connections)
    server.on_startup(lambda: announce(config, max_connections))
    server.on_startup(lambda: monitor_connections(context, max_connections))
    if config.seed_file is not None:
        seeder = Seeder(context, config.seed_file, stop_because)
        server.on_startup(seeder.start)
    server.on_startup(context.node.start)
    server.serve(target_loader=lambda: edge, wrap_loader=False)
    edge.close_spans()
    for text in dict.fromkeys([*problems, *notes]):
        write_line(text)  # For the caller, whatever the log settings.
    if context.audit is not None:
        context.audit.flush()
    code = 1 if problems or server.interrupt_children else 0
    logger.info("stopped")
    if server.stuck:
        # A regular exit would wait forever for a thread whose request never ends.
        logging.shutdown()
        os._exit(code)
    return code


def check_access(config: Config, host: str) -> None:
    """Raise ``StartError`` if a replica that listens on ``host`` would be open, or send tokens, without being asked to.

    Not part of the configuration's own check: commands that talk to a replica share its environment.
    """
    if config.is_without_peers and config.names_peers:
        raise StartError(
            "KV_API_TOKENS: a replica that contacts others (VIEW, KV_VIEW_DNS) also needs KV_CLUSTER_SECRET, because "
            "tokens are never sent to a peer"
        )
    if config.may_be_open is False and not config.api_tokens:
        raise StartError(
            "KV_OPEN: is false, but KV_API_TOKENS is not set, so every client could read and write; set the tokens (in "
            "single quotes if a shell reads them), or KV_OPEN=true to let everybody read and write"
        )
    if not (config.cluster_secret or config.api_tokens or config.may_be_open or _is_loopback(host)):
        raise StartError(
            f"KV_OPEN: other machines can reach {host}, and neither KV_CLUSTER_SECRET nor KV_API_TOKENS is set; set "
            "them, or KV_OPEN=true to let everybody read and write"
        )


def _is_loopback(host: str) -> bool:
    """Return whether only this machine can reach a server that listens on ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def announce(config: Config, max_connections: int = MAX_CONNECTIONS) -> None:
    """Log where this replica listens, which replicas it contacts first, and what is not secured or limited."""
    host, port = config.listen
    logger.info("replica %s listens on %s://%s", config.address, config.scheme, join_address(host, port))
    others = [seed for seed in config.seeds if seed != config.address]
    contacts = [*others, *([f"all addresses of {config.view_dns}"] if config.view_dns else [])]
    logger.info("contacting %s", ", ".join(contacts) if contacts else "no other replica: VIEW names none")
    if contacts and config.tls_cert and not config.tls_ca:
        logger.warning(
            "KV_TLS_CA is not set: certificates of other replicas are verified with this machine's authorities, so "
            "replicas with certificates of an authority of your own cannot be reached"
        )
    if max_connections < MAX_CONNECTIONS:
        logger.warning(
            "at most %d connections at once, because the limit of open files (`ulimit -n`) is %d; %d are enough for %d",
            max_connections,
            open_files_limit(),
            MAX_CONNECTIONS + RESERVED_FILES,
            MAX_CONNECTIONS,
        )
    if config.is_open:
        logger.warning(
            "open: anyone who can reach this replica may read and write; see KV_CLUSTER_SECRET, KV_API_TOKENS"
        )
        return
    for warning in config.security_warnings:
        logger.warning("not secured: %s", warning)


def forget_secrets() -> None:
    """Read the settings and remove secrets from the environment: granian copies the environment into each request."""
    current()
    for setting in SETTINGS:
        if setting.is_secret:
            os.environ.pop(setting.variable, None)


def load_edge(context: ServerContext) -> Edge:
    """Load the WSGI application that serves ``context``."""
    from kvsite.wsgi import load  # noqa: PLC0415  # imports views, which need Django to be set up

    edge = load(context)
    # Objects that exist now stay until the end. Freezing them keeps full collections short while requests wait.
    gc.collect()
    gc.freeze()
    return edge


def raise_file_limit(wanted: int) -> None:
    """Raise the limit of open files to ``wanted``, as far as the system allows. Each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        # macOS reports no limit, but rejects one above its kernel's.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def monitor_connections(context: ServerContext, max_connections: int) -> None:
    """Start closing connections that make no progress, if this system supports it."""
    if connections.is_supported():
        connections.ConnectionMonitor(
            context.bodies,
            connections.Kernel(context.config.listen[1]),
            capacity=max_connections,
            max_body_bytes=context.limits.max_body_bytes,
            body_timeout_s=context.limits.body_timeout_s,
            responses=context.large_responses,
        ).start()


def open_files_limit() -> int:
    """Return how many file descriptors this process may have."""
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def connections_within(open_files: int) -> int:
    """Return how many connections to accept if ``open_files`` descriptors are allowed. Raises ``StartError``."""
    reserved = min(RESERVED_FILES, max(MIN_RESERVED_FILES, open_files // 4))
    if open_files <= reserved:
        raise StartError(
            f"the limit of open files (`ulimit -n`) is {open_files}, which is too low: {reserved} are needed"
        )
    return min(MAX_CONNECTIONS, open_files - reserved)


def _stop_when_stdin_closes(stop_request: StopRequest) -> None:
    """Request the stop when standard input is closed."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    stop_request.make()
