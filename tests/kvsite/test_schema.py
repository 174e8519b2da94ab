"""The OpenAPI document is served, whole, true (schemathesis), and browsable without anything from elsewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import schemathesis
from django.test import Client
from hypothesis import settings
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]  # of drf-spectacular
from referencing import Registry
from referencing.jsonschema import DRAFT202012
from schemathesis.config import SchemathesisConfig

from kvsite.cluster import LocalCluster
from kvsite.schema import document
from kvsite.wsgi import application
from replication.api import context
from replication.node import Node
from tests.conftest import free_ports
from tests.kvsite.schemathesis import hooks as _hooks
from tests.replication.api.test_view import WrittenDown

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "tests" / "kvsite" / "schemathesis" / "schemathesis.toml"
NOT_TOLD = {"/replication/exchange", "/replication/snapshot", "/schema/", "/docs/"}
"""What replicas say to each other, and the document itself."""

assert _hooks  # registers itself


@pytest.fixture
def browser() -> Client:
    return Client(raise_request_exception=False)


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document()["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


# --- the document ----------------------------------------------------------------------------------------------------


def test_it_comes_as_json_and_as_yaml(browser: Client) -> None:
    told = browser.get("/schema/")
    assert (told.status_code, told["Content-Type"]) == (200, "application/json")
    assert json.loads(told.content) == json.loads(json.dumps(document()))
    assert document()["openapi"].startswith("3.")
    for yaml in (browser.get("/schema/?format=yaml"), browser.get("/schema/", headers={"Accept": "application/yaml"})):
        assert yaml["Content-Type"] == "application/yaml"
        assert yaml.content.startswith(b"openapi: 3.1")
    assert browser.get("/schema/?format=json", headers={"Accept": "application/yaml"}).content == told.content
    assert browser.get("/schema/?format=xml").status_code == 400
    assert browser.post("/schema/").status_code == 405


def test_every_route_of_the_api_is_told(browser: Client) -> None:
    from replication.api.urls import urlpatterns as of_replicas
    from store.api.urls import urlpatterns as of_keys

    routes = {"/" + re.sub(r"^\^|\(.*$", "", str(route.pattern)) for route in [*of_keys, *of_replicas]}
    assert {path.replace("{key}", "") for path in document()["paths"]} == routes - NOT_TOLD


def test_every_operation_has_a_summary_and_examples() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids) == 14
    for method, path, operation in operations():
        where = f"{method} {path}"
        assert operation["summary"], where
        bodies = [*operation["responses"].values(), *([operation["requestBody"]] if "requestBody" in operation else [])]
        for body in bodies:
            for media in body.get("content", {}).values():
                assert media["examples"], where
        assert any(status.startswith("2") for status in operation["responses"]), where


def test_every_example_is_what_the_schema_says() -> None:
    registry: Registry[Any] = Registry().with_resource("urn:api", DRAFT202012.create_resource(document()))
    checked = 0
    for method, path, operation in operations():
        for body in [*operation["responses"].values(), operation.get("requestBody", {})]:
            for media in body.get("content", {}).values():
                schema = json.loads(json.dumps(media["schema"]).replace('"#/', '"urn:api#/'))
                validator = Draft202012Validator(schema, registry=registry)
                for example in media["examples"].values():
                    errors = [error.message for error in validator.iter_errors(example["value"])]
                    assert not errors, f"{method} {path}: {example['summary']}"
                    checked += 1
    assert checked > 60


# --- the page --------------------------------------------------------------------------------------------------------


def test_docs_come_from_this_replica_alone(browser: Client) -> None:
    page = browser.get("/docs/")
    assert page.status_code == 200
    html = page.content.decode()
    assets = re.findall(r'(?:src|href)="(?!data:)([^"]+)"', html)
    assert len(assets) >= 4
    assert all(asset.startswith("/") and not asset.startswith("//") for asset in assets)
    for asset in assets:
        answer = browser.get(asset)
        assert answer.status_code == 200, asset
        assert b"".join(answer) if answer.streaming else answer.content
    assert not re.search(r"<script>|onload=|style=", html)  # nothing inline: a strict policy may stand


# --- true ------------------------------------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.slow
def test_schemathesis_finds_nothing_against_a_real_replica(tmp_path: Path) -> None:
    """All checks, thousands of requests that the schema allows or forbids, over HTTP.

    Nobody may wait (KV_MAX_DEFERRED and KV_MAX_WATCHERS are 0): schemathesis asks to be held for a minute gladly.
    Left out are changes of the view: the replica would look up and call whatever names schemathesis invents. The next
    test does those.
    """
    nobody_waits = {"KV_DEFER_TIMEOUT": "0", "KV_MAX_DEFERRED": "0", "KV_MAX_WATCHERS": "0"}
    with LocalCluster(1, free_ports(1), environment=nobody_waits) as cluster:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{cluster.url(0)}/schema/", "--max-examples", "20"),
            *("--exclude-operation-id", "addToView", "--exclude-operation-id", "removeFromView"),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No issues found" in done.stdout
        assert "Traceback" not in cluster.log(0)
        assert "Unexpected fault" not in cluster.log(0)


config = SchemathesisConfig.from_path(CONFIG)
of_view = schemathesis.openapi.from_dict(document(), config=config).include(path="/view")
of_view.app = application


@of_view.parametrize()
@settings(max_examples=60, deadline=None)
def test_schemathesis_finds_nothing_in_changes_of_the_view(case: schemathesis.Case[Any]) -> None:
    """Here a node that only writes the addresses down."""
    unbound = context._node
    context.bind(cast("Node", WrittenDown()))
    try:
        case.call_and_validate()
    finally:
        context._node = unbound
