"""A full replica whose clients follow the change feed and do not read, or send forged tokens (contract 6).

Uses real processes.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from urllib.request import urlopen

import pytest

from kvsite.cluster import LocalCluster
from store.address import split_address
from store.feed import MAX_UNKNOWN_ENTRIES, FeedToken, encode_token
from store.settings import StoreSettings
from tests.conftest import ClusterFactory
from tests.support.full_replica import MIB, fill, peak_mib
from tests.support.http import send_request
from tests.support.waiting import wait_until
from tools.event_stream import opened

pytestmark = [pytest.mark.processes, pytest.mark.linux]

STREAMS, POLLS = StoreSettings().max_streams, StoreSettings().max_watchers


def forged(number: int) -> str:
    """Return a token with as many unknown replicas as a token may name. It is accepted, and its request waits."""
    ids = [f"127.0.0.{n % 250 + 1}:{8000 + n}@{number * 10_000 + n:016x}" for n in range(MAX_UNKNOWN_ENTRIES)]
    clock = dict.fromkeys(ids, 1)
    return encode_token(FeedToken("", clock, dict.fromkeys(ids, 0), 0, "", 0, False, "a", dict.fromkeys(ids, 0), 0))


@contextmanager
def unread(cluster: LocalCluster, requests: Sequence[tuple[str, str]]) -> Iterator[None]:
    """Send each (path, further headers) on a connection of its own, and read nothing."""
    address = cluster.addresses[0]
    with ExitStack() as stack:
        for path, headers in requests:
            connection = stack.enter_context(socket.socket())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(split_address(address))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n".encode())
        yield


def assert_serves(cluster: LocalCluster) -> None:
    """Assert that small requests of others are answered at once."""
    for path in ("/healthz", "/readyz", "/kvs/small"):
        response = send_request(cluster.addresses[0], "GET", path)
        assert response.status == 200, path
        assert response.took_s < 2, path


def check_feeds(cluster: LocalCluster, limit_mib: int) -> None:
    """Send the requests, and assert that the replica serves others and its memory stays below ``limit_mib``."""
    fill(cluster)
    address = cluster.addresses[0]
    assert send_request(address, "DELETE", "/kvs/key00000").status == 200
    assert send_request(address, "PUT", "/kvs/small", {"value": 1}).status == 201
    filled_mib = peak_mib(cluster)
    stream = "Accept: text/event-stream\r\n"
    with unread(cluster, [("/changes", stream)] * STREAMS + [("/changes?wait=60", "")] * POLLS):
        for number in range(3):
            assert_serves(cluster)
            assert send_request(address, "PUT", "/kvs/key00001", {"value": f"{number}" * (MIB - 100)}).status == 200
            time.sleep(0.5)
    report = f"{peak_mib(cluster)} MiB after unread feeds, {filled_mib} MiB before"
    polls = [(f"/changes?wait=60&since={forged(number)}", "") for number in range(POLLS)]
    streams = [("/changes", f"{stream}Last-Event-ID: {forged(number)}\r\n") for number in range(STREAMS)]
    with unread(cluster, polls):
        # Each takes some milliseconds to read and to place, once.
        wait_until(lambda: deferred(cluster) == POLLS, timeout_s=60, what="all places taken")
        with unread(cluster, streams):
            for _ in range(3):
                assert_serves(cluster)
                time.sleep(0.5)
    assert peak_mib(cluster) < limit_mib, f"{peak_mib(cluster)} MiB after forged tokens; {report}"
    wait_until(lambda: follows(cluster), timeout_s=45, what="a place for a stream")


def deferred(cluster: LocalCluster) -> int:
    """Return how many requests wait for their causal past."""
    with urlopen(f"http://{cluster.addresses[0]}/metrics", timeout=20) as response:
        found = re.search(r'requests_waiting\{for="causal past"\} (\S+)', response.read().decode())
    assert found
    return int(float(found[1]))


def follows(cluster: LocalCluster) -> bool:
    """Return whether a client that reads gets a stream, and its first event."""
    try:
        with opened(f"http://{cluster.addresses[0]}", "small", timeout_s=2) as events:
            body = next(events).data
    except OSError:
        return False
    return body is not None and [each["key"] for each in body["changes"]] == ["small"]


def test_unread_feeds_and_forged_tokens_take_little_memory(cluster: ClusterFactory) -> None:
    """With 64 MiB of data: the data, the log, the room for large responses, the waiting requests and the process."""
    made = cluster(1, KV_MAX_MEMORY=64 * MIB, KV_MAX_LOG_BYTES=MIB, KV_MAX_RESPONSE_BYTES=4 * MIB)
    check_feeds(made, limit_mib=64 + 1 + 32 + 450 + 110)


@pytest.mark.slow
def test_with_feeds_the_documented_pod_stays_below_its_limit(cluster: ClusterFactory) -> None:
    """Contract 6: KV_MAX_MEMORY of 512 MiB in a container with 1280 MiB (docs/kubernetes.md)."""
    check_feeds(cluster(1, KV_MAX_MEMORY=512 * MIB), limit_mib=1280)
