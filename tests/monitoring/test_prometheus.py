"""deploy/monitoring as Prometheus judges it: promtool, and a Prometheus that scrapes two replicas.

`make monitoring` runs this file. See conftest.py.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from kvsite.cluster import LocalCluster
from tests.support.monitoring import (
    CONFIGURATION,
    MONITORING,
    RULE_TESTS,
    RULES,
    dashboard_expressions,
    filled_in,
    names_in,
    rules,
)
from tests.support.ports import free_ports
from tests.support.waiting import wait_until

ABSENT = {"Refused and never reached", "Peers that are not alive", "Firing alerts"}
"""Panels that are empty while all is well."""

FIRES_WITHIN_S = 30.0
"""CausewayFewReplicas waits for 10 s, after Prometheus has seen that the replica is gone."""


def promtool(*arguments: str) -> str:
    done = subprocess.run(
        ["promtool", *arguments], cwd=MONITORING, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_accepts_the_rules_and_their_tests_pass() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", "--lint-fatal", RULES.name)
    promtool("check", "config", CONFIGURATION.name)
    assert "SUCCESS" in promtool("test", "rules", RULE_TESTS.name)


def test_promtool_would_find_a_wrong_threshold(tmp_path: Path) -> None:
    """Otherwise the tests of the rules might pass for any rules."""
    text = RULES.read_text()
    (tmp_path / RULES.name).write_text(text.replace("== 0\n        for: 5m", "== 0\n        for: 50m"))
    (tmp_path / RULE_TESTS.name).write_text(RULE_TESTS.read_text())
    done = subprocess.run(
        ["promtool", "test", "rules", RULE_TESTS.name], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "CausewayNotReady" in done.stdout + done.stderr


class Prometheus:
    """A Prometheus with the shipped rules that scrapes ``cluster`` twice a second."""

    def __init__(self, cluster: LocalCluster, directory: Path) -> None:
        content = yaml.safe_load(CONFIGURATION.read_text())
        content["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
        content["rule_files"] = [str(RULES)]
        (scrape,) = content["scrape_configs"]
        scrape["static_configs"] = [{"targets": cluster.addresses}]
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(content))
        self._url = f"http://127.0.0.1:{free_ports(1)}"
        self._log = (directory / "prometheus.log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={directory / 'prometheus.yaml'}",
                f"--storage.tsdb.path={directory / 'data'}",
                f"--web.listen-address={self._url.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=self._log,
        )

    def get(self, path: str, **parameters: Any) -> Any:
        response = requests.get(f"{self._url}/api/v1/{path}", params=parameters, timeout=10)
        assert response.status_code == 200, response.text
        return response.json()["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found

    def is_up(self) -> bool:
        try:
            is_ready = requests.get(f"{self._url}/-/ready", timeout=10).status_code == 200
            return is_ready and len(self.query("up == 1")) == 2
        except requests.ConnectionError:
            return False

    def firing(self) -> set[str]:
        return {each["labels"]["alertname"] for each in self.get("alerts")["alerts"] if each["state"] == "firing"}

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(20)
        self._log.close()


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(2, free_ports(2), environment={"KV_DOWN_AFTER": "2"}) as running:
        yield running


def test_every_panel_has_data_and_a_dead_replica_is_reported(cluster: LocalCluster, tmp_path: Path) -> None:
    prometheus = Prometheus(cluster, tmp_path)
    try:
        wait_until(prometheus.is_up, timeout_s=20)
        for n in range(20):
            requests.put(f"{cluster.url(n % 2)}/kvs/k{n}", json={"value": n}, timeout=5)
            requests.get(f"{cluster.url(n % 2)}/kvs/none", timeout=5)
        before = time.time()
        wait_until(lambda: prometheus.query(f"timestamp(causeway_keys == 20) > {before}"), timeout_s=10)

        def empty() -> set[str]:
            found: dict[str, list[Any]] = {}
            for title, expression, _ in dashboard_expressions():
                assert names_in(expression).selectors
                found.setdefault(title, []).extend(prometheus.query(filled_in(expression)))
            return {title for title, series in found.items() if not series}

        wait_until(lambda: empty() <= ABSENT, timeout_s=20, what=lambda: str(empty()))
        assert prometheus.firing() == set()
        cluster.kill(1)
        wait_until(lambda: "CausewayFewReplicas" in prometheus.firing(), timeout_s=FIRES_WITHIN_S)
        (alerts,) = [expression for title, expression, _ in dashboard_expressions() if title == "Firing alerts"]
        wait_until(lambda: prometheus.query(alerts), timeout_s=10)
        states = 'causeway_peer_state{state="down"} == 1'
        wait_until(lambda: prometheus.query(states), timeout_s=10)
    finally:
        prometheus.stop()
