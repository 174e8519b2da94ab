"""compose.yaml and the Dockerfile, as far as they can be judged without an engine; `make image` builds and runs."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml

from kvsite.config import Config
from kvsite.server import STOP_TIMEOUT_S
from tools import matrix

REPOSITORY = Path(__file__).resolve().parents[2]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))
    return read


def complaints(compose: dict[str, Any]) -> list[str]:
    schema = json.loads((REPOSITORY / "tests/repository/vendor/compose-spec.json").read_text(encoding="utf-8"))
    return [error.message for error in jsonschema.Draft201909Validator(schema).iter_errors(compose)]


def test_compose_yaml_is_what_the_specification_says(compose: dict[str, Any]) -> None:
    assert not complaints(compose)
    compose["services"]["r1"]["read_only"] = "perhaps"
    assert complaints(compose), "the schema is looked at"


def test_compose_starts_three_replicas_that_find_each_other(compose: dict[str, Any]) -> None:
    services = compose["services"]
    environments = {name: service["environment"] for name, service in services.items()}
    assert len(services) == 3
    assert {name: each["SOCKET_ADDRESS"] for name, each in environments.items()} == {n: f"{n}:8090" for n in services}
    assert {each["VIEW"] for each in environments.values()} == {",".join(f"{name}:8090" for name in services)}
    ports = [port for service in services.values() for port in service["ports"]]
    assert ports == ["127.0.0.1:8090:8090", "127.0.0.1:8091:8090", "127.0.0.1:8092:8090"], "open: this machine only"


def test_compose_sets_what_exists_and_no_secret(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        environment = service["environment"]
        Config.from_env({name: value for name, value in environment.items() if value is not None})
        assert set(environment) <= set(Config.variables())
        assert {environment[name] for name in Config.variables(secret=True) if name in environment} == {None}


def test_compose_gives_a_replica_the_time_to_end_and_nothing_to_write_to(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert float(service["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT_S + 1
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_the_image_has_the_versions_that_the_project_has() -> None:
    version = re.search(r'image\.version="([^"]+)"', DOCKERFILE)
    assert version
    assert version[1] == PROJECT["version"]
    python = re.search(r"^ARG PYTHON=\S+/python:(3\.\d+)", DOCKERFILE, re.MULTILINE)
    assert python
    assert python[1] in matrix.supported()


def test_the_matrix_names_a_python_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "candidates", lambda version: iter(()))
    assert matrix.main(["3.12"]) == 1, "nothing was tested"
    assert re.search(r"^3\.12 +- +not on this machine, so not tested$", capsys.readouterr().out, re.MULTILINE)
    assert matrix.main(["2.7"]) == 2
