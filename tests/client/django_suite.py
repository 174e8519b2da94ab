"""Run Django's own tests of caches, ``BaseCacheTests``, with ``CausewayCache``. test_django_suite.py runs this program.

    python tests/client/django_suite.py DJANGO_TESTS URL SERIALIZER

``DJANGO_TESTS``: the directory ``tests`` of Django's source. Prints one JSON object: test -> "passed", or what it
raised.
"""

from __future__ import annotations

import json
import os
import sys
import unittest
import warnings
from typing import Any

TESTS, URL, SERIALIZER = sys.argv[1:4]


def set_up() -> None:
    """Configure Django as its own test runner does for these tests."""
    import django
    from django.conf import settings

    sys.path.insert(0, TESTS)
    os.environ["RUNNING_DJANGOS_TEST_SUITE"] = "true"
    warnings.simplefilter("ignore", RuntimeWarning)  # of pickle; tests of warnings catch them by themselves
    settings.configure(
        SECRET_KEY="test",
        USE_TZ=False,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        INSTALLED_APPS=["cache"],
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        ALLOWED_HOSTS=["testserver"],
        MIDDLEWARE=[],
        ROOT_URLCONF="",
    )
    django.setup()
    from django.core.management import call_command

    call_command("migrate", run_syncdb=True, verbosity=0)


class Outcomes(unittest.TestResult):
    """Notes the outcome of each test."""

    def __init__(self) -> None:
        super().__init__()
        self.by_name: dict[str, str] = {}

    def addSuccess(self, test: unittest.TestCase) -> None:  # noqa: N802
        self.by_name.setdefault(test._testMethodName, "passed")

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:  # noqa: N802
        self.by_name[test._testMethodName] = f"{err[0].__name__}: {err[1]}"

    addError = addFailure  # noqa: N815

    def addSubTest(self, test: unittest.TestCase, subtest: Any, err: Any) -> None:  # noqa: N802
        if err is not None:
            key = f"{test._testMethodName}[{subtest.params.get('key')}]"
            self.by_name[key] = f"{err[0].__name__}: {err[1]}"

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        self.by_name[test._testMethodName] = f"skipped: {reason}"


def main() -> None:
    """Run the tests."""
    set_up()
    from cache.tests import BaseCacheTests, caches_setting_for_tests  # type: ignore[import-not-found]
    from django.test import TestCase, override_settings

    base = {
        "BACKEND": "causeway_client.django.cache.CausewayCache",
        "LOCATION": URL,
        "OPTIONS": {"serializer": SERIALIZER, "fail_open": False},
    }
    configured = caches_setting_for_tests(base=base)
    for params in configured.values():
        params["OPTIONS"] = {**base["OPTIONS"], **params["OPTIONS"]}  # type: ignore[dict-item]

    @override_settings(CACHES=configured)
    class CausewayCacheTests(BaseCacheTests, TestCase):  # type: ignore[misc]
        pass

    outcomes = Outcomes()
    unittest.defaultTestLoader.loadTestsFromTestCase(CausewayCacheTests).run(outcomes)
    print(json.dumps(outcomes.by_name))  # noqa: T201


if __name__ == "__main__":
    main()
