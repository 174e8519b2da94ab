"""The switch that writes what the scenarios really say into their files. Review the diff."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-scenarios",
        action="store_true",
        help="write what tests/replication/scenarios/*.txt really say into the files; review the diff",
    )
