"""The systems under measurement. A ``with`` block starts one on the servers' core, fills it with keys, and stops it."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from kvsite.cluster import LocalCluster
from tools.benchmark import loads
from tools.benchmark.drivers import Bundled, Driver
from tools.benchmark.loads import Load, Shape
from tools.benchmark.processes import (
    BenchmarkError,
    Cores,
    Program,
    cpu_s,
    find_program,
    listens,
    lower_priority,
    pinned,
)
from tools.paths import REPOSITORY

_HOST: Final = "127.0.0.1"
_SETTLE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Context:
    """The parameters of a run.

    ``rounds``: measurements of each figure; ``seconds``: duration of one measurement.
    ``base_port``: the first of a hundred ports for the servers.
    ``quick``: small sizes; ``full``: up to a million keys.
    ``metadata``: requests carry the causal metadata of a session.
    ``progress``: receives a line of progress before each measurement.
    """

    cores: Cores
    driver: Driver
    bundled: Bundled
    base_port: int
    rounds: int
    seconds: float
    warm_up_s: float
    quick: bool
    full: bool
    connections: int = 16
    metadata: bool = True
    progress: Callable[[str], None] = field(default=lambda text: None)

    def port(self, offset: int) -> int:
        """Return one of the benchmark's ports."""
        return self.base_port + offset


@dataclass(frozen=True, slots=True)
class Response:
    """The response to a single request of the benchmark. ``headers``: names in lower case."""

    status: int
    body: Any
    headers: Mapping[str, str]


def request_json(address: str, method: str, path: str, body: Any = None, timeout_s: float = 30.0) -> Response:
    """Send one request with a JSON body, or none. Raises ``OSError``, ``http.client.HTTPException``."""
    connection = http.client.HTTPConnection(address, timeout=timeout_s)
    try:
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
        response = connection.getresponse()
        text = response.read()
        is_json = (response.getheader("Content-Type") or "").startswith("application/json")
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, json.loads(text) if is_json else text.decode(), headers)
    finally:
        connection.close()


def alive_members(address: str) -> int:
    """Return how many members of its view the replica at ``address`` considers alive, itself included."""
    view = request_json(address, "GET", "/replication/status").body["view"]
    return sum(member["state"] == "alive" for member in view)


