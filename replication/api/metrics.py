"""``/metrics``: everything that a replica counts, as Prometheus reads it (docs/api.md says what to watch).

Nothing here runs but when somebody asks: the numbers lie in the engine, the node and the views' meter anyway, and
become metrics at scrape time. Names follow prometheus.io/docs/practices/naming.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from replication.api import schema
from replication.api.context import node
from replication.exchange_metrics import ExchangeMetrics
from store.api.base import ApiView
from store.api.context import engine
from store.api.rendering import encoded
from store.api.request_metrics import METER
from store.api.schema import described
from store.histogram import Histogram

STATES: Final = ("alive", "suspect", "down", "left")


class ReplicaCollector(Collector):
    """Reads the replica that the views serve, at each scrape."""

    def collect(self) -> Iterator[Metric]:
        """Yield all families."""
        status, stats, exchange_metrics = node().status(), engine().stats(), node().exchange_metrics()
        yield from _requests(stats)
        yield from _data(status, stats)
        yield from _clocks(status, exchange_metrics)
        yield from _members(status)
        yield from _exchanges(status, exchange_metrics)
        yield from _life(status)

    def describe(self) -> Iterable[Metric]:
        """Return nothing: a registry would else scrape once to learn the names, before there is a replica."""
        return ()


REGISTRY: Final = CollectorRegistry(auto_describe=False)
REGISTRY.register(ReplicaCollector())
ProcessCollector(registry=REGISTRY)


class MetricsView(ApiView):
    """``/metrics`` (SPEC 4)."""

    operations = {"GET": "metrics", "HEAD": "metrics"}

    @described(schema.METRICS)
    def get(self, request: HttpRequest) -> HttpResponse:
        """Tell all metrics, as Prometheus text or OpenMetrics."""
        encode, content_type = choose_encoder(self.http.META.get("HTTP_ACCEPT", ""))
        return encoded(200, encode(REGISTRY), content_type)


def _requests(stats: Mapping[str, int]) -> Iterator[Metric]:
    requests, seconds = METER.read()
    total = CounterMetricFamily("causeway_requests", "Requests answered.", labels=["operation", "status"])
    for (operation, status), count in sorted(requests.items()):
        total.add_metric([operation, str(status)], count)
    yield total
    durations = HistogramMetricFamily(
        "causeway_request_seconds", "Time in the replica, waiting included.", labels=["operation"]
    )
    for operation, histogram in sorted(seconds.items()):
        durations.add_metric([operation], histogram.cumulative(), histogram.sum)
    yield durations
    yield CounterMetricFamily(
        "causeway_requests_deferred", "Requests that had to wait for their causal past.", stats["deferred"]
    )
    yield CounterMetricFamily(
        "causeway_requests_refused",
        "Requests refused: causal past not reached in time, or as many waiting as may.",
        stats["refused"],
    )
    waiting = GaugeMetricFamily("causeway_requests_waiting", "Requests that are held now.", labels=["for"])
    for name, key in (("causal past", "deferred_now"), ("change", "watchers"), ("acks", "ack_waits")):
        waiting.add_metric([name], stats[key])
    yield waiting


def _data(status: Mapping[str, Any], stats: Mapping[str, int]) -> Iterator[Metric]:
    yield _gauge("causeway_keys", "Keys that are present.", stats["keys"])
    yield _gauge("causeway_conflicts", "Keys with several concurrent versions.", stats["conflicts"])
    yield _gauge("causeway_data_bytes", "Estimated size of keys and versions (KV_MAX_MEMORY).", stats["bytes"])
    yield _gauge("causeway_log_updates", "Updates kept for members that lack them.", stats["log_updates"])
    yield _gauge("causeway_log_bytes", "Estimated size of these (KV_MAX_LOG_BYTES).", stats["log_bytes"])
    yield _gauge("causeway_pending_updates", "Updates that wait for their causal past.", stats["pending"])
    oldest = max((waiting["since_s"] for waiting in status["pending"]), default=0.0)
    yield _gauge("causeway_pending_oldest_seconds", "For how long the first of them has been waiting.", oldest)
    yield CounterMetricFamily("causeway_updates_applied", "Updates made visible, own ones included.", stats["applied"])


def _clocks(status: Mapping[str, Any], exchange_metrics: ExchangeMetrics) -> Iterator[Metric]:
    lag = HistogramMetricFamily(
        "causeway_visibility_lag_seconds",
        "From an update's issue to its being visible here; the oldest update of each exchange.",
        labels=["origin"],
    )
    _add(lag, (((origin,), histogram) for origin, histogram in sorted(exchange_metrics.visibility_lag_s.items())))
    yield lag
    yield _gauge("causeway_clock_lead_seconds", "Hybrid clock less own wall clock.", status["clock_lead_s"])
    drift = GaugeMetricFamily(
        "causeway_clock_drift_seconds",
        "Peer's hybrid clock less the own one at its last message: above 0 its clock ran ahead.",
        labels=["peer"],
    )
    for peer, seconds in sorted(exchange_metrics.drift_s.items()):
        drift.add_metric([peer], seconds)
    yield drift
    yield CounterMetricFamily(
        "causeway_clock_jumped_seconds",
        "By how much peers have pushed the hybrid clock forward.",
        exchange_metrics.jumped_s,
    )


def _members(status: Mapping[str, Any]) -> Iterator[Metric]:
    state = GaugeMetricFamily("causeway_peer_state", "1 for the state that the peer is in.", labels=["peer", "state"])
    contact = GaugeMetricFamily("causeway_peer_contact_age_seconds", "Since it was last heard of.", labels=["peer"])
    lacks = GaugeMetricFamily(
        "causeway_peer_missing_updates", "Updates here that it is not known to have.", labels=["peer"]
    )
    for member in status["view"]:
        if member["self"]:
            continue
        for name in STATES:
            state.add_metric([member["address"], name], float(member["state"] == name))
        if member["last_contact_s"] is not None:
            contact.add_metric([member["address"]], member["last_contact_s"])
        if member["state"] != "left":
            lacks.add_metric([member["address"]], member["missing_updates"])
    yield from (state, contact, lacks)


def _exchanges(status: Mapping[str, Any], exchange_metrics: ExchangeMetrics) -> Iterator[Metric]:
    counts = status["throughput"]
    exchanges = CounterMetricFamily("causeway_exchanges", "Exchanges that were completed.", labels=["role"])
    exchanges.add_metric(["asked"], counts["exchanges"])
    exchanges.add_metric(["answered"], counts["exchanges_answered"])
    yield exchanges
    yield CounterMetricFamily(
        "causeway_exchange_failures", "Exchanges begun here that brought no reply.", counts["exchange_failures"]
    )
    yield CounterMetricFamily(
        "causeway_messages_refused",
        "Peers' messages that were none of this protocol, or of a version too far away.",
        counts["messages_refused"],
    )
    seconds = HistogramMetricFamily("causeway_exchange_seconds", "Round trips begun here.")
    seconds.add_metric([], exchange_metrics.exchange_s.cumulative(), exchange_metrics.exchange_s.sum)
    yield seconds
    sizes = HistogramMetricFamily("causeway_exchange_bytes", "Bodies of messages.", labels=["role", "direction"])
    _add(sizes, exchange_metrics.message_bytes.items())
    yield sizes


def _life(status: Mapping[str, Any]) -> Iterator[Metric]:
    yield _gauge("causeway_ready", "1 while clients are served.", float(node().ready))
    yield _gauge("causeway_uptime_seconds", "Since the process started.", status["uptime_s"])
    who = GaugeMetricFamily("causeway_replica_info", "Who this is.", labels=["address", "replica_id", "state"])
    who.add_metric([status["address"], status["replica_id"], status["state"]], 1)
    yield who


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value)


def _add(family: HistogramMetricFamily, histograms: Iterable[tuple[tuple[str, ...], Histogram]]) -> None:
    for labels, histogram in histograms:
        family.add_metric(labels, histogram.cumulative(), histogram.sum)
