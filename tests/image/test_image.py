"""Build the container image from the Dockerfile, check its contents, and run three replicas of it.

`make image` runs this file. See conftest.py.
"""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.image.podman import ImageError, Podman, base_of, base_substitute, build
from tests.support.waiting import wait_until
from tools.netns.cluster import Network
from tools.paths import REPOSITORY

IMAGE = "localhost/causeway:checked"
GRACE_S = 15
"""The stop_grace_period in compose.yaml."""

STALE_BYTECODE = """
import importlib.util, pathlib, struct, sys
for root in ("/app/kvsite", "/app/replication", "/app/store", "/venv"):
    for source in pathlib.Path(root).rglob("*.py"):
        compiled = pathlib.Path(importlib.util.cache_from_source(str(source)))
        head = compiled.read_bytes()[:16] if compiled.exists() else bytes(16)
        flags, mtime, size = struct.unpack("<4xIII", head)
        stat = source.stat()
        fresh = flags == 1 or (flags == 0 and (mtime, size) == (int(stat.st_mtime), stat.st_size))
        if head[:4] != importlib.util.MAGIC_NUMBER or not fresh:
            print(source)
"""
"""Prints the modules that Python would compile again. With flags of 1 (PEP 552), Python does not check the source."""


def report(line: str) -> None:
    """Print a measurement, also if pytest captures output."""
    sys.__stdout__.write(f"\n{line}\n") if sys.__stdout__ else None


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    with Podman() as made:
        yield made


@pytest.fixture(scope="module")
def marker(podman: Podman) -> str:
    """Build the image; return the text that marks the secrets of the build."""
    name, version = base_of(REPOSITORY / "Dockerfile")
    with base_substitute(version).open("rb") as archive:
        podman("import", "--change=ENV PATH=/usr/local/bin:/usr/bin:/bin", "-", name, stdin=archive.fileno())
    return build(podman, IMAGE, name)


@pytest.fixture(scope="module")
def image(podman: Podman, marker: str) -> dict[str, Any]:
    return podman.inspect(IMAGE)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    made = Network(4)
    yield made
    made.close()


class Cluster:
    """Three replicas of the image, each in its own network namespace, with the settings of the image."""

    def __init__(self, podman: Podman, network: Network) -> None:
        self.podman = podman
        self.network = network
        self.addresses = [f"{host}:8090" for host in network.hosts]

    def name(self, i: int) -> str:
        return f"r{i + 1}"

    def start(self, i: int, **more: str) -> None:
        own = {"SOCKET_ADDRESS": self.addresses[i], "VIEW": ",".join(self.addresses[:3]), "KV_OPEN": "true"}
        environment = {**own, **more}
        self.podman.start(self.name(i), IMAGE, self.network.namespaces[i], environment)

    def send(self, i: int, method: str, path: str, body: object = None) -> requests.Response:
        return requests.request(method, f"http://{self.addresses[i]}{path}", json=body, timeout=10)

    def wait_health(self, i: int, code: int) -> None:
        """Wait until the HEALTHCHECK of the image exits with ``code`` in replica ``i``. 0: ready, 1: not ready."""
        command = self.podman.inspect(IMAGE)["Healthcheck"]["Test"][1:]
        wait_until(
            lambda: self.podman.code("exec", self.name(i), *command) == code,
            timeout_s=60,
            what=lambda: self.podman.logs(self.name(i)),
            every_s=0.2,
        )

    def run_inside(self, i: int, *command: str) -> str:
        return self.podman("exec", self.name(i), *command)


@pytest.fixture(scope="module")
def cluster(podman: Podman, image: dict[str, Any], network: Network) -> Cluster:
    made = Cluster(podman, network)
    for i in range(3):
        made.start(i)
    for i in range(3):
        made.wait_health(i, 0)
    return made


# --- Contents ---------------------------------------------------------------------------------------------------


