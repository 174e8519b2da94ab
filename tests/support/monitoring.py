"""The files in deploy/monitoring, and what their PromQL expressions name."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import yaml

from tools.paths import REPOSITORY

MONITORING: Final = REPOSITORY / "deploy" / "monitoring"
RULES, RULE_TESTS = MONITORING / "causeway.rules.yaml", MONITORING / "causeway.rules.test.yaml"
DASHBOARD, CONFIGURATION = MONITORING / "causeway.dashboard.json", MONITORING / "prometheus.yaml"

AGGREGATION: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^()]*)\)")
TEXT: Final = re.compile(r"\"(?:[^\"\\]|\\.)*\"")
MATCHERS: Final = re.compile(r"\{([^{}]*)\}")
MATCHER: Final = re.compile(r"\s*([a-zA-Z_]\w*)\s*(?:=~|!~|!=|=)\s*TEXT\s*")
RANGE: Final = re.compile(r"\[[^\]]*\]")
OFFSET: Final = re.compile(r"\boffset\s+\d+[smhdw]")
KEYWORDS: Final = frozenset({"and", "or", "unless", "bool"})


class Selector(NamedTuple):
    """One use of a metric. ``labels``: those that its matchers name."""

    metric: str
    labels: frozenset[str]


class Names(NamedTuple):
    """What an expression names. ``grouped``: labels of aggregations and vector matching."""

    selectors: list[Selector]
    grouped: frozenset[str]


def names_in(expression: str) -> Names:
    """Return the metrics and labels that a PromQL expression names. Raises ``ValueError`` at unknown syntax."""
    text = OFFSET.sub("", RANGE.sub("", TEXT.sub("TEXT", expression)))
    grouped = {label.strip() for group in AGGREGATION.findall(text) for label in group.split(",") if label.strip()}
    text = AGGREGATION.sub("", text)
    selectors = []
    for found in re.finditer(r"(?<![\w.])([a-zA-Z_:][\w:]*)(\s*\{[^{}]*\})?(\s*\()?", text):
        name, matchers, call = found.groups()
        inside = any(each.start() < found.start() < each.end() for each in MATCHERS.finditer(text))
        if inside or call or name in KEYWORDS:
            continue
        labels = set()
        for part in (matchers or "").strip().strip("{}").split(","):
            if part.strip():
                matcher = MATCHER.fullmatch(part)
                if matcher is None:
                    raise ValueError(f"unknown matcher {part!r} in {expression!r}")
                labels.add(matcher[1])
        selectors.append(Selector(name, frozenset(labels)))
    return Names(selectors, frozenset(grouped))


def rules() -> list[dict[str, Any]]:
    """Return all rules."""
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    """Return the dashboard."""
    content: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return content


def panels() -> list[dict[str, Any]]:
    """Return the panels of the dashboard that show something."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def dashboard_expressions() -> Iterator[tuple[str, str, str]]:
    """Yield (title of the panel, expression, legend) of each query, and of each variable of the dashboard."""
    for panel in panels():
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            query = variable["query"]["query"]
            asked = re.fullmatch(r"label_values\((.*), *(\w+)\)", query)
            assert asked is not None, query
            yield variable["name"], f"count by ({asked[2]}) ({asked[1]})", ""


def filled_in(expression: str) -> str:
    """Return an expression with values in place of Grafana's variables."""
    return expression.replace("$__rate_interval", "1m").replace("$job", "causeway").replace("$instance", ".*")
