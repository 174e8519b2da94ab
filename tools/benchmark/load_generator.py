"""The bundled load generator (``python -m tools.benchmark.load_generator``). Its task is JSON on standard input.

It sends the requests of a file over a number of kept connections, in one of three ways:

* *closed loop*: each connection sends its next request when it has its answer, for so many seconds;
* *paced*: at a fixed rate whether answers come or not, as many users would. A request whose time has come while all
  connections are busy waits, and its latency counts **from the time at which it was due**, not from its sending:
  otherwise a server that stands still for a second would be asked nothing in that second, and the second would not be
  seen (coordinated omission);
* *once*: every request of the file one time, as fast as answers come.

The result is JSON on standard output: for each request when it was due (monotonic clock, which all processes of a Linux
machine share) and its latency. It imports nothing but the standard library, and its loop is written for speed.
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
"""How long answers are waited for after the last request was due. What is not answered then counts as so late."""

RECONNECT_S: Final = 0.05


@dataclass(frozen=True, slots=True)
class Task:
    """What to do. ``rate``: requests a second, None for the closed loop; ``start``: where in the file to begin."""

    address: str
    file: str
    connections: int
    seconds: float
    rate: float | None = None
    once: bool = False
    start: int = 0


@dataclass(slots=True)
class Outcome:
    """What came of it. ``due_s``, ``latency_us``: of each request, in step. ``statuses``: HTTP status -> answers."""

    due_s: list[float] = field(default_factory=list)
    latency_us: list[int] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    broken: int = 0  # connections that broke with a request under way
    failure: str = ""  # why the last of them did
    unanswered: int = 0
    seconds: float = 0.0


class Connection:
    """One connection and the request under way on it, if any."""

    __slots__ = ("buffer", "due_s", "needed", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.buffer = b""
        self.needed = 0  # length of the whole answer, 0 while its head is not complete
        self.due_s = 0.0

    def fileno(self) -> int:
        return self.sock.fileno()

    def receive(self) -> int:
        """Take in what has come; return the status when the answer is complete, else 0. Raises ``OSError``."""
        data = self.sock.recv(65536)
        if not data:
            raise ConnectionResetError("closed by the server")
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


def _body_bytes(head: bytes) -> int:
    status = head[9:12]
    if status in (b"204", b"304"):
        return 0
    lower = head.lower()
    at = lower.find(b"\r\ncontent-length:")
    if at < 0:
        raise ConnectionAbortedError("an answer without Content-Length")
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
        self.lost: list[float] = []  # when to connect again, for each connection that broke

    def run(self) -> Outcome:
        """Do it. Raises ``OSError`` where there is no server at the start."""
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
        left = len(self.requests) if self.task.once else sys.maxsize
        while True:
            now_s = time.monotonic()
            self._reconnect(now_s)
            goes_on = now_s < end_s and left > 0
            while self.free and goes_on:
                self._send(self.free.popleft(), time.monotonic())
                left -= 1
                goes_on = left > 0
            if not goes_on and (not self.busy or now_s > end_s + GRACE_S):
                break
            self._take_answers(0.1)
        self._give_up(deque())

    def _paced(self, rate: float, began_s: float) -> None:
        interval_s, number = 1 / rate, 0
        end_s = began_s + self.task.seconds
        waiting: deque[float] = deque()  # due, but all connections are busy
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
            self._take_answers(min(max(due_s - time.monotonic(), 0.0), 0.1) if due_s < end_s else 0.1)
        self._give_up(waiting)

    def _send(self, connection: Connection, due_s: float) -> None:
        request = self.requests[self.next % len(self.requests)]
        self.next += 1
        connection.due_s = due_s
        self.busy.add(connection)
        try:
            connection.sock.sendall(request)
        except OSError as exc:
            self._break(connection, exc)

    def _take_answers(self, timeout_s: float) -> None:
        # select() and not epoll(): its timeout counts microseconds, and sixteen connections are few.
        if not self.busy:
            time.sleep(timeout_s)
            return
        outcome = self.outcome
        for connection in select.select(self.busy, (), (), timeout_s)[0]:
            try:
                status = connection.receive()
            except OSError as exc:
                self._break(connection, exc)
                continue
            if status:
                outcome.due_s.append(connection.due_s)
                outcome.latency_us.append(int((time.monotonic() - connection.due_s) * 1e6))
                outcome.statuses[status] = outcome.statuses.get(status, 0) + 1
                self.busy.discard(connection)
                self.free.append(connection)

    def _break(self, connection: Connection, why: OSError) -> None:
        self.outcome.broken += 1
        self.outcome.failure = str(why)
        self.busy.discard(connection)
        connection.sock.close()
        self.lost.append(time.monotonic() + RECONNECT_S)

    def _reconnect(self, now_s: float) -> None:
        while self.lost and self.lost[0] <= now_s:
            self.lost.pop(0)
            try:
                self.free.append(self._connect())
            except OSError:
                self.lost.append(now_s + RECONNECT_S)

    def _give_up(self, waiting: deque[float]) -> None:
        """What is not answered by now counts with the time that it has waited: to leave it out would be to hide it."""
        now_s = time.monotonic()
        for due_s in [*waiting, *(connection.due_s for connection in self.busy)]:
            self.outcome.unanswered += 1
            self.outcome.due_s.append(due_s)
            self.outcome.latency_us.append(int((now_s - due_s) * 1e6))

    def _connect(self) -> Connection:
        host, _, port = self.task.address.rpartition(":")
        sock = socket.create_connection((host, int(port)), timeout=5.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Connection(sock)


def main() -> None:
    """Run the task on standard input."""
    task = Task(**json.load(sys.stdin))
    generator = Generator(task, read_file(Path(task.file)))
    gc.disable()  # Bounded by the task's seconds, and a collection would show as the server's latency.
    outcome = generator.run()
    json.dump(asdict(outcome), sys.stdout)


if __name__ == "__main__":
    main()
