"""Which connections the monitor closes, and what it reads from the kernel."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from kvsite.connections import (
    MANY_CONNECTIONS,
    MIN_PROGRESS_BYTES,
    SLOW_READ_BYTES,
    Connection,
    ConnectionMonitor,
    Kernel,
    ReadMarks,
    Request,
    choose,
    choose_flooding,
    choose_slow,
    update_marks,
)
from store.api.bodies import COUNT_REQUESTS, INTERRUPTED, RECEIVED, Bodies
from tests.support.waiting import wait_until

NOW = 1000.0


def connection(port: int, received: float, sent: float, **fields: Any) -> Connection:
    """A connection whose last data came and went ``received`` and ``sent`` seconds ago."""
    values = {"address": "10.0.0.1", "received_bytes": 100, "sent_segments": 1, **fields}
    return Connection(descriptor=port, port=port, received_s=NOW - received, sent_s=NOW - sent, **values)


def request(received: float, *, is_reading: bool = False, address: str = "10.0.0.1") -> Request:
    return Request(address, NOW - received, is_reading)


def chosen_ports(
    connections: list[Connection], *requests: Request, silence_s: float = 10, capacity: int = 100
) -> list[int]:
    marks = update_marks({}, connections)
    found = choose(connections, requests, marks, now=NOW, silence_s=silence_s, capacity=capacity)
    return sorted(each.port for each in found)


def test_a_connection_that_owes_the_rest_of_a_request_is_closed_after_the_silence() -> None:
    assert chosen_ports([connection(1, received=11, sent=30)]) == [1]
    assert chosen_ports([connection(1, received=9, sent=30)]) == []
    assert chosen_ports([connection(1, received=2, sent=30)], silence_s=1) == [1]


def test_a_connection_that_was_never_answered_owes_at_the_kernels_resolution_too() -> None:
    assert chosen_ports([connection(1, received=11, sent=11, sent_segments=0)]) == [1]


def test_an_idle_connection_stays_open() -> None:
    assert chosen_ports([connection(1, received=30, sent=29.9)]) == []
    assert chosen_ports([connection(1, received=30, sent=30, received_bytes=0, sent_segments=0)]) == []


def test_the_connection_of_a_waiting_request_stays_open() -> None:
    watching = connection(1, received=30, sent=70)
    assert chosen_ports([watching], request(30)) == []
    assert chosen_ports([watching], request(29.5)) == [], "the request may have waited for a thread"
    assert chosen_ports([watching], request(30, address="10.0.0.2")) == [1]
    assert chosen_ports([watching], request(20)) == [1]
    assert chosen_ports([watching], request(30, is_reading=True)) == [1]


def test_a_read_that_stays_blocked_closes_the_connection_that_was_active_when_it_began() -> None:
    """After "100 Continue" a connection looks idle."""
    connections = [connection(1, received=14, sent=14), connection(2, received=30, sent=30)]
    assert chosen_ports(connections, request(14, is_reading=True)) == [1]
    assert chosen_ports(connections, request(11, is_reading=True)) == []
    assert chosen_ports(connections, request(14, is_reading=True), request(14)) == []


def test_the_longest_idle_connections_make_room() -> None:
    connections = [connection(port, received=port, sent=port) for port in range(1, 101)]
    assert chosen_ports(connections, capacity=120) == []
    assert chosen_ports(connections, capacity=100) == list(range(81, 101))
    kept = chosen_ports(connections, request(100), capacity=100)
    assert len(kept) == 20
    assert 100 not in kept, "it waits on purpose"


def test_some_bytes_from_time_to_time_are_no_progress() -> None:
    marks = update_marks({}, [connection(1, received=20, sent=30)])
    marks = update_marks(marks, [connection(1, received=1, sent=30, received_bytes=99 + MIN_PROGRESS_BYTES)])
    assert marks["10.0.0.1", 1].progress_s == NOW - 20
    marks = update_marks(marks, [connection(1, received=0.5, sent=30, received_bytes=100 + MIN_PROGRESS_BYTES)])
    assert marks["10.0.0.1", 1].progress_s == NOW - 0.5
    marks = update_marks(marks, [connection(1, received=0.2, sent=0.3, received_bytes=1200, sent_segments=2)])
    assert marks["10.0.0.1", 1].progress_s == NOW - 0.2
    assert update_marks(marks, []) == {}


def test_a_short_request_that_begins_on_an_idle_connection_is_progress() -> None:
    """Otherwise a client would lose its kept-alive connection if a look falls between its request and the response."""
    idle = connection(1, received=30, sent=29.9)
    begun = connection(1, received=0.01, sent=29.9, received_bytes=idle.received_bytes + 200)
    marks = update_marks(update_marks({}, [idle]), [begun])
    reading = [request(0.01, is_reading=True)]
    assert choose([begun], reading, marks, now=NOW, silence_s=10, capacity=100) == []
    assert choose([begun], [], marks, now=NOW + 11, silence_s=10, capacity=100) == [begun]


def test_only_connections_that_send_too_much_are_flooding() -> None:
    marks = update_marks({}, [connection(1, 5, 9, received_bytes=5000), connection(2, 5, 9, received_bytes=5000)])
    connections = [
        connection(1, 0, 9, received_bytes=6001),
        connection(2, 0, 9, received_bytes=6000),
        connection(3, 0, 9, received_bytes=1001),
        connection(4, 0, 9, received_bytes=1001, address="10.0.0.2"),
        connection(5, 1, 0, received_bytes=1001),
    ]
    assert [each.port for each in choose_flooding(connections, marks, {"10.0.0.1"}, 1000)] == [1, 3]


# -- the kernel -----------------------------------------------------------------------------------------------------

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and TCP_INFO")


@pytest.fixture(params=[socket.AF_INET, socket.AF_INET6])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket, int]]:
    """An accepted socket, its client, and the port that was listened on."""
    host = "127.0.0.1" if request.param == socket.AF_INET else "::1"
    with socket.create_server((host, 0), family=request.param) as listening:
        port = listening.getsockname()[1]
        with closing(socket.create_connection((host, port))) as client:
            accepted, _ = listening.accept()
            with accepted:
                yield accepted, client, port


@on_linux
def test_the_kernel_reports_accepted_connections_only(pair: tuple[socket.socket, socket.socket, int]) -> None:
    accepted, client, port = pair
    client.sendall(b"x" * 1234)
    assert len(accepted.recv(2000)) == 1234
    time.sleep(0.1)
    accepted.sendall(b"y")
    client.recv(1)
    (found,) = Kernel(port).connections()
    assert (found.address, found.port) == client.getsockname()[:2]
    assert (found.descriptor, found.received_bytes, found.sent_segments) == (accepted.fileno(), 1234, 1)
    assert 0.05 < found.sent_s - found.received_s < 1
    assert abs(time.monotonic() - found.sent_s) < 1
    assert not found.owes
    assert Kernel(port + 1).connections() == []


@on_linux
def test_closing_ends_a_read_and_nothing_else(pair: tuple[socket.socket, socket.socket, int]) -> None:
    accepted, client, port = pair
    kernel = Kernel(port)
    (found,) = kernel.connections()
    assert not kernel.close(found._replace(port=1)), "the descriptor belongs to another connection by now"
    assert not kernel.close(found._replace(descriptor=100_000))
    assert kernel.close(found)
    assert accepted.recv(1) == b""
    accepted.sendall(b"a response")
    assert client.recv(20) == b"a response"


@on_linux
def test_the_monitor_interrupts_bodies_without_progress(pair: tuple[socket.socket, socket.socket, int]) -> None:
    accepted, client, port = pair
    client.sendall(b"half")
    accepted.recv(10)
    bodies = Bodies()
    monitor = ConnectionMonitor(bodies, Kernel(port), capacity=100, max_body_bytes=1000, body_timeout_s=0.3)
    environ = {"REMOTE_ADDR": client.getsockname()[0], RECEIVED: time.monotonic()}
    bodies.in_progress[1] = bodies.reading[1] = environ
    monitor.scan(0.3)
    assert INTERRUPTED not in environ

    def closed() -> bool:
        monitor.scan(0.3)
        return INTERRUPTED in environ

    wait_until(closed, timeout_s=5)
    assert accepted.recv(1) == b""


def test_connections_are_counted_each_second_and_after_some_requests() -> None:
    """A client that opens a thousand connections within a second would else keep them all, with their buffers."""

    class Counts(Kernel):
        descriptors = MANY_CONNECTIONS

        def count_descriptors(self) -> int:
            return self.descriptors

    bodies, kernel, time_s, woken = Bodies(), Counts(1), [NOW], []
    monitor = ConnectionMonitor(
        bodies, kernel, capacity=10_000, max_body_bytes=1000, body_timeout_s=10, now=lambda: time_s[0]
    )
    bodies.on_change = lambda: woken.append(True)
    monitor.tick()
    kernel.descriptors += 1
    for _ in range(COUNT_REQUESTS - 1):
        bodies.note_request()
    monitor.tick()
    assert (bodies.has_many_connections, woken) == (False, [])
    bodies.note_request()
    monitor.tick()
    assert (bodies.has_many_connections, woken) == (True, [True])
    kernel.descriptors -= 1
    time_s[0] += 1
    monitor.tick()
    assert not bodies.has_many_connections


def test_slow_readers_are_those_that_take_little_for_two_seconds_although_bytes_are_ready() -> None:
    def look(at_s: float, marks: ReadMarks, **acked: int) -> tuple[list[int], ReadMarks]:
        ports = {"fast": 1, "slow": 2, "idle": 3}
        seen = [
            connection(ports[name], 1, 1, acked_bytes=number, unsent_bytes=0 if name == "idle" else 9)
            for name, number in acked.items()
        ]
        slow, marks = choose_slow(seen, marks, at_s)
        return [each.port for each in slow], marks

    slow, marks = look(0.0, {}, fast=0, slow=0, idle=0)
    assert slow == []
    slow, marks = look(1.9, marks, fast=SLOW_READ_BYTES, slow=100, idle=0)
    assert slow == []
    slow, marks = look(2.1, marks, fast=SLOW_READ_BYTES + 1, slow=200, idle=0)
    assert slow == [2]
    slow, marks = look(4.0, marks, fast=3 * SLOW_READ_BYTES, slow=300, idle=0)
    assert slow == [2]
    assert {port for _, port in marks} == {1, 2}
