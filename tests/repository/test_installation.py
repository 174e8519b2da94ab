"""The built wheels, installed in an empty environment outside of the checkout: command, pages, session, client.

One environment serves all tests. pip installs what `make test` has downloaded, or else from where `make setup` does.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from playwright.sync_api import sync_playwright

from tests.browser.conftest import ARGUMENTS
from tests.support.archives import extract
from tests.support.ports import free_ports
from tests.support.waiting import wait_until
from tools.paths import REPOSITORY

pytestmark = [pytest.mark.processes, pytest.mark.slow]

CLIENT = REPOSITORY / "clients" / "python"
PACKAGES = REPOSITORY / ".venv" / "packages"

BUILD = """
import sys
from setuptools import build_meta
directory = sys.argv[1]
print(build_meta.build_sdist(directory))
print(build_meta.build_wheel(directory))
"""


def clean_environment(**more: str) -> dict[str, str]:
    """Return this process's environment without anything that leads to the checkout or configures a replica."""
    names = ("PYTHONPATH", "DJANGO_SETTINGS_MODULE", "SOCKET_ADDRESS", "VIEW")
    return {name: text for name, text in os.environ.items() if name not in names and name[:3] != "KV_"} | more


def run(*command: str | Path, cwd: Path, timeout_s: float = 300, **environment: str) -> str:
    done = subprocess.run(
        [str(each) for each in command],
        cwd=cwd,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def build(project: Path, to: Path) -> tuple[Path, Path]:
    """Build a project from a copy of its tracked and new files; return its sdist and its wheel."""
    copy = to / f"copy-of-{project.name}"
    listed = run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", cwd=project)
    for name in filter(None, listed.split("\0")):
        source, target = project / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        elif source.is_file():
            target.write_bytes(source.read_bytes())
    run(sys.executable, "-W", "error::DeprecationWarning", "-c", BUILD, to, cwd=copy)
    (sdist,) = to.glob(f"{project_name(project)}-*.tar.gz")
    (wheel,) = to.glob(f"{project_name(project)}-*.whl")
    return sdist, wheel


def project_name(project: Path) -> str:
    return "causeway_client" if project == CLIENT else "causeway"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Build both projects; return name -> path of the archive."""
    to = tmp_path_factory.mktemp("built")
    sdist, wheel = build(REPOSITORY, to)
    client_sdist, client_wheel = build(CLIENT, to)
    return {"sdist": sdist, "wheel": wheel, "client sdist": client_sdist, "client wheel": client_wheel}


class Installed:
    """An environment with the wheel. ``home``: an empty directory."""

    def __init__(self, environment: Path, home: Path) -> None:
        self.environment = environment
        self.python = environment / "bin" / "python"
        self.command = environment / "bin" / "causeway"
        self.home = home

    def causeway(self, *arguments: str, **environment: str) -> str:
        return run(self.command, *arguments, cwd=self.home, timeout_s=60, **environment)

    @contextmanager
    def running(self, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
        """Run ``causeway`` until the context ends."""
        with subprocess.Popen(
            [str(self.command), *arguments],
            cwd=self.home,
            env=clean_environment(PYTHONUNBUFFERED="1", **environment),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                yield process
            finally:
                process.terminate()
                process.communicate(timeout=20)


@pytest.fixture(scope="session")
def installed(built: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Install the wheel of Causeway, and nothing else."""
    made = Installed(tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("home"))
    venv.create(made.environment, with_pip=False)
    pip(made.environment, "install", "-c", constraints(tmp_path_factory.mktemp("lock")), built["wheel"])
    return made


def pip(environment: Path, command: str, *arguments: str | Path) -> str:
    """Run the pip of the tests on another environment. It installs only wheels, so no downloaded code runs."""
    of_install = ["--quiet", "--only-binary", ":all:"] if command == "install" else []
    if of_install and PACKAGES.is_dir():
        of_install += ["--no-index", "--find-links", str(PACKAGES)]
    program = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(environment)]
    return run(*program, command, *of_install, *arguments, cwd=environment)


def constraints(directory: Path) -> Path:
    """Write the locked versions without hashes: what the environment of the tests has is in pip's cache."""
    locked = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    path = directory / "constraints.txt"
    path.write_text("\n".join(re.findall(r"^[\w.-]+==[\w.]+", locked, re.MULTILINE)), encoding="utf-8")
    return path


# -- what the archives contain ----------------------------------------------------------------------------------------


def test_the_wheel_contains_what_serves_and_what_measures_and_nothing_else(built: Mapping[str, Path]) -> None:
    names = zipfile.ZipFile(built["wheel"]).namelist()
    packages = {name.partition("/")[0] for name in names if ".dist-info/" not in name}
    assert packages == {"kvsite", "replication", "store", "tools"}
    assert not any(name.startswith(("tools/netns/", "tools/soak/", "tools/hostile/")) for name in names)
    for name in (
        "tools/benchmark/load.lua",
        "kvsite/templates/docs.html",
        "kvsite/static/docs/docs.js",
        "kvsite/dashboard/templates/dashboard/base.html",
        "kvsite/dashboard/static/dashboard/dashboard.css",
        "kvsite/dashboard/static/dashboard/vendor/htmx.min.js",
        "store/management/commands/kvs.py",
        "store/client/session.py",
    ):
        assert name in names
    tracked = run("git", "ls-files", "kvsite", "replication", "store", cwd=REPOSITORY).split()
    missing = {name for name in tracked if name != "store/client" and not name.endswith(".md")} - set(names)
    assert missing == set()


