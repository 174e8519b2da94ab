"""An empty replica catches up with 20,000 keys under load, and serves no client before it has all of them."""

from __future__ import annotations

import itertools
import threading

import pytest
import requests

from tests.cluster.support import CATCHING_UP
from tests.support.waiting import wait_until
from tools.netns.client import get, readiness, send, status
from tools.netns.cluster import NetnsCluster
from tools.netns.quick import QUICK

KEYS = 20_000
BATCH = 500
VALUE = "x" * 1000


@pytest.mark.parametrize("log_bytes", [1 << 18, 64 << 20], ids=["by-snapshot", "by-log"])
def test_an_empty_replica_serves_only_after_it_has_all_20000_keys(
    log_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Contract P6: until it has all keys, /readyz returns 503 and it rejects clients."""
    settings = {**QUICK, "KV_MAX_LOG_BYTES": str(log_bytes)}
    with NetnsCluster(2, settings, tmp_path_factory.mktemp("big")) as cluster:
        for start in range(0, KEYS, BATCH):
            writes = [{"key": f"big/{n:05}", "value": f"{n} {VALUE}"} for n in range(start, start + BATCH)]
            assert send(cluster, 0, "POST", "/kvs", {"writes": writes, "w": 2, "w-timeout": 5}).status == 200
        cluster.kill(1)
        stop = threading.Event()
        written: list[str] = []

        def keep_writing() -> None:
            with requests.Session() as session:
                for n in itertools.count():
                    if stop.wait(0.002):
                        return
                    key = f"on/{n}"
                    assert session.put(f"{cluster.url(0)}/kvs/{key}", json={"value": n}, timeout=5).status_code == 201
                    written.append(key)

        writer = threading.Thread(target=keep_writing)
        writer.start()
        try:
            wait_until(lambda: len(written) >= 20)
            before = len(written)
            cluster.start_one(1)
            rejections = read_until_ready(cluster)
            ready = len(written)
            wait_until(lambda: len(written) >= ready + 20)
        finally:
            stop.set()
            writer.join()
        assert ready > before, "nothing was written while it caught up"
        # Catching up by the log may take less time than the first request.
        assert rejections or log_bytes > 1 << 20, "no request met the replica while it caught up: use more keys"
        for n in range(0, KEYS, 371):
            assert get(cluster, 1, f"big/{n:05}").value == f"{n} {VALUE}"
        for key in written[:before]:
            assert get(cluster, 1, key).status == 200
        wait_until(lambda: status(cluster, 1)["keys"] == KEYS + len(written), timeout_s=5)
        took_snapshot = "keys taken over" in cluster.log(1)
        assert took_snapshot or log_bytes > 1 << 20, "the log should have been too short"


def read_until_ready(cluster: NetnsCluster) -> list[str]:
    """Read a key at the joining replica until it is ready; return the reasons of its rejections.

    Fails if a response is neither a rejection nor the right value.
    """
    rejections: list[str] = []

    def is_ready() -> bool:
        code, reason = readiness(cluster, 1)
        response = get(cluster, 1, f"big/{KEYS - 1}")
        if response.status == 503:
            assert response.body["error"] == CATCHING_UP
            if code == 503:
                assert CATCHING_UP in reason
                rejections.append(reason)
            return False
        assert response.value == f"{KEYS - 1} {VALUE}", "it served before it had everything"
        return code == 200

    wait_until(is_ready, timeout_s=30, every_s=0.01)
    return rejections
