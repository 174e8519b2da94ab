"""An empty replica catches up with 20,000 keys while they are written to, and serves no client before it has them."""

from __future__ import annotations

import itertools
import threading
import time

import pytest
import requests

from tests.cluster.support import CATCHING_UP, QUICK
from tests.support.waiting import wait_until
from tools.netns.client import get, readiness, send, status
from tools.netns.cluster import NetnsCluster

KEYS = 20_000
BATCH = 500
VALUE = "x" * 1000


@pytest.mark.parametrize("log_bytes", [1 << 18, 64 << 20], ids=["by snapshot", "by log"])
def test_an_empty_replica_with_20000_keys_to_take_serves_only_when_it_has_them(
    log_bytes: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SPEC P6: /readyz 503 and clients refused before; then everything is there at once."""
    settings = {**QUICK, "KV_MAX_LOG_BYTES": str(log_bytes)}
    with NetnsCluster(2, settings, tmp_path_factory.mktemp("big")) as cluster:
        for start in range(0, KEYS, BATCH):
            writes = [{"key": f"big/{n:05}", "value": f"{n} {VALUE}"} for n in range(start, start + BATCH)]
            assert send(cluster, 0, "POST", "/kvs", {"writes": writes, "w": 2, "w-timeout": 5}).status == 200
        cluster.kill(1)
        stop = threading.Event()
        written: list[str] = []

        def write_on() -> None:
            with requests.Session() as session:
                for n in itertools.count():
                    if stop.is_set():
                        return
                    key = f"on/{n}"
                    assert session.put(f"{cluster.url(0)}/kvs/{key}", json={"value": n}, timeout=5).status_code == 201
                    written.append(key)
                    time.sleep(0.002)

        writer = threading.Thread(target=write_on)
        writer.start()
        try:
            time.sleep(0.1)
            before = len(written)
            cluster.start_one(1)
            refusals = _ask_until_ready(cluster)
            ready = len(written)
            time.sleep(0.3)
        finally:
            stop.set()
            writer.join()
        assert ready > before, "nothing was written while it caught up"
        # By the log it may be quicker than the first question.
        assert refusals or log_bytes > 1 << 20, "it was never seen catching up: make it bigger"
        for n in range(0, KEYS, 371):
            assert get(cluster, 1, f"big/{n:05}").value == f"{n} {VALUE}"
        for key in written[:before]:
            assert get(cluster, 1, key).status == 200
        wait_until(lambda: status(cluster, 1)["keys"] == KEYS + len(written), timeout_s=5)
        took_over = "keys taken over" in cluster.log(1)
        assert took_over or log_bytes > 1 << 20, "the log was to be too short for this"


def _ask_until_ready(cluster: NetnsCluster) -> list[str]:
    """Read keys at the joining replica until it is ready. Every answer is a refusal, or the right value."""
    refusals: list[str] = []
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            code, reason = readiness(cluster, 1)
            reply = get(cluster, 1, f"big/{KEYS - 1}")
        except requests.ConnectionError:
            time.sleep(0.01)  # it does not listen yet
            continue
        if reply.status == 503:
            assert reply.body["error"] == CATCHING_UP
            if code == 503:
                assert CATCHING_UP in reason
                refusals.append(reason)
            continue
        assert reply.value == f"{KEYS - 1} {VALUE}", "it served before it had everything"
        if code == 200:
            return refusals
    raise AssertionError("not ready after 30 s")
