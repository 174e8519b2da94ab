"""A full replica whose exports nobody reads while clients overwrite everything (contract 6). Uses a real process."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest

from store.address import split_address
from store.api.exports import MAX_EXPORTS
from tests.conftest import ClusterFactory
from tests.support.full_replica import MIB, fill, peak_mib
from tests.support.http import send_request

pytestmark = [pytest.mark.processes, pytest.mark.linux]

DATA_MIB = 96

MALLOC = {"MALLOC_MMAP_THRESHOLD_": 128 * 1024}
"""Let the allocator of glibc return each freed value at once: its arenas grow by different amounts from run to run."""


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
    with ExitStack() as stack:
        for _ in range(MAX_EXPORTS):
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(split_address(address))
            connection.sendall(f"GET /export HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
            assert connection.recv(12) == b"HTTP/1.1 200"
        assert send_request(address, "GET", "/export?prefix=none").status == 503
        after = overwrite_all("b")
        assert send_request(address, "GET", "/healthz").took_s < 2
    assert after < before + DATA_MIB // 3, "the cuts may keep 8 MiB each"
