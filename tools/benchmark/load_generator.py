"""The bundled load generator (``python -m tools.benchmark.load_generator``).

It reads a task as JSON from standard input, and sends the requests of a file on a fixed number of persistent
connections in one of three modes:

* *closed loop*: each connection sends its next request when it has a response, for a number of seconds;
* *paced*: requests are due at a fixed rate whether responses arrive or not, like those of many independent users. If
  all connections are busy when a request is due, it waits, and its latency counts **from the time at which it was
  due**, not from its sending. Otherwise a server that pauses for a second would receive no requests in that second,
  and the pause would not show (coordinated omission);
* *once*: every request of the file one time, as fast as responses arrive.

The result is JSON on standard output: for each request the time at which it was due (monotonic clock, which all
processes of a Linux machine share) and its latency. The module imports only the standard library and the file format of
``loads``, and its loop is optimised for speed.
"""

from __future__ import annotations

import gc
import json
import select
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tools.benchmark.loads import read_file

GRACE_S: Final = 3.0
"""Wait this long for responses after the last request was due. Requests without a response count with their age."""

RECONNECT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Task:
    """What one run of the load generator sends, read as JSON from standard input.

    ``address``: host and port of the server. ``file``: the requests (``loads``). ``seconds``: how long to send.
    ``rate``: requests per second; None for the closed loop. ``once``: send every request one time.
    ``start``: index of the first request to send. ``redis``: the requests are those of ``loads.redis_wait``.
    """

    address: str
    file: str
    connections: int
    seconds: float
    rate: float | None = None
    once: bool = False
    start: int = 0
    redis: bool = False


@dataclass(slots=True)
class Outcome:
    """The result of a task.

    ``due_s``, ``latency_us``: for each request, in the same order. ``statuses``: HTTP status -> number of responses.
    """

    due_s: list[float] = field(default_factory=list)
    latency_us: list[int] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    broken: int = 0  # connections that broke while they waited for a response
    failure: str = ""  # why the last of these connections broke
    unanswered: int = 0  # requests without a response
    seconds: float = 0.0


