"""compose.yaml and the Dockerfile: checks that need no container engine. `make image` builds and runs the image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]  # ships no types
import pytest
import yaml
from packaging.specifiers import SpecifierSet

from kvsite.config import SETTINGS, Config
from kvsite.server import STOP_TIMEOUT_S
from store.version import VERSION
from tools import matrix
from tools.paths import REPOSITORY

DOCKERFILE = (REPOSITORY / "Dockerfile").read_text(encoding="utf-8")
SECRETS = {setting.variable for setting in SETTINGS if setting.is_secret}
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


@pytest.fixture
def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((REPOSITORY / "compose.yaml").read_text(encoding="utf-8"))
    return read


def schema_errors(compose: dict[str, Any]) -> list[str]:
    schema = json.loads((REPOSITORY / "tests/repository/vendor/compose-spec.json").read_text(encoding="utf-8"))
    return [error.message for error in jsonschema.Draft201909Validator(schema).iter_errors(compose)]


def test_compose_yaml_is_valid_by_the_compose_specification(compose: dict[str, Any]) -> None:
    assert not schema_errors(compose)
    compose["services"]["r1"]["read_only"] = "perhaps"
    assert schema_errors(compose), "the schema would detect an error"


def test_compose_starts_three_replicas_that_find_each_other(compose: dict[str, Any]) -> None:
    services = compose["services"]
    environments = {name: service["environment"] for name, service in services.items()}
    assert len(services) == 3
    assert {name: each["SOCKET_ADDRESS"] for name, each in environments.items()} == {n: f"{n}:8090" for n in services}
    assert {each["VIEW"] for each in environments.values()} == {",".join(f"{name}:8090" for name in services)}
    ports = [port for service in services.values() for port in service["ports"]]
    assert ports == ["127.0.0.1:8090:8090", "127.0.0.1:8091:8090", "127.0.0.1:8092:8090"], "open: this machine only"


def test_compose_sets_only_settings_that_exist_and_no_secret(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        environment = service["environment"]
        Config.from_env({name: value for name, value in environment.items() if value is not None})
        assert set(environment) <= {setting.variable for setting in SETTINGS}
        assert {environment[name] for name in SECRETS if name in environment} == {None}


def test_compose_gives_a_replica_time_to_stop_and_a_read_only_file_system(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert float(service["stop_grace_period"].removesuffix("s")) > STOP_TIMEOUT_S + 1
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]


def test_the_image_has_the_version_of_the_project_and_a_supported_python() -> None:
    version = re.search(r'image\.version="([^"]+)"', DOCKERFILE)
    assert version
    assert version[1] == PROJECT["version"] == VERSION
    python = re.search(r"^ARG PYTHON=\S+/python:(3\.\d+)", DOCKERFILE, re.MULTILINE)
    assert python
    assert python[1] in matrix.supported()


def test_the_matrix_names_a_python_that_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(matrix, "candidates", lambda version: iter(()))
    assert matrix.main(["3.12"]) == 1, "nothing was tested"
    assert re.search(r"^3\.12 +- +not installed on this machine, so not tested$", capsys.readouterr().out, re.MULTILINE)
    assert matrix.main(["2.7"]) == 2


@pytest.fixture
def product(tmp_path: Path) -> Path:
    """A directory with what the image contains: the product without the development tools and the tests."""
    directory = tmp_path / "product"
    for package in ("store", "replication", "kvsite"):
        shutil.copytree(REPOSITORY / package, directory / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "manage.py", directory)
    return directory


def manage(directory: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    environ = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DJANGO_SETTINGS_MODULE")
    }
    return subprocess.run(
        [sys.executable, "manage.py", *arguments],
        cwd=directory,
        env={**environ, "SOCKET_ADDRESS": "127.0.0.1:8090", **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_product_works_without_the_development_tools(product: Path) -> None:
    done = manage(product, "check")
    assert done.returncode == 0, done.stderr
    done = manage(product, "help", "run_cluster")
    assert done.returncode == 0, done.stderr
    assert "--replicas" in done.stdout
    commands = manage(product, "help", "--commands").stdout.split()
    assert "run_replica" in commands
    assert "benchmark" not in commands


def test_another_package_named_tools_is_ignored(product: Path, tmp_path: Path) -> None:
    other = tmp_path / "elsewhere" / "tools"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise RuntimeError('a foreign package was imported')\n")
    (other / "apps.py").write_text("")
    done = manage(product, "check", PYTHONPATH=str(other.parent))
    assert done.returncode == 0, done.stderr


def test_a_checkout_has_the_commands_of_the_development_tools() -> None:
    assert {"benchmark", "demo", "simulate", "check_history"} <= set(
        manage(REPOSITORY, "help", "--commands").stdout.split()
    )


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_locked_packages_support_the_oldest_python(name: str) -> None:
    """Debian 12 has Python 3.11.2. `make lock` looks this up for all lock files, the one of `make docs` included."""
    locked = re.findall(r"^([\w.-]+)==(\S+)", (REPOSITORY / name).read_text(encoding="utf-8"), re.MULTILINE)
    assert len(locked) > 20
    # `make matrix DJANGO=6.0` installs another Django than the locked one.
    installed = [package for package, version in locked if metadata.version(package) == version]
    described = {package: metadata.metadata(package) for package in installed}
    needs = {package: each["Requires-Python"] for package, each in described.items() if "Requires-Python" in each}
    assert len(needs) > 20
    assert [package for package, python in needs.items() if not SpecifierSet(python).contains("3.11.0")] == []


def test_make_lock_checks_every_lock_file_with_the_oldest_python() -> None:
    done = subprocess.run(["make", "-n", "lock"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert re.search(r"for file in requirements\*\.txt; do .*--python-version 3\.11\.0", done.stdout, re.DOTALL)


def test_the_packages_of_the_documentation_stay_below_what_debian_12_has() -> None:
    """They are not installed for tests. These are the ones known to need more than Python 3.11.0."""
    locked = dict(
        re.findall(r"^([\w.-]+)==(\d+)", (REPOSITORY / "requirements-docs.txt").read_text("utf-8"), re.MULTILINE)
    )
    assert int(locked["pymdown-extensions"]) < 13
