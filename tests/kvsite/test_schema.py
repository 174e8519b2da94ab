"""The OpenAPI document: complete, true (checked by schemathesis), and readable in a browser without Internet access."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
from kvsite.wsgi import load
from replication.api.views import AddressBody
from store.api.parsing import PatchBody, WriteBody
from store.settings import RequestLimits
from tests.kvsite.schemathesis import hooks as _hooks
from tests.support.api import Api, make_context, make_store
from tests.support.fake_node import FakeNode
from tests.support.ports import free_ports
from tools.paths import REPOSITORY

CONFIG = REPOSITORY / "tests" / "kvsite" / "schemathesis" / "schemathesis.toml"
UNDOCUMENTED = {"/replication/exchange", "/replication/snapshot", "/schema/", "/docs/"}
"""Routes that only replicas use, and the document itself."""

EMPTY_ADDRESS = {"socket-address": ""}
"""The example of a view change: empty, because "Try it out" would make the change with a made-up address."""

assert _hooks  # imported for its registrations


@pytest.fixture
def browser() -> Client:
    api = Api(make_store())
    api.use(limits=RequestLimits())
    return api._client


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document(RequestLimits())["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


# --- the document ----------------------------------------------------------------------------------------------------


def test_it_is_served_as_json_and_as_yaml(browser: Client) -> None:
    response = browser.get("/schema/")
    assert (response.status_code, response["Content-Type"]) == (200, "application/json")
    assert json.loads(response.content) == json.loads(json.dumps(document(RequestLimits())))
    assert document(RequestLimits())["openapi"].startswith("3.")
    for yaml in (browser.get("/schema/?format=yaml"), browser.get("/schema/", headers={"Accept": "application/yaml"})):
        assert yaml["Content-Type"] == "application/yaml"
        assert yaml.content.startswith(b"openapi: 3.1")
    assert browser.get("/schema/?format=json", headers={"Accept": "application/yaml"}).content == response.content
    assert browser.get("/schema/?format=xml").status_code == 400
    assert browser.post("/schema/").status_code == 405


def test_the_document_contains_every_route_of_the_api(browser: Client) -> None:
    from replication.api.urls import urlpatterns as of_replicas
    from store.api.urls import urlpatterns as of_keys

    routes = {"/" + re.sub(r"^\^|\(.*$", "", str(route.pattern)) for route in [*of_keys, *of_replicas]}
    assert {path.replace("{key}", "") for path in document(RequestLimits())["paths"]} == routes - UNDOCUMENTED


def test_every_operation_has_a_summary_and_examples() -> None:
    ids = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(ids)) == len(ids) == 18
    for method, path, operation in operations():
        where = f"{method} {path}"
        assert operation["summary"], where
        bodies = [*operation["responses"].values(), *([operation["requestBody"]] if "requestBody" in operation else [])]
        for body in bodies:
            for media in body.get("content", {}).values():
                assert media["examples"], where
        assert any(status.startswith("2") for status in operation["responses"]), where


def test_every_example_matches_its_schema() -> None:
    registry: Registry[Any] = Registry().with_resource(
        "urn:api", DRAFT202012.create_resource(document(RequestLimits()))
    )
    checked = 0
    for method, path, operation in operations():
        for body in [*operation["responses"].values(), operation.get("requestBody", {})]:
            for media in body.get("content", {}).values():
                schema = json.loads(json.dumps(media["schema"]).replace('"#/', '"urn:api#/'))
                validator = Draft202012Validator(schema, registry=registry)
                for example in media["examples"].values():
                    if example["value"] == EMPTY_ADDRESS:
                        continue
                    errors = [error.message for error in validator.iter_errors(example["value"])]
                    assert not errors, f"{method} {path}: {example['summary']}"
                    checked += 1
    assert checked > 60


def tried_out() -> Iterator[tuple[str, str, Any, str]]:
    """Yield what "Try it out" sends as it stands: method, path, body and its media type, for each example."""
    for method, path, operation in operations():
        target, optional = path, [each for each in operation["parameters"] if each["in"] != "path"]
        assert not [each["name"] for each in optional if "example" in each], "what is optional is sent empty"
        if any(each.get("required") for each in optional):
            continue  # The reader has to fill it in.
        for each in operation["parameters"]:
            if each["in"] == "path":
                target = target.replace(f"{{{each['name']}}}", each["example"])
        content = operation.get("requestBody", {}).get("content", {})
        if not content:
            yield method, target, None, ""
        for media_type, media in content.items():
            for example in media["examples"].values():
                yield method, target, example["value"], media_type


def test_every_example_of_a_request_works_as_it_stands_or_changes_nothing() -> None:
    """At a replica that knows none of the ids in the document; twice, because a reader tries things again."""
    made = make_store()
    node = FakeNode()
    made_api = Api(made)
    made_api.use(limits=RequestLimits(), node=node)
    order = ["POST", "PUT", "PATCH", "GET", "HEAD", "DELETE"]
    requests = sorted(tried_out(), key=lambda each: order.index(each[0]))
    assert len(requests) > 20
    for _ in range(2):
        for method, path, body, media_type in requests:
            if path.startswith(("/metrics", "/replication/explain/")):
                continue  # They take no body and no past, and the fake node has neither.
            text = body if isinstance(body, str) else "" if body is None else json.dumps(body)
            before = [made_api.state(), list(node.addresses)]
            response = made_api._client.generic(method, path, text, content_type=media_type or "application/json")
            if body == EMPTY_ADDRESS:
                assert response.status_code == 400, (method, path)
                assert [made_api.state(), list(node.addresses)] == before
            else:
                absent = method == "DELETE" and response.status_code == 404  # A second delete finds nothing.
                assert response.status_code in (200, 201) or absent, (method, path, body, response.content)


def test_its_bounds_are_the_limits_in_force() -> None:
    limits = RequestLimits(max_key_bytes=7, max_value_bytes=11, max_clock_entries=5, max_batch=6)
    schemas = document(limits)["components"]["schemas"]
    assert schemas["Key"]["maxLength"] == 7
    assert "11 bytes" in schemas["Value"]["description"]
    assert schemas["CausalMetadata"]["maxProperties"] == 5
    assert {schemas["TransactionBody"]["properties"][name]["maxItems"] for name in ("reads", "writes")} == {6}
    assert schemas["TransactionBody"]["properties"]["writes"]["items"] == {"$ref": "#/components/schemas/WriteBody"}
    assert document(RequestLimits())["components"]["schemas"]["Key"]["maxLength"] == RequestLimits().max_key_bytes


def test_generators_of_clients_can_read_it() -> None:
    """They know no boolean schemas, parameters by ``content``, headers by ``anyOf``, arrays without ``items``, and
    constants without a type. tests/kvsite/test_generated_client.py uses one of them.
    """
    schema = document(RequestLimits())
    assert not list(_unreadable(schema, "")), "places that a generator cannot read"
    broken: dict[str, Any] = {
        "parameters": [{"name": "h", "in": "header", "content": {}, "schema": {"anyOf": []}}],
        "type": "array",
    }
    broken["properties"] = {"a": False, "b": {"const": False}}
    assert len(list(_unreadable(broken, ""))) == 5


def _unreadable(part: Any, place: str) -> Iterator[str]:
    if isinstance(part, list):
        for number, each in enumerate(part):
            yield from _unreadable(each, f"{place}/{number}")
    if not isinstance(part, dict):
        return
    if "in" in part and "name" in part:
        if "content" in part:
            yield f"{place}: content"
        if part["in"] == "header" and "anyOf" in part.get("schema", {}):
            yield f"{place}: anyOf"
    if part.get("type") == "array" and "items" not in part:
        yield f"{place}: items"
    if "const" in part and "type" not in part:
        yield f"{place}: const"
    for name, each in part.items():
        if isinstance(each, bool) and place.endswith("/properties"):
            yield f"{place}/{name}: boolean"
        if name not in ("example", "examples"):
            yield from _unreadable(each, f"{place}/{name}")


def test_request_bodies_have_the_fields_that_the_replica_decodes() -> None:
    schemas = document(RequestLimits())["components"]["schemas"]
    write_concern = {"causal-metadata", "w", "w-timeout"}
    assert {*schemas["PutBody"]["properties"]} == write_concern | {"value", "ttl"}
    assert {*schemas["WriteConcernBody"]["properties"]} == write_concern
    assert {*schemas["TransactionBody"]["properties"]} == write_concern | {"reads", "writes"}
    assert schemas["PutBody"]["properties"]["ttl"]["anyOf"][0]["exclusiveMinimum"] == 0
    patch = {"increment", "add", "remove", "set", "unset", "ttl"}
    in_transaction = {"key", "value", "delete", *patch, "if-match", "if-none-match"}
    operations = ("Counter", "Set", "Map", "Ttl")
    kinds = [schemas["PutWrite"], schemas["DeleteWrite"], *(schemas[f"{each}Write"] for each in operations)]
    bodies = [schemas[f"{each}Patch"] for each in operations]
    assert {name for body in bodies for name in body["properties"]} == write_concern | patch
    assert write_concern | patch == {*PatchBody.__struct_encode_fields__}
    assert not any(body["additionalProperties"] for body in bodies)
    assert (
        {name for kind in kinds for name in kind["properties"]}
        == in_transaction
        == {*WriteBody.__struct_encode_fields__}
    )
    assert not any(kind["additionalProperties"] for kind in kinds)
    assert schemas["AddressBody"]["required"] == [*AddressBody.__struct_encode_fields__]


# --- the page --------------------------------------------------------------------------------------------------------


def test_the_page_loads_everything_from_this_replica(browser: Client) -> None:
    page = browser.get("/docs/")
    assert page.status_code == 200
    html = page.content.decode()
    links = re.findall(r'(?:src|href|data-document)="(?!data:)([^"]+)"', html)
    assert all(link.startswith("/") and not link.startswith("//") for link in links)
    assets = [link for link in links if link.startswith("/admin/static/") or "schema" in link]
    assert len(assets) >= 5
    for asset in assets:
        response = browser.get(asset)
        assert response.status_code == 200, asset
        assert b"".join(response) if response.streaming else response.content
    assert not re.search(r"<script>|onload=|style=", html)  # nothing inline, so a strict Content-Security-Policy works


# --- true ------------------------------------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.slow
def test_schemathesis_finds_nothing_against_a_real_replica(tmp_path: Path) -> None:
    """All checks, with thousands of requests that the schema allows or forbids, over HTTP.

    No request may wait (KV_MAX_DEFERRED and KV_MAX_WATCHERS are 0), because schemathesis would send waits of a minute.
    View changes are left to the next test: the replica would resolve and call the names that schemathesis invents.
    """
    no_waiting = {"KV_DEFER_TIMEOUT": "0", "KV_MAX_DEFERRED": "0", "KV_MAX_WATCHERS": "0"}
    with LocalCluster(1, free_ports(1), environment=no_waiting) as cluster:
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{cluster.url(0)}/schema/", "--max-examples", "10"),
            *("--exclude-operation-id", "addToView", "--exclude-operation-id", "removeFromView"),
        ]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No issues found" in done.stdout
        assert "Traceback" not in cluster.log(0)
        assert "Unexpected fault" not in cluster.log(0)


config = SchemathesisConfig.from_path(CONFIG)
view_api = schemathesis.openapi.from_dict(document(RequestLimits()), config=config).include(path="/view")
node = FakeNode()
view_api.app = load(make_context(node=node))


@view_api.parametrize()
@settings(max_examples=60, deadline=None)
def test_schemathesis_finds_nothing_in_view_changes(case: schemathesis.Case[Any]) -> None:
    """The node here is a fake that only records the addresses."""
    vars(node).update(vars(FakeNode()))  # Each case starts with a fresh node.
    case.call_and_validate()
