"""Django's own tests of caches pass with ``CausewayCache``, less what its documentation says is different.

The tests are in Django's source distribution. They are downloaded once, into ``.venv/django-source``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import django
import pytest

from kvsite.cluster import LocalCluster
from tests.support.archives import extract
from tests.support.ports import free_ports
from tools.paths import REPOSITORY

pytestmark = [pytest.mark.processes, pytest.mark.slow]

PACKAGES = REPOSITORY / ".venv" / "packages"
SOURCES = REPOSITORY / ".venv" / "django-source"

NO_CULLING = {"test_cull", "test_zero_cull"}
"""Nothing is evicted (``causeway_client.django.cache``)."""

NOT_IN_JSON = {
    "test_data_types[tuple]",  # comes back as a list
    "test_data_types[function]",
    "test_data_types[class]",
    "test_cache_read_for_model_instance",
    "test_cache_read_for_model_instance_with_deferred",
    "test_cache_write_for_model_instance_with_deferred",
    "test_add_fail_on_pickleerror",  # TypeError instead of PickleError
    "test_set_fail_on_pickleerror",
    "test_cache_write_unpicklable_object",
}
"""Values that JSON does not have (``causeway_client.django.codecs``)."""


@pytest.fixture(scope="session")
def django_tests() -> Path:
    """Return the directory of Django's tests, of the version that is installed."""
    version = django.get_version()
    directory = SOURCES / f"django-{version}" / "tests"
    if not directory.exists():
        SOURCES.mkdir(parents=True, exist_ok=True)
        archives = list(PACKAGES.glob(f"[dD]jango-{version}.tar.gz"))  # `make test` has downloaded it.
        if not archives:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
            command += ["--no-build-isolation", "--no-binary", "Django", f"Django=={version}", "--dest", str(SOURCES)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"Django's source distribution cannot be downloaded: {done.stderr}"
            archives = list(SOURCES.glob(f"[dD]jango-{version}.tar.gz"))
        (archive,) = archives
        extract(archive, SOURCES, "tests/cache/")
    return directory


@pytest.fixture(scope="module")
def replicas() -> Iterator[LocalCluster]:
    with LocalCluster(2, free_ports(2)) as running:
        yield running


@pytest.mark.parametrize(("serializer", "different"), [("pickle", NO_CULLING), ("json", NO_CULLING | NOT_IN_JSON)])
def test_djangos_own_cache_tests(
    replicas: LocalCluster, django_tests: Path, serializer: str, different: set[str]
) -> None:
    url = f"causeway://{','.join(replicas.addresses)}"
    program = Path(__file__).with_name("django_suite.py")
    environ = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
    done = subprocess.run(
        [sys.executable, str(program), str(django_tests), url, serializer],
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    outcomes: dict[str, str] = json.loads(done.stdout)
    assert len(outcomes) > 50
    failed = {name: outcome for name, outcome in outcomes.items() if outcome != "passed"}
    assert failed.keys() - different == set(), failed
    assert different - failed.keys() <= different - outcomes.keys(), "a documented difference is none"
