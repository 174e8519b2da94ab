"""A full replica whose exports nobody reads while clients overwrite everything (contract 6). Uses a real process."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from kvsite.cluster import LocalCluster
from store.address import split_address
from store.api.exports import MAX_EXPORTS
from tests.conftest import ClusterFactory
from tests.support.full_replica import MIB, fill, peak_mib
from tests.support.http import send_request

pytestmark = [pytest.mark.processes, pytest.mark.linux]

DATA_MIB = 96

MALLOC = {"MALLOC_MMAP_THRESHOLD_": 128 * 1024}
"""Let the allocator of glibc return each freed value at once: its arenas grow by different amounts from run to run."""


@contextmanager
def unread_exports(cluster: LocalCluster) -> Iterator[None]:
    """Begin as many exports as may be in progress, and read nothing of them."""
    address = cluster.addresses[0]
    with ExitStack() as stack:
        for _ in range(MAX_EXPORTS):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(split_address(address))
            connection.sendall(f"GET /export HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
        yield


def test_unread_exports_keep_little_of_what_is_overwritten(cluster: ClusterFactory) -> None:
    """A replica with a shallow copy of its data for each export would need the data twice."""
    made = cluster(1, KV_MAX_MEMORY=DATA_MIB * MIB, KV_MAX_LOG_BYTES=MIB, KV_MAX_RESPONSE_BYTES=2 * MIB, **MALLOC)
    address = made.addresses[0]
    fill(made)
    keys = send_request(address, "GET", "/kvs?limit=1000").body["keys"]
    assert len(keys) > 80

    def overwrite_all(letter: str) -> int:
        """Overwrite every value, the last key first. Return the peak of the memory."""
        for key in reversed(keys):
            assert send_request(address, "PUT", f"/kvs/{key}", {"value": letter * (MIB - 100)}).status == 200
        return peak_mib(made)

    before = overwrite_all("a")
    with unread_exports(made):
        assert send_request(address, "GET", "/export?prefix=none").status == 503
        after = overwrite_all("b")
        assert send_request(address, "GET", "/healthz").took_s < 2
    assert after < before + DATA_MIB // 3, "the cuts may keep 8 MiB each"


@pytest.mark.slow
def test_with_exports_and_many_writers_the_documented_pod_stays_well_below_its_limit(cluster: ClusterFactory) -> None:
    """Contract 6: KV_MAX_MEMORY of 512 MiB in a container with 1280 MiB. docs/memory.md has what was measured.

    Clients replace values by ones of other lengths, so that freed memory does not fit.
    """
    made = cluster(1, KV_MAX_MEMORY=512 * MIB)
    address = made.addresses[0]
    keys = [f"key{n:05}" for n in range(fill(made))]
    lengths = random.Random(7)

    def replace(key: str) -> int:
        value = "v" * int(MIB ** lengths.uniform(0.8, 0.999))
        more = [{"key": f"{key}/{n}", "value": value[: len(value) // 8]} for n in range(4)]
        return send_request(address, "POST", "/kvs", {"writes": [{"key": key, "value": value}, *more]}).status

    with ThreadPoolExecutor(64) as clients:
        for _ in range(2):
            assert set(clients.map(replace, keys)) <= {200, 507, 503}
            assert send_request(address, "GET", "/export").status == 200
            with unread_exports(made):
                assert set(clients.map(replace, keys)) <= {200, 507, 503}
    assert peak_mib(made) < 950, f"{peak_mib(made)} MiB"
