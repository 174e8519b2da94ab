"""``/metrics``: the metrics of a real cluster, and the classes that count them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kvsite.cluster import LocalCluster
from kvsite.config import Config
from kvsite.server import build
from replication.api.metrics import MetricsView, registry_of
from replication.exchange_metrics import MAX_ADDRESSES, ExchangeMetrics, first_unapplied
from store.api.context import CONTEXT
from store.api.request import ApiRequest
from store.api.request_metrics import RequestMetrics
from store.causal import CausalStore
from store.clock import Instant
from store.histogram import Histogram
from store.settings import StoreSettings
from store.versions import Update
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def test_a_histogram_counts_observations_per_bound() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 9.0):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    copy = histogram.copy()
    histogram.observe(1.0)
    assert copy.cumulative() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert (copy.sum, histogram.sum) == (14.0, 15.0)


@given(st.lists(st.floats(0, 5) | st.sampled_from((1.0, 2.0))), st.lists(st.floats(0, 5)))
def test_many_observations_at_once_count_as_each_alone(values: list[float], earlier: list[float]) -> None:
    one_by_one, at_once = Histogram((1.0, 2.0)), Histogram((1.0, 2.0))
    for value in [*earlier, *values]:
        one_by_one.observe(value)
    at_once.observe_all(list(earlier))
    at_once.observe_all(list(values))
    assert at_once.counts == one_by_one.counts
    assert at_once.sum == pytest.approx(one_by_one.sum)


def test_request_metrics_count_by_operation_and_status() -> None:
    metrics = RequestMetrics()
    metrics.record("get", 200, 0.001)
    metrics.record("get", 404, 0.002)
    metrics.record("get", 200, 0.003)
    requests_, seconds = metrics.read()
    assert requests_ == {("get", 200): 2, ("get", 404): 1}
    assert sum(seconds["get"].counts) == 3


NOW = Instant(1000.0, 1_700_000_000_000_000)


def test_visibility_lag_counts_only_applied_updates() -> None:
    store, exchange_metrics = CausalStore("a:1@1"), ExchangeMetrics()
    late = Update("b:1@0000000000000001", 1, NOW.wall_us - 250_000, {}, ())
    waiting = Update("c:1@0000000000000001", 2, NOW.wall_us, {}, ())
    assert first_unapplied([late, waiting], store.clock) is late
    store.receive([late, waiting], NOW)
    exchange_metrics.record_visibility(late, store, NOW)
    exchange_metrics.record_visibility(waiting, store, NOW)
    exchange_metrics.record_visibility(None, store, NOW)
    assert exchange_metrics.visibility_lag_s.keys() == {"b:1"}
    assert exchange_metrics.visibility_lag_s["b:1"].sum == pytest.approx(0.25)
    assert first_unapplied([late], store.clock) is None


def test_the_drift_of_a_peers_clock_is_measured() -> None:
    exchange_metrics = ExchangeMetrics()
    exchange_metrics.record_peer_time("b:1@0000000000000001", 3_000_000)
    exchange_metrics.record_peer_time("c:1@0000000000000001", -2_000_000)
    assert exchange_metrics.drift_s == {"b:1": 3.0, "c:1": -2.0}
    assert exchange_metrics.jumped_s == 3.0
    assert exchange_metrics.copy(frozenset({"c:1"})).drift_s == {"c:1": -2.0}


def test_the_number_of_measured_addresses_is_limited() -> None:
    exchange_metrics = ExchangeMetrics()
    for port in range(MAX_ADDRESSES + 10):
        exchange_metrics.record_peer_time(f"b:{port}@0000000000000001", 0)
    assert len(exchange_metrics.drift_s) == MAX_ADDRESSES


def accepts(accept: str) -> tuple[int, str]:
    request = ApiRequest(
        {"REQUEST_METHOD": "GET", "HTTP_ACCEPT": accept, CONTEXT: build(Config(), pytest.fail)}, "/metrics"
    )
    response = MetricsView().respond(request)
    return response.status_code, response.headers["Content-Type"]


FROM_PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4"
)
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", PLAIN),
        ("*/*", PLAIN),
        ("application/openmetrics-text", OPENMETRICS),
        ("text/html, application/openmetrics-text; version=1.0.0; q=0.5", OPENMETRICS),
        (
            FROM_PROMETHEUS,
            OPENMETRICS,
        ),
        *(
            (f"{media_type};{parameters}", PLAIN)
            for media_type in ("application/openmetrics-text", "text/plain")
            for parameters in (
                "version=abc",
                "version=",
                "version=9",
                "version=1.0.0-\xe9",
                "version=1!1;escaping=evil",
            )
        ),
        ("text/plain;version=1.0.0;escaping=evil", PLAIN),
        (",;=,;;;,=", PLAIN),
        ("text/plain;version=" + "9" * 60_000, PLAIN),
    ],
)
def test_any_accept_header_gets_one_of_two_formats(accept: str, content_type: str) -> None:
    status, answered = accepts(accept)
    assert (status, answered.split("; escaping")[0]) == (200, content_type)


@pytest.mark.parametrize("limit_bytes", [0, 123_456_789])
def test_the_limit_of_the_data_is_a_metric_if_there_is_one(limit_bytes: int) -> None:
    config = Config(store=StoreSettings(max_memory_bytes=limit_bytes))
    text = generate_latest(registry_of(build(config, pytest.fail))).decode()
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert found["causeway_data_bytes"] == 0
    assert found.get("causeway_data_limit_bytes", 0) == limit_bytes
    assert ("causeway_data_limit_bytes" in found) == (limit_bytes > 0)


# --- of a real cluster -----------------------------------------------------------------------------------------------

pytest_processes = pytest.mark.processes


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, free_ports(2)) as running:
        yield running


def scrape(cluster: LocalCluster, replica: int) -> Samples:
    response = requests.get(f"{cluster.url(replica)}/metrics", timeout=10)
    assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


@pytest_processes
def test_every_documented_metric_exists(cluster: LocalCluster) -> None:
    """Requests by operation and status, latency histograms, deferred and rejected requests, visibility lag per origin,
    pending updates, log, conflicts, clock lead, states of peers, sizes and failures of exchanges, clock drift."""
    other = cluster.addresses[0]
    before = scrape(cluster, 1)
    for n in range(10):
        requests.put(f"{cluster.url(0)}/kvs/k{n}", json={"value": n, "w": "all"}, timeout=10)
    requests.get(f"{cluster.url(1)}/kvs/k0", timeout=10)
    requests.get(f"{cluster.url(1)}/kvs/none", timeout=10)
    requests.get(f"{cluster.url(1)}/kvs/k0?wait=0.05", json={"causal-metadata": {"nobody": 1}}, timeout=10)
    after = scrape(cluster, 1)

    def grew(name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before.get(key, 0.0)

    assert grew("causeway_requests_total", operation="get", status="200") == 1
    assert grew("causeway_requests_total", operation="get", status="404") == 1
    assert grew("causeway_requests_total", operation="get", status="503") == 1
    assert grew("causeway_request_seconds_count", operation="get") == 3
    assert 0.05 <= grew("causeway_request_seconds_sum", operation="get") < 1
    assert grew("causeway_requests_deferred_total") == grew("causeway_requests_refused_total") == 1
    assert grew("causeway_updates_applied_total") == 10
    assert grew("causeway_keys") == 10
    assert grew("causeway_visibility_lag_seconds_count", origin=other) >= 1
    assert 0 < grew("causeway_visibility_lag_seconds_sum", origin=other) < 5
    assert grew("causeway_exchanges_total", role="answered") > 0
    assert grew("causeway_exchange_bytes_sum", role="answered", direction="received") > 500
    assert after[("causeway_peer_state", (("peer", other), ("state", "alive")))] == 1
    for name in (
        "causeway_pending_updates",
        "causeway_log_updates",
        "causeway_log_bytes",
        "causeway_conflicts",
        "causeway_clock_lead_seconds",
        "causeway_exchange_failures_total",
        "causeway_snapshots_taken_total",
        "causeway_snapshots_given_total",
        "causeway_clock_jumped_seconds_total",
        "causeway_ready",
        "process_resident_memory_bytes",
    ):
        assert (name, ()) in after
    assert ("causeway_clock_drift_seconds", (("peer", other),)) in after


@pytest_processes
def test_openmetrics_on_request(cluster: LocalCluster) -> None:
    accept = {"Accept": "application/openmetrics-text; version=1.0.0"}
    response = requests.get(f"{cluster.url(0)}/metrics", headers=accept, timeout=10)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text")
    assert response.text.endswith("# EOF\n")


@pytest_processes
def test_a_down_peer_has_the_state_down(cluster: LocalCluster) -> None:
    other = cluster.addresses[1]
    cluster.kill(1)
    is_down = ("causeway_peer_state", (("peer", other), ("state", "down")))
    wait_until(lambda: scrape(cluster, 0)[is_down] == 1)
    assert scrape(cluster, 0)[("causeway_exchange_failures_total", ())] >= 1
