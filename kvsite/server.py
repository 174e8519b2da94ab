"""Puts one replica together, and serves it from one process.

    Config -> settings of the floors below -> CausalStore -> Engine ─┐
                                              Replica, Transport ────┴-> Node -> bound to the views -> HTTP

Serving is granian's: one Rust thread takes connections, and a pool of Python threads runs requests, beside the
replica's own threads, all in this one process. (granian's usual server forks: then kill -9 of the parent leaves a child
that goes on serving, and the exit code is not the replica's.) Its server for threads is meant for Python without a GIL
and refuses to run with one; everything works with one, so that check is overridden. These are private methods: the
version is pinned, and tests/kvsite/test_server.py starts the real thing.

The end of a replica, within ``STOP_TIMEOUT_S`` of SIGTERM, SIGINT or SIGHUP:

1. the gate closes: clients get 503, those that wait are woken, and no further update is issued here;
2. the node hands over what only it has, and leaves. HTTP is still served meanwhile: a member that needs a snapshot
   pulls it from here;
3. new connections are refused, and those that are open end with their next answer, which says so: a connection that
   ends otherwise leaves its client in doubt whether its write was applied;
4. requests in flight get a moment to end, and the process exits: 0, or 1 if updates died.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import random
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.conf import settings
from granian._granian import SocketHolder
from granian.constants import HTTPModes, Interfaces, RuntimeModes
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.mt import MTServer

import replication.api.context
import store.api.context
from kvsite import signals
from kvsite.config import SETTINGS, Config, current
from kvsite.listener_shutdown import stop_listening
from kvsite.signals import StopRequest
from replication.address import join_address
from replication.discovery import Discovery
from replication.node import Node
from replication.peer_client import PeerClientSettings
from replication.proof import derive_key
from replication.replica import Replica
from store.engine import Engine, read_clocks

if TYPE_CHECKING:
    from kvsite.wsgi import Edge

logger = logging.getLogger("causeway")

STOP_TIMEOUT_S = 9.0
"""From the signal to the exit; SPEC 4 promises ten seconds."""

HAND_OVER_S = 7.0
"""Of these, how many the node has to find a member that takes what only this replica has."""

SETTLE_S = 0.2
"""How long connections that have begun may take to be open, before the others are refused: some round trips."""

LINGER_S = 0.5
"""How long, after that, open connections are still answered. A client that asks less often may find its own closed."""

IN_FLIGHT_S = 2.0
"""How long, after that, requests may go on that were let in before: those that waited have been woken by then."""

MAX_CONNECTIONS = 8192
"""Connections open at once, idle ones included. Each costs a file descriptor and little memory."""

IDLE_TIMEOUT_MS = 75_000
"""After so long without a request a connection is closed; above the minute that a pool or a proxy keeps one."""


class StartError(Exception):
    """The replica cannot start; one line for the operator."""


class ReplicaServer(MTServer):
    """granian's server for threads, listening on one socket that nobody else can listen on.

    ``drain`` runs when a signal asks for the end, while requests are still answered.
    """

    def __init__(self, config: Config, drain: Callable[[], None]) -> None:
        super().__init__(
            "causeway",  # A name for messages; the application is handed to serve().
            interface=Interfaces.WSGI,
            runtime_mode=RuntimeModes.mt,
            blocking_threads=config.threads,
            http=HTTPModes.http1,
            http1_settings=HTTP1Settings(header_read_timeout=IDLE_TIMEOUT_MS),
            websockets=False,
            backpressure=MAX_CONNECTIONS,
            log_level=LogLevels.error,  # a warning would say at each start that threads are experimental
            log_dictconfig=settings.LOGGING,
            ssl_cert=config.tls_cert,
            ssl_key=config.tls_key,
        )
        self._listen = config.listen
        self._drain = drain
        self._deadline = 0.0
        self.stuck = False

    def _check_gil(self) -> None:
        """Run with a GIL as well: see the module's text."""

    def _init_shared_socket(self) -> None:
        """Bind. granian's own way sets SO_REUSEPORT: a second replica on the same port would start and share it."""
        self._descriptor, is_uds = bind(*self._listen).detach(), False
        self._shd: Any = SocketHolder(self._descriptor, is_uds, self.backlog)  # type: ignore[call-arg]  # its stub has no __new__
        self._ssp = None

    def _serve_loop(self, *_: Any) -> None:
        """Wait for the end: until a signal asks for it."""
        request = StopRequest()
        while not request.wait(1.0):
            if self.interrupt_children:  # The worker ended by itself, which granian has logged.
                return
        self._deadline = time.monotonic() + STOP_TIMEOUT_S
        self._drain()
        # granian can only stop listening and close its connections at once, those too whose request is on its way.
        stop_listening(self._descriptor, SETTLE_S)
        time.sleep(LINGER_S)

    def _stop_workers(self) -> None:
        """Refuse connections and let requests in flight end, but do not wait for a client that never will."""
        workers: list[Any] = self.wrks  # without annotations
        for worker in workers:
            worker.terminate()
            worker.join(max(0.1, min(IN_FLIGHT_S, self._deadline - time.monotonic())))
            self.stuck |= worker.inner.is_alive()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to ``host`` and ``port``. Raises ``StartError``, one line, where that cannot be."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6 and host == "::":
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # everywhere means IPv4 as well
        bound.bind(address)
    except OSError as exc:
        raise StartError(f"cannot listen on {host} port {port}: {exc.strerror or exc}") from exc
    bound.setblocking(False)
    return bound