class Connection:
    """One connection and its outstanding request, if any."""

    __slots__ = ("buffer", "due_s", "needed", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.needed = 0  # length of the complete response; 0 until its head is complete
        self.due_s = 0.0

    def fileno(self) -> int:
        return self.sock.fileno()

    def receive(self) -> int:
        """Read available data; return the status if the response is complete, else 0. Raises ``OSError``."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.buffer += data
        if not self.needed:
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                return 0
            self.needed = end + 4 + _body_bytes(self.buffer[:end])
        if len(self.buffer) < self.needed:
            return 0
        status = int(self.buffer[9:12])
        self.buffer, self.needed = b"", 0
        return status


class RedisConnection(Connection):
    """A connection to Redis. A request is a SET and a WAIT."""

    __slots__ = ()

    def receive(self) -> int:
        """Return 200 if both replies are here and at least one replica has the value, else 500; 0 if one is missing."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.buffer += data
        if self.buffer.count(b"\r\n") < 2:
            return 0
        is_replicated = self.buffer.startswith(b"+OK\r\n:") and not self.buffer.startswith(b"+OK\r\n:0")
        self.buffer = b""
        return 200 if is_replicated else 500


def _body_bytes(head: bytes) -> int:
    status = head[9:12]
    if status in (b"204", b"304"):
        return 0
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise ConnectionAbortedError("a response without Content-Length")
    end = lower.find(b"\r\n", at + 2)
    return int(lower[at + 17 : end if end >= 0 else None])


class Generator:
    """Runs one task."""

    def __init__(self, task: Task, requests: list[bytes]) -> None:
        self.task, self.requests = task, requests
        self.next = task.start
        self.outcome = Outcome()
        self.free: deque[Connection] = deque()
        self.busy: set[Connection] = set()
        self.reconnect_at_s: list[float] = []  # one time for each broken connection

    def run(self) -> Outcome:
        """Run the task. Raises ``OSError`` if the server is unreachable at the start."""
        try:
            for _ in range(self.task.connections):
                self.free.append(self._connect())
            began_s = time.monotonic()
            if self.task.rate is not None:
                self._paced(self.task.rate, began_s)
            else:
                self._closed(began_s)
            self.outcome.seconds = time.monotonic() - began_s
        finally:
            for connection in (*self.free, *self.busy):
                connection.sock.close()
        return self.outcome

    def _closed(self, began_s: float) -> None:
        end_s = began_s + self.task.seconds
        remaining = len(self.requests) if self.task.once else sys.maxsize
        while True:
            now_s = time.monotonic()
            self._reconnect(now_s)
            sending = now_s < end_s and remaining > 0
            while self.free and sending:
                self._send(self.free.popleft(), time.monotonic())
                remaining -= 1
                sending = remaining > 0
            if not sending and (not self.busy or now_s > end_s + GRACE_S):
                break
            self._receive_responses(0.1)
        self._count_unanswered(deque())

    def _paced(self, rate: float, began_s: float) -> None:
        interval_s, number = 1 / rate, 0
        end_s = began_s + self.task.seconds
        waiting: deque[float] = deque()  # due times of requests that wait for a free connection
        while True:
            now_s = time.monotonic()
            self._reconnect(now_s)
            while (due_s := began_s + number * interval_s) <= now_s and due_s < end_s:
                waiting.append(due_s)
                number += 1
            while waiting and self.free:
                self._send(self.free.popleft(), waiting.popleft())
            if now_s >= end_s and ((not waiting and not self.busy) or now_s > end_s + GRACE_S):
                break
            self._receive_responses(min(max(due_s - time.monotonic(), 0.0), 0.1) if due_s < end_s else 0.1)
        self._count_unanswered(waiting)

    def _send(self, connection: Connection, due_s: float) -> None:
        request = self.requests[self.next % len(self.requests)]
        self.next += 1
        connection.due_s = due_s
        self.busy.add(connection)
        try:
            connection.sock.sendall(request)
        except OSError as exc:
            self._drop(connection, exc)

    def _receive_responses(self, timeout_s: float) -> None:
        # select() instead of epoll(): its timeout has microseconds, and there are few connections.
        if not self.busy:
            time.sleep(timeout_s)
            return
        outcome = self.outcome
        for connection in select.select(self.busy, (), (), timeout_s)[0]:
            try:
                status = connection.receive()
            except OSError as exc:
                self._drop(connection, exc)
                continue
            if status:
                outcome.due_s.append(connection.due_s)
                outcome.latency_us.append(int((time.monotonic() - connection.due_s) * 1e6))
                outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
                self.busy.discard(connection)
                self.free.append(connection)

    def _drop(self, connection: Connection, why: OSError) -> None:
        self.outcome.broken += 1
        self.outcome.failure = str(why)
        self.busy.discard(connection)
        connection.sock.close()
        self.reconnect_at_s.append(time.monotonic() + RECONNECT_S)

    def _reconnect(self, now_s: float) -> None:
        while self.reconnect_at_s and self.reconnect_at_s[0] <= now_s:
            self.reconnect_at_s.pop(0)
            try:
                self.free.append(self._connect())
            except OSError:
                self.reconnect_at_s.append(now_s + RECONNECT_S)

    def _count_unanswered(self, waiting: deque[float]) -> None:
        """Count requests without a response with their age: omitting them would hide the longest latencies."""
        now_s = time.monotonic()
        for due_s in [*waiting, *(connection.due_s for connection in self.busy)]:
            self.outcome.unanswered += 1
            self.outcome.due_s.append(due_s)
            self.outcome.latency_us.append(int((now_s - due_s) * 1e6))

    def _connect(self) -> Connection:
        host, _, port = self.task.address.rpartition(":")
        sock = socket.create_connection((host, int(port)), timeout=5.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return (RedisConnection if self.task.redis else Connection)(sock)


def main() -> None:
    """Run the task from standard input; write the outcome to standard output."""
    task = Task(**json.load(sys.stdin))
    generator = Generator(task, read_file(Path(task.file)))
    gc.disable()  # A collection would show as latency of the server; the process ends with its task.
    outcome = generator.run()
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
