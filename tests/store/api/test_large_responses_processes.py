"""Memory of a full replica, a real process, while clients do not read large responses (contract 6)."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from causeway_client import Session
from kvsite.cli import MANAGE
from kvsite.cluster import LocalCluster
from store.address import split_address
from store.api.large_responses import MAX_IN_PROGRESS
from tests.conftest import ClusterFactory
from tests.support.full_replica import MIB, VALUE_BYTES, fill, peak_mib
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.linux]

LISTING = "/kvs?values=true&limit=1000"


@contextlib.contextmanager
def unread(cluster: LocalCluster, path: str, count: int) -> Iterator[None]:
    """Send ``count`` requests, each on a connection of its own, and do not read the responses."""
    host, port = split_address(cluster.addresses[0])
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, port))
            connection.sendall(request)
        yield


def get(cluster: LocalCluster, path: str, timeout_s: float = 10) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*split_address(cluster.addresses[0]), timeout=timeout_s)
    with contextlib.closing(connection):
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def assert_serves(cluster: LocalCluster, key: str) -> None:
    """Assert that small requests of others are answered at once."""
    began_s = time.monotonic()
    assert get(cluster, "/healthz")[0] == get(cluster, "/readyz")[0] == get(cluster, f"/kvs/{key}")[0] == 200
    assert time.monotonic() - began_s < 5


def export(cluster: LocalCluster) -> int:
    """Run the export of docs/operations.md. Return the number of its lines."""
    command = [sys.executable, str(MANAGE), "kvs", "list", "--values", "--at", cluster.addresses[0]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KV_")}
    done = subprocess.run(command, capture_output=True, check=True, env=environment, timeout=120)
    return done.stdout.count(b"\n")


def check_bounds(cluster: LocalCluster, limit_mib: int, connections: int) -> None:
    """Send the requests that once ended a replica, and assert that its memory stays below ``limit_mib``."""
    count = fill(cluster)
    with Session(cluster.addresses) as session:
        session.put("key00000", "small")
    filled_mib = peak_mib(cluster)
    with unread(cluster, LISTING, 1):
        time.sleep(0.5)
        with unread(cluster, LISTING, 2):
            time.sleep(0.5)
            assert_serves(cluster, "key00000")
    with unread(cluster, LISTING, connections), unread(cluster, "/kvs/key00001", connections):
        # Large responses of others wait until the stalled ones give way; small ones are not affected at all.
        for _ in range(3):
            assert_serves(cluster, "key00000")
            time.sleep(0.3)
        wait_until(lambda: get(cluster, "/kvs/key00002")[0] == 200, timeout_s=20, what="a large response")
    assert export(cluster) == count
    assert peak_mib(cluster) < limit_mib, f"it had {filled_mib} MiB before the requests"


def test_unread_and_large_responses_take_little_memory(cluster: ClusterFactory) -> None:
    """A replica with 64 MiB of data: at most the data, the log, the budget and what a process takes."""
    made = cluster(1, KV_MAX_MEMORY=64 * MIB, KV_MAX_LOG_BYTES=MIB, KV_MAX_RESPONSE_BYTES=4 * MIB)
    check_bounds(made, limit_mib=64 + 1 + 32 + 110, connections=100)


@pytest.mark.slow
def test_the_documented_pod_stays_below_its_limit(cluster: ClusterFactory) -> None:
    """Contract 6: KV_MAX_MEMORY of 512 MiB in a container with 1280 MiB (docs/kubernetes.md)."""
    check_bounds(cluster(1, KV_MAX_MEMORY=512 * MIB), limit_mib=1280, connections=500)


@pytest.mark.slow
def test_a_connection_whose_client_does_not_read_is_closed(cluster: ClusterFactory) -> None:
    """Otherwise it would hold a thread, and with enough of them nobody would get a large response."""
    made = cluster(1)

    def sockets() -> int:
        names = [str(each.readlink()) for each in Path(f"/proc/{made.pid(0)}/fd").iterdir()]
        return sum(name.startswith("socket:") for name in names)

    with Session(made.addresses) as session:
        session.put("large", "v" * VALUE_BYTES)
        served = sockets()
    wait_until(lambda: sockets() < served, timeout_s=5)
    idle = sockets()
    with unread(made, "/kvs/large", 5):
        wait_until(lambda: sockets() >= idle + 5, timeout_s=5)
        wait_until(lambda: sockets() <= idle, timeout_s=30)


@contextlib.contextmanager
def trickling(cluster: LocalCluster, path: str, count: int) -> Iterator[None]:
    """Read ``count`` large responses, each 4 KiB ten times a second."""
    host, port = split_address(cluster.addresses[0])
    request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode()
    ended = threading.Event()

    def read(connections: list[socket.socket]) -> None:
        while not ended.wait(0.1):
            for connection in connections:
                with contextlib.suppress(OSError):  # closed, or nothing to read
                    connection.recv(4096, socket.MSG_DONTWAIT)

    with contextlib.ExitStack() as stack:
        connections = []
        for _ in range(count):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, port))
            connection.sendall(request)
            connections.append(connection)
        reader = threading.Thread(target=read, args=(connections,))
        reader.start()
        try:
            yield
        finally:
            ended.set()
            reader.join()


@pytest.mark.slow
def test_slow_readers_that_hold_all_places_give_way(cluster: ClusterFactory) -> None:
    """They take something all the time, so their responses never stall. Others are answered within some seconds."""
    made = cluster(1)
    with Session(made.addresses) as session:
        session.put("large", "v" * VALUE_BYTES)
    with trickling(made, "/kvs/large", MAX_IN_PROGRESS):
        wait_until(lambda: large_response_bytes(made) > 60 * MIB, timeout_s=20, what="all places are taken")
        # Longer than a response without progress would take to be aborted: these make progress.
        began_s = time.monotonic()
        wait_until(lambda: get(made, "/kvs/large")[0] == 200, timeout_s=8, what="a large response")
        assert_serves(made, "large")
        assert time.monotonic() - began_s < 10
    assert "read large responses slowly" in made.log(0)


def large_response_bytes(cluster: LocalCluster) -> int:
    url = f"{cluster.url(0)}/metrics"
    text = requests.get(url, timeout=5).text
    return int(float(re.findall(r'large_responses_bytes\{to="clients"\} (\S+)', text)[0]))