@dataclass(frozen=True)
class Runtime:
    """One replica, put together."""

    config: Config
    engine: Engine
    node: Node


def build(config: Config, on_fatal: Callable[[str], None]) -> Runtime:
    """Put one replica together and bind the views to it; nothing runs yet.

    ``on_fatal``: called with a sentence when this process must not go on, such as a second one with its address.
    """
    replica = Replica(
        config.address,
        config.seeds,
        discovers=bool(config.view_dns),
        now=read_clocks(),
        rng=random.SystemRandom(),
        settings=config.replication,
        store_settings=config.store,
    )
    engine = Engine(replica.store)
    transport = PeerClientSettings(
        # One that hangs must not look alive for longer than one that is gone.
        timeout_s=min(1.0, config.replication.down_after_s / 2),
        scheme=config.scheme,
        verify=str(config.tls_ca) if config.tls_ca else True,
        key=derive_key(config.cluster_secret) if config.cluster_secret else b"",
        token=config.peer_token,
    )
    discovery = Discovery(config.view_dns, config.replication.sync_interval_s) if config.view_dns else None
    node = Node(replica, engine, transport, on_fatal=on_fatal, is_open=config.is_open, discovery=discovery)
    store.api.context.bind(engine, config.limits)
    replication.api.context.bind(node)
    return Runtime(config, engine, node)


def run(config: Config, *, until_stdin_closes: bool = False) -> int:
    """Serve one replica until a signal ends it. Returns the exit code; raises ``StartError`` before it serves.

    ``until_stdin_closes``: end as well when nobody holds the other end of standard input any more.
    """
    # First of all, so that every thread inherits it: signals are taken by one call, where nothing can be interrupted.
    signals.block()
    if until_stdin_closes:
        threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    problems: list[str] = []

    def stop_because(reason: str) -> None:
        problems.append(reason)
        os.kill(os.getpid(), signal.SIGTERM)

    def drain() -> None:
        logger.info("stopping: no more requests are taken; handing over what only this replica has")
        dying = runtime.node.stop(HAND_OVER_S)
        if dying:
            problems.append(f"{dying} updates die with this replica: no other member could be reached")
        application().close_connections()

    raise_file_limit(MAX_CONNECTIONS + 256)
    forget_secrets()
    server = ReplicaServer(config, drain)
    runtime = build(config, stop_because)
    server.on_startup(lambda: announce(config))
    server.on_startup(runtime.node.start)
    server.serve(target_loader=load_application, wrap_loader=False)
    for problem in dict.fromkeys(problems):
        print(problem, file=sys.stderr)  # noqa: T201  # the last word is for whoever started it, log or not
    code = 1 if problems or server.interrupt_children else 0
    logger.info("stopped")
    if server.stuck:
        # A request that nothing can wake holds its thread, and an exit in good order would wait for it for ever.
        logging.shutdown()
        os._exit(code)
    return code


def announce(config: Config) -> None:
    """Say in the log where this replica is, whom it asks, and whether anybody may come in."""
    host, port = config.listen
    logger.info("replica %s listens on %s://%s", config.address, config.scheme, join_address(host, port))
    others = [seed for seed in config.seeds if seed != config.address]
    asked = [*others, *([f"whoever {config.view_dns} leads to"] if config.view_dns else [])]
    logger.info("asking %s", ", ".join(asked) if asked else "nobody: VIEW names no other replica")
    if config.is_open:
        logger.warning("open: anybody who can reach it may read and write; see KV_CLUSTER_SECRET, KV_API_TOKENS")
        return
    if config.api_tokens and not (config.peer_token or config.cluster_secret):
        logger.warning("alone: no token of KV_API_TOKENS may write, so replicas cannot talk; set KV_CLUSTER_SECRET")
    for warning in config.security_warnings:
        logger.warning("not secured: %s", warning)


def forget_secrets() -> None:
    """Take the secrets out of the environment, once they are read: granian puts all of it into every request."""
    current()
    for setting in SETTINGS:
        if setting.is_secret:
            os.environ.pop(setting.variable, None)


def application() -> Edge:
    """Return the WSGI application; imported late, for it sets Django up."""
    from kvsite.wsgi import application  # noqa: PLC0415

    return application


def load_application() -> Edge:
    """Load the WSGI application and return it."""
    loaded = application()
    # What is loaded by now stays: full collections need not look through it while requests wait.
    gc.collect()
    gc.freeze()
    return loaded


def raise_file_limit(wanted: int) -> None:
    """Let this process have ``wanted`` files open, as far as the system allows: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < most:
        # macOS names no limit and refuses one above a limit of its kernel's.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def _end_with_stdin() -> None:
    """Ask this process to end, as SIGTERM does, once standard input is at its end."""
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