def test_the_image_has_labels_a_command_and_an_unprivileged_user(image: dict[str, Any]) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    config = image["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] in ("SIGTERM", "15")
    assert config["Cmd"] == ["python", "manage.py", "run_replica"]
    assert image["Healthcheck"]["Test"] == ["CMD", "python", "-m", "kvsite.healthcheck"]
    assert config["Labels"]["org.opencontainers.image.version"] == project["version"]
    assert config["Labels"]["org.opencontainers.image.licenses"] == project["license"]


def test_the_image_contains_no_secret(podman: Podman, image: dict[str, Any], marker: str, tmp_path: Path) -> None:
    names = {entry.partition("=")[0] for entry in image["Config"]["Env"]}
    assert names == {"PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "SOCKET_ADDRESS", "KV_BIND"}
    podman("save", "--format=docker-archive", f"--output={tmp_path / 'image.tar'}", IMAGE)
    everything = (tmp_path / "image.tar").read_bytes()
    assert b"kvsite/healthcheck.py" in everything, "the layers must be plain tar files"
    assert marker.encode() not in everything


def test_the_image_contains_the_program_and_nothing_else(podman: Podman, image: dict[str, Any]) -> None:
    found = podman.once(IMAGE, "ls", "-A", "/app").split()
    assert sorted(found) == ["LICENSE", "kvsite", "manage.py", "replication", "requirements.txt", "store"]
    assert "pip" not in podman.once(IMAGE, "ls", "/venv/bin").split()
    assert "/pip/" not in podman.once(IMAGE, "find", "/venv", "-name", "__main__.py")
    own_bytes = image["Size"] - podman.inspect(base_of(REPOSITORY / "Dockerfile")[0])["Size"]
    report(f"image: {own_bytes / 1e6:.0f} MB on a base of {(image['Size'] - own_bytes) / 1e6:.0f} MB")
    assert own_bytes < 100e6
    useless = podman.once(IMAGE, "find", "/venv", "-name", "*.mo", "-o", "-name", "redoc", "-o", "-name", "*.map")
    assert not useless.split()


def test_the_user_of_the_image_can_change_no_file(podman: Podman, image: dict[str, Any]) -> None:
    assert podman.once(IMAGE, "id", "-u").strip() == "10001"
    places = podman.once(IMAGE, "sh", "-c", "find / -xdev -writable -not -type l 2>/dev/null || true")
    outside = {place for place in places.split() if not place.startswith(("/tmp", "/var/tmp", "/run/lock", "/dev/"))}
    assert not outside


def test_all_modules_are_compiled(podman: Podman, image: dict[str, Any]) -> None:
    stale = podman.once(IMAGE, "python", "-c", STALE_BYTECODE).split()
    assert not stale


# --- Three replicas -----------------------------------------------------------------------------------------


def test_a_value_put_at_one_replica_is_read_at_another(cluster: Cluster) -> None:
    put = cluster.send(0, "PUT", "/kvs/dinner", {"value": "pizza"})
    assert put.status_code == 201, put.text
    got = cluster.send(1, "GET", "/kvs/dinner", {"causal-metadata": put.json()["causal-metadata"]})
    assert got.json()["value"] == "pizza"
    assert sorted(cluster.send(2, "GET", "/view").json()["view"]) == sorted(cluster.addresses[:3])


def test_pages_are_served_without_a_writable_file_system(cluster: Cluster) -> None:
    for path in (
        "/admin/",
        "/docs/",
        "/schema/",
        "/metrics",
        "/replication/status",
        "/admin/static/admin/css/base.css",
    ):
        assert cluster.send(0, "GET", path).status_code == 200, path
    with pytest.raises(ImageError, match="Read-only file system"):
        cluster.run_inside(0, "touch", "/tmp/file")


def test_a_replica_has_no_privileges(cluster: Cluster) -> None:
    status = dict(line.split(":", 1) for line in cluster.run_inside(0, "cat", "/proc/1/status").splitlines())
    assert status["Uid"].split() == ["10001"] * 4
    assert {int(status[kind], 16) for kind in ("CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"].strip() == "1"


def test_the_healthcheck_reports_readiness(cluster: Cluster) -> None:
    cluster.send(0, "DELETE", "/view", {"socket-address": cluster.addresses[2]})
    cluster.wait_health(2, 1)
    cluster.send(0, "PUT", "/view", {"socket-address": cluster.addresses[2]})
    cluster.wait_health(2, 0)


def test_sigterm_hands_updates_over_and_stops_in_time(cluster: Cluster) -> None:
    put = cluster.send(2, "PUT", "/kvs/last", {"value": "words"})
    began_s = time.monotonic()
    cluster.podman("stop", f"--time={GRACE_S}", cluster.name(2))
    took_s = time.monotonic() - began_s
    assert cluster.podman.inspect(cluster.name(2))["State"]["ExitCode"] == 0, cluster.podman.logs(cluster.name(2))
    assert took_s < GRACE_S
    report(f"stopped in {took_s:.1f} s")
    got = cluster.send(0, "GET", "/kvs/last", {"causal-metadata": put.json()["causal-metadata"]})
    assert got.json()["value"] == "words"


def test_a_sigterm_before_it_serves_takes_effect(cluster: Cluster) -> None:
    """The first process of a container has no default action for signals: without a handler they are ignored."""
    cluster.start(3, VIEW="")
    status = Path(f"/proc/{cluster.podman.inspect(cluster.name(3))['State']['Pid']}/status")
    wait_until(lambda: "SigBlk:\t0000000000000000" not in status.read_text(encoding="utf-8"), timeout_s=60, every_s=0)
    assert "listens on" not in cluster.podman.logs(cluster.name(3))
    cluster.podman("kill", "--signal=TERM", cluster.name(3))
    assert cluster.podman("wait", cluster.name(3)).strip() == "0"


def test_an_invalid_setting_prints_one_line_and_exits_2(podman: Podman, image: dict[str, Any]) -> None:
    with pytest.raises(ImageError, match=r"exit code 2\nKV_DOWN_AFTER: must be a number of seconds[^\n]*\n$"):
        podman.once(IMAGE, "env", "KV_DOWN_AFTER=soon", *image["Config"]["Cmd"])
