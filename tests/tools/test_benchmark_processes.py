"""The benchmark with real replicas. Measurements are very short; the tests check their meaning, not their values."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvsite.cli import MANAGE
from tests.support.waiting import wait_until
from tools.benchmark import acks, costs, streams, throughput, waiting
from tools.benchmark.drivers import Bundled, Wrk
from tools.benchmark.lag import Probe
from tools.benchmark.loads import OPERATIONS, Shape
from tools.benchmark.processes import Cores, cpu_s, lower_priority, pinned, resident_bytes
from tools.benchmark.systems import Causeway, Context, request_json
from tools.paths import REPOSITORY

pytestmark = [pytest.mark.processes, pytest.mark.alone]
PORT = 25100


def context_at(port: int) -> Context:
    cores = Cores.of_machine()
    bundled = Bundled(cores)
    return Context(cores, bundled, bundled, port, rounds=1, seconds=0.2, warm_up_s=0.0, quick=True, full=False)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Causeway]:
    with Causeway(context_at(PORT), 2, 0, Shape(keys=20)) as cluster:
        yield cluster


def test_a_cluster_has_its_keys_and_its_load_carries_metadata_of_all_replicas(cluster: Causeway) -> None:
    assert {name.partition("@")[0] for name in cluster.shape.metadata or {}} == set(cluster.processes.addresses)
    assert [cluster.status(i)["keys"] for i in range(2)] == [21, 21], "20 keys, and the one of the session"
    servers = cluster.context.cores.servers
    assert all(os.sched_getaffinity(pid) == servers for pid in cluster.pids())


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_is_measured(cluster: Causeway, operation: str) -> None:
    done = throughput.sample(cluster.context, cluster, cluster.load(operation))
    assert done.result.requests > 10
    assert done.result.errors == 0
    assert 0 < done.result.p50_ms <= done.result.p99_ms < 5000
    # CPU time has a resolution of 10 ms, and the measurement takes 0.2 s: only the order of magnitude is checked.
    assert 0 <= done.cpu_us < 100_000


def test_acknowledged_writes_and_the_memory_of_waiting_ones_are_measured() -> None:
    figures = {figure.name: figure.value for figure in acks.measure(context_at(PORT + 100), [])}
    assert set(figures) == {
        "PUT, w majority, 1 connection: Causeway, 3 replicas",
        "PUT, w majority, 16 connections: Causeway, 3 replicas",
        "90 % GET, 10 % PUT w majority, 16 connections: Causeway, 3 replicas",
        "one write until every replica shows it, p50",
        "one write until every replica shows it, p99",
        "Python client, one session: GET",
        "Python client, one session: PUT",
        "Python client, one session: PUT w majority",
        "memory per write that waits for acks",
    }
    assert min(figures.values()) > 0


def test_writes_beside_all_waiting_requests_are_measured() -> None:
    figures = {figure.name: figure.value for figure in waiting.measure(context_at(PORT + 200))}
    assert min(figures.values()) > 0
    ratio = figures["p50 of PUT at half load, all places taken"] / figures["p50 of PUT at half load, nothing waits"]
    assert figures["p50 with all places taken, relative"] == pytest.approx(ratio)


def test_followers_and_writes_beside_event_streams_are_measured() -> None:
    figures = {figure.name: figure.value for figure in streams.measure(context_at(PORT + 500))}
    behind = figures.pop("lag of a follower above that of a watch")
    assert min(figures.values()) > 0
    assert behind == pytest.approx(figures["lag of a follower, p50"] - figures["lag beside the streams, p50"])


def test_wrk_and_the_bundled_client_send_the_same_requests(cluster: Causeway) -> None:
    before = cluster.metrics(0)
    measured = Wrk(cluster.context.cores).run(cluster.load("mix"), 4, 1.0)
    after = cluster.metrics(0)
    assert measured.errors == 0
    assert 0 < measured.p50_ms <= measured.p99_ms
    counted = {
        name: after[name] - before.get(name, 0.0) for name in after if name.startswith("causeway_requests_total")
    }
    puts = sum(count for name, count in counted.items() if 'operation="put"' in name)
    gets = sum(count for name, count in counted.items() if 'operation="get"' in name)
    # The server also counts the requests in flight at the end.
    assert measured.requests <= puts + gets <= measured.requests + 8
    assert puts == pytest.approx((puts + gets) / 10, abs=4)


def test_a_paced_load_keeps_its_rate_during_a_measurement_of_the_lag(cluster: Causeway) -> None:
    with cluster.context.bundled.start_paced(cluster.load("put"), 100.0, 1.0, 4) as running:
        lags = Probe([cluster.address(0), cluster.address(1)]).run(0.5)
        result = running.result()
    assert (len(result.due_s), result.errors) == (100, 0)
    assert len(lags) >= 5
    assert all(0 < lag < 10 for lag in lags)


def test_the_bytes_of_replicating_an_update_are_measured(cluster: Causeway) -> None:
    bytes_, _, exchanges = costs._cost_of_updates(cluster.context, cluster, rate=50.0)
    # Two messages with a clock each, and an update.
    assert 100 < bytes_ < 5000
    assert 0 < exchanges < 3


def test_forged_members_lengthen_the_clock() -> None:
    with costs._ManyMembers(context_at(PORT + 10), 0, 30) as cluster:
        assert len(cluster.shape.metadata or {}) == 30
        reply = request_json(
            cluster.address(0), "PUT", "/kvs/a", {"value": 1, "causal-metadata": cluster.shape.metadata}
        )
        assert reply.status == 201
        assert len(reply.body["causal-metadata"]) == 30


def test_the_ablation_has_no_causality() -> None:
    with Causeway(context_at(PORT + 20), 1, 0, Shape(keys=5), ablated=True) as ablation:
        past = {"nobody@0000000000000001": 7}
        put = request_json(ablation.address(0), "PUT", "/kvs/a", {"value": 1, "causal-metadata": past})
        got = request_json(ablation.address(0), "GET", "/kvs/a")
        assert (put.status, put.body) == (201, {"result": "created"})
        assert (got.status, got.body) == (200, {"result": "found", "value": 1})
        assert "x-causal-metadata" not in {name.lower() for name in got.headers}
        assert throughput.sample(ablation.context, ablation, ablation.load("put")).result.errors == 0


def test_a_session_leader_with_lower_priority_takes_no_cpu_time_from_others() -> None:
    busy = [sys.executable, "-c", "import time\nend = time.monotonic() + 20\nwhile time.monotonic() < end: pass"]
    with pinned(sorted(os.sched_getaffinity(0))[-1:]):
        both = [subprocess.Popen(busy, start_new_session=True) for _ in range(2)]
    try:
        lower_priority(both[1].pid)
        before = [cpu_s([process.pid]) for process in both]
        wait_until(lambda: cpu_s([both[0].pid]) - before[0] > 2, timeout_s=20, what="the first one has used 2 s of CPU")
        used = [cpu_s([process.pid]) - then for process, then in zip(both, before, strict=True)]
    finally:
        for process in both:
            process.kill()
            process.wait()
    assert used[1] < used[0] / 3, used


def test_an_interrupted_benchmark_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, str(MANAGE), "benchmark", "--quick", "--only", "get", "--driver", "bundled"]
    # A process in the background of a shell ignores SIGINT, and its children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*command, "--base-port", str(PORT + 100)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    signal.signal(signal.SIGINT, before)
    assert process.stdout is not None
    assert "Causeway, 1 replica" in process.stdout.readline()
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: children.read_text().split(), what="a replica was started")
    started = [int(pid) for pid in children.read_text().split()]

    def is_listening() -> bool:
        with socket.create_connection(("127.0.0.1", PORT + 100), timeout=1):
            return True

    wait_until(is_listening, what="the replica listens")
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "interrupted" in out
    for pid in started:
        with pytest.raises((ProcessLookupError, FileNotFoundError)):
            resident_bytes(pid)
