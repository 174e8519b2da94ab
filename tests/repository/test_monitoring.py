"""deploy/monitoring: rules and dashboard name only what a replica's /metrics has, and each alert has a test.

`make monitoring` lets Prometheus's own tools and a Prometheus judge the same files (tests/monitoring).
"""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from kvsite.config import Config
from kvsite.server import build
from replication.api.metrics import MetricsView, ReplicaCollector
from store.api.context import CONTEXT
from store.api.request import ApiRequest
from store.settings import StoreSettings
from tests.repository.test_docs import anchors
from tests.support.monitoring import (
    CONFIGURATION,
    RULE_TESTS,
    RULES,
    Selector,
    dashboard,
    dashboard_expressions,
    names_in,
    panels,
    rules,
)
from tools.paths import REPOSITORY

OF_PROMETHEUS = {"up": frozenset[str](), "ALERTS": frozenset({"alertname", "alertstate"})}
"""Metrics that Prometheus itself makes: at each scrape, and for each alert."""

OF_TARGETS = frozenset({"job", "instance"})
"""Labels that Prometheus adds to each metric of a target."""

SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("",), "gauge": ("",)}


@cache
def known() -> dict[str, frozenset[str]]:
    """Return metric -> its labels, of all metrics in a replica's response to GET /metrics."""
    # With a limit: some metrics exist only then.
    context = build(Config(store=StoreSettings(max_memory_bytes=1_000_000)), pytest.fail)
    response = MetricsView().respond(ApiRequest({"REQUEST_METHOD": "GET", CONTEXT: context}, "/metrics"))
    assert response.status_code == 200
    assert isinstance(response.body, bytes)
    labels = {family.name: frozenset(family._labelnames) for family in ReplicaCollector(context).collect()}  # type: ignore[attr-defined]
    found = dict(OF_PROMETHEUS)
    for family in text_string_to_metric_families(response.body.decode()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        for suffix in SUFFIXES[family.type]:
            found[name + suffix] = labels.get(family.name, frozenset()) | (
                {"le"} if suffix == "_bucket" else frozenset()
            )
    return found


EXPRESSIONS = [
    *((rule["alert"], rule["expr"], str(rule["annotations"])) for rule in rules()),
    *dashboard_expressions(),
]


@pytest.mark.parametrize(
    ("expression", "text"), [each[1:] for each in EXPRESSIONS], ids=[each[0] for each in EXPRESSIONS]
)
def test_every_metric_and_label_exists_at_a_replica(expression: str, text: str) -> None:
    """``text``: a legend, or the annotations of an alert, which name labels of the result."""
    names = names_in(expression)
    assert names.selectors
    labels = set(OF_TARGETS)
    for selector in names.selectors:
        assert selector.metric in known(), "a replica has no such metric"
        labels |= known()[selector.metric]
        assert selector.labels <= labels
    assert names.grouped <= labels
    shown = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
    is_grouped = re.match(r"(sum|count|histogram_quantile)\b", expression) is not None
    assert shown <= (names.grouped if is_grouped else labels)


def test_the_names_in_an_expression_are_found() -> None:
    """Otherwise the test above would pass for any expression."""
    names = names_in('sum by (a, le) (rate(b_total{c="x{y}",d=~"e|f"}[5m])) / on (g) h unless (i offset 5m) > 1.2e9')
    assert names.grouped == {"a", "le", "g"}
    assert names.selectors == [
        Selector("b_total", frozenset({"c", "d"})),
        Selector("h", frozenset()),
        Selector("i", frozenset()),
    ]
    assert {"causeway_requests_total", "causeway_exchange_bytes_sum", "process_resident_memory_bytes"} <= known().keys()
    assert known()["causeway_visibility_lag_seconds_bucket"] == {"origin", "le"}
    assert known()["causeway_peer_state"] == {"peer", "state"}
    assert "causeway_peer_status" not in known()
    with pytest.raises(ValueError, match="unknown matcher"):
        names_in("a{b}")


def test_each_metric_of_the_protocol_has_a_panel_or_an_alert() -> None:
    """A metric that nobody looks at is a metric that nobody needs, or a gap in the dashboard."""
    shown = {selector.metric for _, expression, _ in EXPRESSIONS for selector in names_in(expression).selectors}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known() if name.startswith("causeway_")}
    assert families - {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown} == set()


