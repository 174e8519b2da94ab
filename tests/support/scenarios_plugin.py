"""The pytest option that writes the actual output of the scenarios into their files."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write the actual output into tests/replication/scenarios/*.txt; review the diff",
    )
