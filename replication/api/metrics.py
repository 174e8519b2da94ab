"""``/metrics``: metrics in the formats of Prometheus (docs/api.md says which to watch).

The engine, the node and the request metrics keep the numbers. They become Prometheus metrics only when ``/metrics`` is
read. Names follow prometheus.io/docs/practices/naming.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from replication.api import schema
from replication.api.context import ReplicaContext
from replication.api.views import OPERATING, ReplicaView
from replication.exchange_metrics import ExchangeMetrics
from store.api.rendering import bytes_response
from store.api.request_metrics import RequestMetrics
from store.api.response import ApiResponse
from store.api.schema.building import described
from store.histogram import Histogram

STATES: Final = ("alive", "suspect", "down", "left")


class ReplicaCollector(Collector):
    """Collects the metrics of the replica that ``context`` describes, at each scrape."""

    def __init__(self, context: ReplicaContext) -> None:
        self._context = context

    def collect(self) -> Iterator[Metric]:
        """Yield all metric families."""
        node, engine = self._context.node, self._context.engine
        status, stats, exchange_metrics = node.inspector.status(), engine.stats(), node.inspector.exchange_metrics()
        yield from _requests(self._context.request_metrics, stats)
        streams = len(self._context.streams)
        yield GaugeMetricFamily("causeway_event_streams", "Open event streams of the change feed.", streams)
        yield from _large_responses(self._context)
        yield from _data(status, stats)
        if limit_bytes := engine.max_memory_bytes:
            yield _gauge("causeway_data_limit_bytes", "KV_MAX_MEMORY; absent if there is no limit.", limit_bytes)
        yield from _clocks(status, exchange_metrics)
        yield from _members(status)
        yield from _exchanges(status, exchange_metrics)
        yield from _state(status, is_ready=node.ready)
        yield CounterMetricFamily(
            "causeway_log_lines_dropped",
            "Lines of the log that were dropped because nobody read them in time.",
            self._context.dropped_log_lines(),
        )
        yield CounterMetricFamily(
            "causeway_audit_lines_dropped",
            "Lines of the audit log that were dropped because its file could not be written.",
            self._context.dropped_audit_lines(),
        )

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that a registry does not scrape once to find duplicate names."""
        return ()