def test_each_alert_says_what_to_do_and_has_tests_that_it_fires_and_that_it_does_not() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len({*names}) == len(names)
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert anchor in anchors(REPOSITORY / page), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "runbook"}
    content = yaml.safe_load(RULE_TESTS.read_text())
    assert content["rule_files"] == [RULES.name]
    cases: list[dict[str, Any]] = [case for test in content["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case.get("exp_alerts")} == {*names}
    (healthy,) = [test for test in content["tests"] if test["name"] == "a healthy cluster fires no alert"]
    assert {case["alertname"] for case in healthy["alert_rule_test"]} == {*names}
    assert not any(case.get("exp_alerts") for case in healthy["alert_rule_test"])


def test_the_page_about_operations_includes_the_rules() -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text("utf-8")
    assert f"```yaml\n{RULES.read_text()}```\n" in page, f"copy {RULES.name} into the block of docs/operations.md"


def test_the_scrape_configuration_uses_the_rules_and_the_job_that_they_select() -> None:
    content = yaml.safe_load(CONFIGURATION.read_text())
    assert content["rule_files"] == [RULES.name]
    (scrape,) = content["scrape_configs"]
    assert {*re.findall(r'job="(\w+)"', RULES.read_text())} == {scrape["job_name"]} == {"causeway"}


def test_rules_are_evaluated_as_often_as_replicas_are_scraped() -> None:
    """Prometheus's default is one minute, which would be added to the time of each alert."""
    page = (REPOSITORY / "docs" / "secured-cluster.md").read_text("utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    for content in (yaml.safe_load(CONFIGURATION.read_text()), yaml.safe_load(block)):
        assert content["global"] == {"scrape_interval": "15s", "evaluation_interval": "15s"}
        assert content["rule_files"] == [RULES.name]


def test_only_pods_are_called_by_a_name_of_their_certificate() -> None:
    """The certificates of docs/secured-cluster.md contain the hosts of the targets, and not ``causeway-peers``."""
    before, _, in_kubernetes = CONFIGURATION.read_text().partition("In Kubernetes")
    assert "tls_config" in before
    assert "server_name" not in before
    assert "server_name: causeway-peers" in in_kubernetes


def test_the_dashboard_has_a_stable_uid_and_panels_that_select_the_chosen_replicas() -> None:
    content = dashboard()
    assert (content["uid"], content["title"]) == ("causeway", "Causeway")
    assert "id" not in content, "Grafana assigns it"
    assert [variable["name"] for variable in content["templating"]["list"]] == ["datasource", "job", "instance"]
    assert len({panel["id"] for panel in content["panels"]}) == len(content["panels"])
    assert {panel["type"] for panel in panels()} == {"timeseries", "stat"}
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            for selector in names_in(target["expr"]).selectors:
                # An alert has the labels of its expression, which may be only some of those of a replica.
                assert {"job", "instance"} <= selector.labels or selector.metric == "ALERTS", target["expr"]


LIMITS = {
    "CausewayNotReady": ("Not ready", 1),
    "CausewaySlowToSpread": ("Visibility lag, p99", 1),
    "CausewayUpdatesWait": ("Oldest pending update", 60),
    "CausewayClockAhead": ("Clock of peers", 1),
    "CausewayMemory": ("Memory", 1.2e9),
    "CausewayLogLinesDropped": ("Log lines dropped", 1),
    "CausewayAuditLinesDropped": ("Audit lines dropped", 1),
}
"""Alert -> the panel that shows the same value, and the lowest value that fires."""


@pytest.mark.parametrize("alert", LIMITS)
def test_a_panel_shows_the_threshold_of_its_alert(alert: str) -> None:
    title, value = LIMITS[alert]
    (rule,) = [rule for rule in rules() if rule["alert"] == alert]
    (panel,) = [panel for panel in panels() if panel["title"] == title]
    metrics = {selector.metric for target in panel["targets"] for selector in names_in(target["expr"]).selectors}
    assert {selector.metric for selector in names_in(rule["expr"]).selectors} <= metrics
    _, _, threshold = rule["expr"].rpartition(" ")
    assert float(threshold) in (value, 0)
    defaults = panel["fieldConfig"]["defaults"]
    assert [step["value"] for step in defaults["thresholds"]["steps"]] == [None, value]
    assert defaults["custom"]["thresholdsStyle"] == {"mode": "dashed"}


def test_the_first_row_names_alerts_and_versions() -> None:
    first = {panel["title"]: panel for panel in panels() if panel["gridPos"]["y"] == 1}
    assert [*first] == ["Firing alerts", "Ready now", "Version", "Replicas"]
    assert all(rule["alert"].startswith("Causeway") for rule in rules())
    assert first["Firing alerts"]["targets"][0]["expr"].startswith('ALERTS{alertname=~"Causeway.+"')
    assert first["Version"]["targets"][0]["legendFormat"] == "{{version}}"


def test_no_two_panels_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(at["x"] + i, at["y"] + j) for i in range(at["w"]) for j in range(at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