def test_the_metadata_has_ranges_and_the_lock_file_exact_versions() -> None:
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    exact = [each for each in project["dependencies"] if "==" in each]
    assert [each.partition("==")[0] for each in exact] == ["granian"], "its private methods are overridden"
    locked = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
    for dependency in project["dependencies"]:
        name = re.split(r"[<>=]", dependency)[0].lower()
        assert re.search(rf"^{name}==[\w.]+ \\\n    --hash=sha256:", locked, re.MULTILINE), name


def test_the_source_distributions_build_the_same_wheels(built: Mapping[str, Path], tmp_path: Path) -> None:
    for name in ("", "client "):
        extract(built[f"{name}sdist"], tmp_path)
        directory = tmp_path / built[f"{name}sdist"].name.removesuffix(".tar.gz")
        out = tmp_path / f"{name}out"
        out.mkdir()
        code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
        run(sys.executable, "-c", code, out, cwd=directory)
        (wheel,) = out.glob("*.whl")
        assert sorted(zipfile.ZipFile(wheel).namelist()) == sorted(zipfile.ZipFile(built[f"{name}wheel"]).namelist())


# -- the installed command --------------------------------------------------------------------------------------------


def test_the_command_has_all_subcommands(installed: Installed) -> None:
    commands = set(installed.causeway("help", "--commands").split())
    assert {"run_replica", "run_cluster", "join_view", "leave_view", "show_view", "kvs"} <= commands
    assert {"benchmark", "check_history", "demo", "simulate"} <= commands
    assert "no violation" in installed.causeway("simulate", "--seed", "1", "--runs", "2", "--processes", "1")
    location = run(installed.python, "-c", "import kvsite; print(kvsite.__file__)", cwd=installed.home)
    assert "site-packages" in location


def test_a_wrong_setting_and_the_settings_of_another_project_do_no_harm(installed: Installed) -> None:
    assert installed.causeway("check", DJANGO_SETTINGS_MODULE="my.project.settings")
    done = subprocess.run(
        [str(installed.command), "run_replica"],
        cwd=installed.home,
        env=clean_environment(KV_MAX_MEMORI="1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "KV_MAX_MEMORI" in done.stderr


@pytest.mark.browser
def test_a_cluster_with_its_pages_and_the_session_of_the_readme(
    installed: Installed, built: Mapping[str, Path]
) -> None:
    """What README.md shows under "Install" and "From Python", and `kvs watch`, as somebody would type it."""
    port = free_ports(3)
    replicas = [f"127.0.0.1:{port + n}" for n in range(3)]
    first = f"http://{replicas[0]}"
    with installed.running("run_cluster", "--replicas", "3", "--base-port", str(port)) as cluster:
        wait_until(lambda: all(requests.get(f"http://{each}/readyz", timeout=2).ok for each in replicas), timeout_s=30)
        pages_have_no_errors(first)
        for path, media_type in [
            ("/admin/static/dashboard/dashboard.css", "text/css"),
            ("/admin/static/admin/css/base.css", "text/css"),
        ]:
            response = requests.get(first + path, timeout=5)
            assert (response.status_code, response.headers["Content-Type"].partition(";")[0]) == (200, media_type)
        with installed.running("kvs", "watch", "--at", replicas[2]) as watch:
            installed.causeway("kvs", "put", "greeting", '{"en": "hello"}', "--at", replicas[0])
            line = watch.stdout.readline() if watch.stdout else ""
            assert line == 'greeting\t{"en": "hello"}\n'
        assert installed.causeway("kvs", "get", "greeting", "--at", replicas[1]) == '{"en": "hello"}\n'
        shown = installed.causeway("show_view", "--at", replicas[0])
        assert all(address in shown for address in replicas)
        written = requests.put(f"{first}/kvs/dinner", json={"value": "pizza"}, timeout=5).json()
        past = {"causal-metadata": written["causal-metadata"]}
        read = requests.get(f"http://{replicas[1]}/kvs/dinner", json=past, timeout=5).json()
        assert read == {"result": "found", "value": "pizza"} | past
        assert cluster.poll() is None


def pages_have_no_errors(url: str) -> None:
    """Open the dashboard and the documentation in Chromium: no request fails, and the console has no error."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
        page = browser.new_page()
        problems: list[Any] = []
        page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("response", lambda response: problems.append(response.url) if response.status >= 400 else None)
        page.goto(f"{url}/admin/")
        page.get_by_text("127.0.0.1").first.wait_for()
        color = page.evaluate("getComputedStyle(document.querySelector('#header')).backgroundColor")
        assert color != "rgba(0, 0, 0, 0)", "the style sheet is applied"
        page.goto(f"{url}/docs/")
        page.get_by_text("/kvs/{key}").first.wait_for()
        assert problems == []
        browser.close()


# -- the client by itself ---------------------------------------------------------------------------------------------


def test_the_client_alone_brings_requests_and_nothing_else(built: Mapping[str, Path], tmp_path: Path) -> None:
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    pip(environment, "install", built["client wheel"])
    listed = pip(environment, "list", "--format", "freeze")
    packages = {line.partition("==")[0].lower().replace("_", "-") for line in listed.split()}
    of_requests = {"requests", "urllib3", "idna", "certifi", "charset-normalizer"}
    assert packages == {"causeway-client", *of_requests}
    code = "import causeway_client as c; s = c.Session(['127.0.0.1:1'], timeout_s=0.2); print(s.replicas)"
    assert "127.0.0.1:1" in run(python, "-c", code, cwd=tmp_path)
    code = "import causeway_client; causeway_client.AsyncSession"
    done = subprocess.run([str(python), "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "python -m pip install 'aiohttp>=3.12,<4'" in done.stderr
    names = zipfile.ZipFile(built["client wheel"]).namelist()
    assert "causeway_client/py.typed" in names
    assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {"causeway_client"}