def wait_until(what: str, condition: Callable[[], bool], timeout_s: float = _SETTLE_S, every_s: float = 0.02) -> None:
    """Poll until ``condition()``; connection errors count as False. Raises ``BenchmarkError``, which names ``what``."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if condition():
                return
        if time.monotonic() > deadline:
            raise BenchmarkError(f"timeout after {timeout_s:g} s: {what}")
        time.sleep(every_s)


class System(ABC):
    """A system that can be measured: servers and the loads for them. ``operations``: the loads that it supports."""

    name: str
    operations: tuple[str, ...] = loads.OPERATIONS

    def __init__(self, context: Context) -> None:
        self.context = context
        self._cleanup = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self._cleanup.close)
            self.start()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @abstractmethod
    def start(self) -> None:
        """Start the servers and write the keys."""

    @abstractmethod
    def pids(self) -> list[int]:
        """Return the ids of the processes whose CPU time counts."""

    @abstractmethod
    def load(self, operation: str) -> Load:
        """Return the load for one of ``operations``."""

    def cpu_s(self) -> float:
        """Return the CPU time of all servers so far, seconds."""
        return cpu_s(self.pids())

    def run(self, command: list[str], ready: Callable[[], bool], environment: Mapping[str, str] | None = None) -> int:
        """Start a program that stops with this system; return its process id when it is ready."""
        program = Program(command, self.context.cores.servers, self.directory / "log", ready, environment)
        self._cleanup.callback(program.stop)
        program.wait_ready()
        return program.pid

    @property
    def directory(self) -> Path:
        """A directory of this system, in memory if possible: the comparison must not depend on the disk."""
        if self._directory is None:
            memory = Path("/dev/shm")  # noqa: S108  # it gets a temporary directory
            temporary = tempfile.TemporaryDirectory(prefix="causeway-", dir=memory if memory.is_dir() else None)
            self._directory = Path(self._cleanup.enter_context(temporary))
        return self._directory

    _directory: Path | None = None


class Causeway(System):
    """A cluster of ``replicas``; the first gets all load. It has ``shape.keys`` keys.

    ``ablated``: run without causality (ablation.py).
    ``spare``: number of further addresses, for replicas that are started later.
    """

    def __init__(
        self,
        context: Context,
        replicas: int,
        port: int,
        shape: Shape | None = None,
        *,
        ablated: bool = False,
        spare: int = 0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(context)
        self.replicas = replicas
        self.shape = shape or Shape()
        program = [sys.executable, "-m", "tools.benchmark.ablation"] if ablated else None
        # Lets -m find this package in any working directory.
        paths = {"PYTHONPATH": str(REPOSITORY)} if ablated else {}
        variables = {**(environment or {}), **paths}
        self.processes = LocalCluster(replicas + spare, context.port(port), environment=variables, program=program)
        what = " without causality" if ablated else ""
        self.name = f"Causeway{what}, {replicas} replica{'s' if replicas > 1 else ''}"
        self._pids: list[int] = []

    def start(self) -> None:
        """Start the replicas, write the keys, and get session metadata with an entry for each replica."""
        self._cleanup.callback(self.processes.stop, 0)  # Kill at once: the data is not needed.
        with pinned(self.context.cores.servers):
            for i in range(self.replicas):
                self.processes.start_one(i)
        self.processes.wait_ready(60)
        self._pids = [self.processes.pid(i) for i in range(self.replicas)]
        self._wait_until("all replicas see each other", lambda: all(self._sees_all(i) for i in range(self.replicas)))
        if self.shape.keys:
            self.fill(self.shape)
        metadata = self.session_metadata()
        if self.context.metadata:
            self.shape = replace(self.shape, metadata=metadata)

    def start_one(self, i: int, environment: Mapping[str, str] | None = None, *, separate: bool = False) -> None:
        """Start one of the spare replicas; do not wait until it is ready.

        ``separate``: start it on the cores of the load generators instead of those of the servers, as if on another
        machine. It has a lower priority than the load generators. Otherwise these would wait for a core, and their
        waiting would count as latency of the servers.
        """
        with pinned(self.context.cores.load if separate else self.context.cores.servers):
            self.processes.start_one(i, environment)
        if separate:
            lower_priority(self.processes.pid(i))

    def fill(self, shape: Shape, i: int = 0, first: int = 0) -> None:
        """Write ``shape.keys`` keys at replica ``i``, one PUT each, and wait until all replicas have them."""
        self.context.bundled.send_each_once(loads.fill(self.address(i), shape, first))
        self.settle()

    def session_metadata(self) -> dict[str, int]:
        """Write at each replica in one session, wait until all replicas have the writes, and return its metadata."""
        metadata: dict[str, int] = {}
        for i in reversed(range(self.replicas)):
            body = {"value": "metadata", "causal-metadata": metadata}
            response = request_json(self.address(i), "PUT", "/kvs/metadata?wait=10", body)
            if response.status not in (200, 201):
                raise BenchmarkError(f"{self.name}: a write returned {response.status} {response.body}")
            metadata = response.body.get("causal-metadata", {})
        self.settle()
        return metadata

    def settle(self) -> None:
        """Wait until all replicas have the same clock and no update to send."""
        self._wait_until("all replicas have the same clock", self.is_settled)

    def is_settled(self) -> bool:
        """Return whether the running replicas have the same clock and know this of each other."""
        running = [i for i in range(len(self.processes.addresses)) if self.processes.is_running(i)]
        statuses = [self.status(i) for i in running]
        return all(each["clock"] == statuses[0]["clock"] and each["drained"] for each in statuses)

    def status(self, i: int) -> dict[str, Any]:
        """Return the status of replica ``i`` (``/replication/status``)."""
        return dict(request_json(self.address(i), "GET", "/replication/status").body)

    def metrics(self, i: int) -> dict[str, float]:
        """Return the metrics of replica ``i``: name with labels -> value."""
        lines = request_json(self.address(i), "GET", "/metrics").body.splitlines()
        pairs = (line.rpartition(" ") for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    def address(self, i: int) -> str:
        """Return the address of replica ``i``."""
        return self.processes.addresses[i]

    def pids(self) -> list[int]:
        return self._pids

    def load(self, operation: str, count: int = loads.DISTINCT) -> Load:
        return loads.causeway(operation, self.address(0), self.shape, count)

    def _wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        try:
            wait_until(f"{self.name}: {what}", condition)
        except BenchmarkError as exc:
            running = [i for i in range(len(self.processes.addresses)) if self.processes.is_running(i)]
            raise BenchmarkError("\n".join([str(exc), *(self.processes.log(i)[-1500:] for i in running)])) from exc

    def _sees_all(self, i: int) -> bool:
        return alive_members(self.address(i)) == self.replicas


EMPTY_APP: Final = "baseline: empty WSGI app"
MINIMAL_VIEW: Final = "baseline: minimal Django view"


class Baseline(System):
    """A replica's own server without a store behind it: ``kind`` is ``empty`` or ``django`` (baselines.py)."""

    operations = ("get", "put")

    def __init__(self, context: Context, kind: str, port: int) -> None:
        super().__init__(context)
        self.kind, self._port = kind, context.port(port)
        self.name = {"empty": EMPTY_APP, "django": MINIMAL_VIEW}[kind]
        self._pid = 0

    def start(self) -> None:
        command = [sys.executable, "-m", "tools.benchmark.baselines", self.kind, str(self._port)]
        self._pid = self.run(command, lambda: listens(self._port), {"PYTHONPATH": str(REPOSITORY)})

    def pids(self) -> list[int]:
        return [self._pid]

    def load(self, operation: str) -> Load:
        # The same amount of metadata as a session of one replica carries.
        metadata = {f"{_HOST}:{self.context.port(0)}@3440b67b128e88d7": 1000} if self.context.metadata else None
        return loads.causeway(operation, f"{_HOST}:{self._port}", Shape(metadata=metadata))


