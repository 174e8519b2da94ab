"""The C library's allocator: few arenas, however many threads a replica has. Uses real processes."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from kvsite.cluster import LocalCluster
from kvsite.malloc_arenas import MAX_ARENAS, VARIABLE
from store.address import split_address
from tests.conftest import ClusterFactory
from tests.support.full_replica import thread_count
from tests.support.http import send_request
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.processes, pytest.mark.linux]

HEAP_BYTES = 64 << 20
"""glibc reserves this much address space for a heap of an arena, and begins each at a multiple of it. (The main arena
has no such heap.)"""

WAITING = 40


def heaps(cluster: LocalCluster) -> int:
    """Return how many heaps the arenas of replica 0 have: a used part, and the reserved rest behind it."""
    found = 0
    used_from = used_to = 0
    for line in Path(f"/proc/{cluster.pid(0)}/maps").read_text(encoding="ascii").splitlines():
        begin, end = (int(address, 16) for address in line.split()[0].split("-"))
        access, is_anonymous = line.split()[1], len(line.split()) == 5
        if is_anonymous and access == "rw-p":
            used_from, used_to = begin, end
        elif is_anonymous and access == "---p" and begin == used_to and end % HEAP_BYTES == 0:
            # The kernel joins a heap with the mapping in front of it, so ``used_from`` may be lower than its begin.
            found += used_from <= end - HEAP_BYTES
    return found


def wait_in_threads(cluster: LocalCluster, stack: ExitStack) -> None:
    """Let ``WAITING`` requests wait, each in a thread of its own."""
    address = cluster.addresses[0]
    etag = send_request(address, "PUT", "/kvs/watched", {"value": 1}).etag
    for _ in range(WAITING):
        connection = stack.enter_context(socket.create_connection(split_address(address), 10))
        head = f"GET /kvs/watched?wait=60 HTTP/1.1\r\nHost: {address}\r\nIf-None-Match: {etag}\r\n\r\n"
        connection.sendall(head.encode())
    wait_until(lambda: thread_count(cluster) > WAITING, timeout_s=30, what="threads")


def test_many_threads_share_few_arenas(cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    made = cluster(1)
    with ExitStack() as stack:
        wait_in_threads(made, stack)
        assert heaps(made) < MAX_ARENAS


def test_the_variable_of_the_c_library_takes_precedence(
    cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It also shows that the test above can count them."""
    monkeypatch.setenv(VARIABLE, "20")
    made = cluster(1)
    with ExitStack() as stack:
        wait_in_threads(made, stack)
        wait_until(lambda: heaps(made) > MAX_ARENAS, timeout_s=30, what="arenas")