def registry_of(context: ReplicaContext) -> CollectorRegistry:
    """Return a registry with the metrics of the replica and of this process."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(ReplicaCollector(context))
    ProcessCollector(registry=registry)
    return registry


class MetricsView(ReplicaView):
    """``/metrics`` (contract 4)."""

    operations = {"GET": "metrics", "HEAD": "metrics"}
    usage = {"GET": OPERATING, "HEAD": OPERATING}

    @described(schema.METRICS)
    def get(self) -> ApiResponse:
        """Return all metrics, as Prometheus text or OpenMetrics."""
        registry = registry_of(self.context)
        if accepts_openmetrics(self.request.environ.get("HTTP_ACCEPT", "")):
            encoded: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
            return bytes_response(200, encoded, openmetrics.CONTENT_TYPE_LATEST)
        return bytes_response(200, generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)


def accepts_openmetrics(header: str) -> bool:
    """Return whether an ``Accept`` header names OpenMetrics 1.0.0, or no version of it.

    prometheus_client chooses a format too. But it raises an exception for a version that is no number, and writes the
    client's text into the response's ``Content-Type``.
    """
    for item in header.split(","):
        media_type, *parameters = (part.strip() for part in item.split(";"))
        versions = [part.partition("=")[2] for part in parameters if part.startswith("version=")]
        if media_type == "application/openmetrics-text" and set(versions) <= {"1.0.0"}:
            return True
    return False


def _requests(metrics: RequestMetrics, stats: Mapping[str, int]) -> Iterator[Metric]:
    requests, seconds = metrics.read()
    total = CounterMetricFamily("causeway_requests", "Requests answered.", labels=["operation", "status"])
    for (operation, status), count in sorted(requests.items()):
        total.add_metric([operation, str(status)], count)
    yield total
    durations = HistogramMetricFamily(
        "causeway_request_seconds", "Time to serve a request, waiting included.", labels=["operation"]
    )
    for operation, histogram in sorted(seconds.items()):
        durations.add_metric([operation], histogram.cumulative(), histogram.sum)
    yield durations
    yield CounterMetricFamily(
        "causeway_requests_deferred", "Requests that had to wait for their causal past.", stats["deferred"]
    )
    # "Rejected" is the word elsewhere. The metrics named ``refused`` keep their names for the dashboards that use them.
    yield CounterMetricFamily(
        "causeway_requests_refused",
        "Requests rejected because their causal past did not arrive in time, or because another one took their place.",
        stats["refused"],
    )
    waiting = GaugeMetricFamily("causeway_requests_waiting", "Requests that wait.", labels=["for"])
    for name, key in (("causal past", "deferred_now"), ("change", "watchers"), ("acks", "ack_waits")):
        waiting.add_metric([name], stats[key])
    yield waiting


def _large_responses(context: ReplicaContext) -> Iterator[Metric]:
    kinds = {
        "clients": context.large_responses,
        "peers": context.large_peer_responses,
        "operators": context.large_operator_responses,
    }
    rejected = CounterMetricFamily("causeway_large_responses_rejected", "Responses without room (503).", labels=["to"])
    aborted = CounterMetricFamily(
        "causeway_large_responses_aborted", "Responses that were aborted in favour of others.", labels=["to"]
    )
    present = GaugeMetricFamily("causeway_large_responses_bytes", "Bytes of the responses in progress.", labels=["to"])
    for kind, responses in kinds.items():
        rejected.add_metric([kind], responses.rejected)
        aborted.add_metric([kind], responses.aborted)
        present.add_metric([kind], responses.bytes)
    yield from (rejected, aborted, present)


def _data(status: Mapping[str, Any], stats: Mapping[str, int]) -> Iterator[Metric]:
    yield _gauge("causeway_keys", "Keys with a value.", stats["keys"])
    yield _gauge("causeway_conflicts", "Keys with several concurrent versions.", stats["conflicts"])
    yield _gauge("causeway_data_bytes", "Estimated size of keys and versions (KV_MAX_MEMORY).", stats["bytes"])
    yield _gauge("causeway_log_updates", "Updates in the log, kept for members that lack them.", stats["log_updates"])
    yield _gauge("causeway_log_bytes", "Estimated size of the log (KV_MAX_LOG_BYTES).", stats["log_bytes"])
    yield _gauge("causeway_pending_updates", "Updates that wait for their causal past.", stats["pending"])
    oldest = max((waiting["since_s"] for waiting in status["pending"]), default=0.0)
    yield _gauge("causeway_pending_oldest_seconds", "How long the oldest pending update has waited.", oldest)
    yield CounterMetricFamily("causeway_updates_applied", "Updates applied, own ones included.", stats["applied"])


def _clocks(status: Mapping[str, Any], exchange_metrics: ExchangeMetrics) -> Iterator[Metric]:
    lag = HistogramMetricFamily(
        "causeway_visibility_lag_seconds",
        "Time from an update's issue until it is visible at this replica; the oldest update of each exchange.",
        labels=["origin"],
    )
    _add(lag, (((origin,), histogram) for origin, histogram in sorted(exchange_metrics.visibility_lag_s.items())))
    yield lag
    yield _gauge("causeway_clock_lead_seconds", "Hybrid clock minus this machine's wall clock.", status["clock_lead_s"])
    drift = GaugeMetricFamily(
        "causeway_clock_drift_seconds",
        "Peer's hybrid clock minus this replica's at the peer's last message; positive if the peer's clock is ahead.",
        labels=["peer"],
    )
    for peer, seconds in sorted(exchange_metrics.drift_s.items()):
        drift.add_metric([peer], seconds)
    yield drift
    yield CounterMetricFamily(
        "causeway_clock_jumped_seconds",
        "Total time by which messages of peers have advanced the hybrid clock.",
        exchange_metrics.jumped_s,
    )


def _members(status: Mapping[str, Any]) -> Iterator[Metric]:
    state = GaugeMetricFamily("causeway_peer_state", "1 for the state that the peer is in.", labels=["peer", "state"])
    contact = GaugeMetricFamily(
        "causeway_peer_contact_age_seconds", "Time since the last sign of life from the peer.", labels=["peer"]
    )
    lacks = GaugeMetricFamily(
        "causeway_peer_missing_updates",
        "Updates that this replica has and the peer is not known to have.",
        labels=["peer"],
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
    refuses = GaugeMetricFamily(
        "causeway_peer_refuses",
        "1 for each live peer that refuses this replica, or is refused by it.",
        labels=["peer", "reason"],
    )
    for refusal in status["refusals"]:
        refuses.add_metric([refusal["address"], refusal["kind"]], 1)
    never_reached = GaugeMetricFamily(
        "causeway_peer_never_reached",
        "1 for each address in VIEW at which no replica has ever answered this one.",
        labels=["peer", "reason"],
    )
    for unreached in status["never_reached"]:
        never_reached.add_metric([unreached["address"], unreached["kind"]], 1)
    yield from (state, contact, lacks, refuses, never_reached)


def _exchanges(status: Mapping[str, Any], exchange_metrics: ExchangeMetrics) -> Iterator[Metric]:
    counts = status["throughput"]
    exchanges = CounterMetricFamily("causeway_exchanges", "Completed exchanges.", labels=["role"])
    exchanges.add_metric(["asked"], counts["exchanges"])
    exchanges.add_metric(["answered"], counts["exchanges_answered"])
    yield exchanges
    yield CounterMetricFamily(
        "causeway_exchange_failures",
        "Exchanges that this replica began and that got no valid reply.",
        counts["exchange_failures"],
    )
    yield CounterMetricFamily(
        "causeway_messages_refused",
        "Messages of peers that were invalid or of an incompatible protocol version.",
        counts["messages_refused"],
    )
    yield CounterMetricFamily(
        "causeway_snapshots_taken",
        "Snapshots, whole and partial, that this replica has pulled from others to the last piece.",
        status["snapshots"]["taken"],
    )
    yield CounterMetricFamily(
        "causeway_snapshots_given",
        "Snapshots, whole and partial, that this replica has sent to others to the last piece.",
        status["snapshots"]["given"],
    )
    seconds = HistogramMetricFamily(
        "causeway_exchange_seconds", "Round-trip time of exchanges that this replica began."
    )
    seconds.add_metric([], exchange_metrics.exchange_s.cumulative(), exchange_metrics.exchange_s.sum)
    yield seconds
    sizes = HistogramMetricFamily("causeway_exchange_bytes", "Size of message bodies.", labels=["role", "direction"])
    _add(sizes, exchange_metrics.message_bytes.items())
    yield sizes


def _state(status: Mapping[str, Any], *, is_ready: bool) -> Iterator[Metric]:
    yield _gauge("causeway_ready", "1 while the replica is ready (/readyz).", float(is_ready))
    yield _gauge("causeway_uptime_seconds", "Time since the process started.", status["uptime_s"])
    info = GaugeMetricFamily(
        "causeway_replica_info",
        "Address, replica id, state and version of this replica.",
        labels=["address", "replica_id", "state", "version"],
    )
    info.add_metric([status["address"], status["replica_id"], status["state"], status["version"]], 1)
    yield info


def _gauge(name: str, documentation: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, documentation, value)


def _add(family: HistogramMetricFamily, histograms: Iterable[tuple[tuple[str, ...], Histogram]]) -> None:
    for labels, histogram in histograms:
        family.add_metric(labels, histogram.cumulative(), histogram.sum)