class Etcd(System):
    """etcd (Debian: etcd-server): three nodes with data in memory; all load goes to the leader's HTTP/JSON gateway."""

    name = "etcd, 3 nodes"
    operations = ("get", "put", "mix")
    nodes = 3

    def __init__(self, context: Context, port: int) -> None:
        super().__init__(context)
        self._program = find_program("etcd", "etcd-server")
        self._ports = [context.port(port + i) for i in range(self.nodes)]
        self._peer_ports = [context.port(port + self.nodes + i) for i in range(self.nodes)]
        self._pids: list[int] = []
        self._leader = ""

    def start(self) -> None:
        programs = [self._start_node(i) for i in range(self.nodes)]
        for program in programs:
            program.wait_ready()
        self._pids = [program.pid for program in programs]
        wait_until("etcd has a leader", self._find_leader)
        self.context.bundled.send_each_once(loads.etcd_fill(self._leader, Shape()))

    def _start_node(self, i: int) -> Program:
        client, peer = (f"http://{_HOST}:{ports[i]}" for ports in (self._ports, self._peer_ports))
        cluster = ",".join(f"n{j}=http://{_HOST}:{port}" for j, port in enumerate(self._peer_ports))
        command = [self._program, "--name", f"n{i}", "--data-dir", str(self.directory / f"n{i}")]
        command += ["--listen-client-urls", client, "--advertise-client-urls", client]
        command += ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
        command += ["--initial-cluster", cluster, "--initial-cluster-state", "new", "--log-level", "error"]
        port = self._ports[i]
        program = Program(command, self.context.cores.servers, self.directory / f"n{i}.log", lambda: listens(port))
        self._cleanup.callback(program.stop)
        return program

    def _find_leader(self) -> bool:
        for port in self._ports:
            status = request_json(f"{_HOST}:{port}", "POST", "/v3/maintenance/status", {}).body
            if status.get("leader") and status["leader"] == status["header"]["member_id"]:
                self._leader = f"{_HOST}:{port}"
                return True
        return False

    def pids(self) -> list[int]:
        return self._pids

    def load(self, operation: str) -> Load:
        return loads.etcd(operation, self._leader, Shape())


class ReplicatedRedis(System):
    """Redis with one replica, without HTTP (Debian: redis-server): a write waits until the replica has it (WAIT)."""

    name = "Redis, 1 replica, WAIT 1"
    operations = ("put",)

    def __init__(self, context: Context, port: int) -> None:
        super().__init__(context)
        self._redis = find_program("redis-server", "redis-server")
        self._ports = [context.port(port), context.port(port + 1)]
        self._pids: list[int] = []

    def start(self) -> None:
        for number, port in enumerate(self._ports):
            command = [self._redis, "--port", str(port), "--bind", _HOST, "--save", "", "--appendonly", "no"]
            command += ["--dir", str(self.directory), "--repl-diskless-sync-delay", "0"]
            if number:
                command += ["--replicaof", _HOST, str(self._ports[0])]
            self._pids.append(self.run(command, lambda port=port: listens(port)))  # type: ignore[misc]
        wait_until("the replica of Redis is online", self._is_online)

    def _is_online(self) -> bool:
        with socket.create_connection((_HOST, self._ports[0]), timeout=5.0) as connection:
            connection.sendall(b"INFO replication\r\n")
            return b"state=online" in connection.recv(65536)

    def pids(self) -> list[int]:
        return self._pids

    def load(self, operation: str) -> Load:
        return loads.redis_wait(f"{_HOST}:{self._ports[0]}", Shape())


class Redis(System):
    """Redis behind an HTTP gateway (Debian: redis-server, webdis): one server, no replication, no persistence."""

    name = "Redis behind webdis"
    operations = ("get", "put", "mix")

    def __init__(self, context: Context, port: int) -> None:
        super().__init__(context)
        self._redis = find_program("redis-server", "redis-server")
        self._webdis = find_program("webdis", "webdis")
        self._port, self._redis_port = context.port(port), context.port(port + 1)
        self._pids: list[int] = []

    def start(self) -> None:
        command = [self._redis, "--port", str(self._redis_port), "--bind", _HOST, "--save", "", "--appendonly", "no"]
        self._pids = [self.run(command, lambda: listens(self._redis_port))]
        settings = {
            "redis_host": _HOST,
            "redis_port": self._redis_port,
            "http_host": _HOST,
            "http_port": self._port,
            "threads": 1,
            "pool_size": 4,
            "daemonize": False,
            "websockets": False,
            "verbosity": 0,
            "logfile": str(self.directory / "webdis.log"),
            "acl": [{"enabled": ["GET", "SET"]}],
        }
        path = self.directory / "webdis.json"
        path.write_text(json.dumps(settings), encoding="utf-8")
        self._pids.append(self.run([self._webdis, str(path)], lambda: listens(self._port)))
        self.context.bundled.send_each_once(loads.webdis_fill(f"{_HOST}:{self._port}", Shape()))

    def pids(self) -> list[int]:
        return self._pids

    def load(self, operation: str) -> Load:
        return loads.webdis(operation, f"{_HOST}:{self._port}", Shape())
