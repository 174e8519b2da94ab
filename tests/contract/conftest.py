"""docs/contract.md, section 2, sentence by sentence, over HTTP against three real replicas.

The name of each test starts with its section; the docstring quotes the promise. The tests in tests/store/api check more
variants of keys, values, metadata and bad input at a single replica. Here every promise is checked once, end to end.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest

from kvsite.cluster import LocalCluster
from tests.contract.client import Client
from tests.support.ports import free_ports


@pytest.fixture(scope="package")
def api() -> Iterator[Client]:
    """Three replicas with default settings. Tests that leave no lasting change share them."""
    with LocalCluster(3, free_ports(3)) as running:
        yield Client(running)


@pytest.fixture(scope="package")
def limited() -> Iterator[Client]:
    """One replica with low limits."""
    limits = {
        "KV_MAX_BODY_BYTES": "4096",
        "KV_MAX_KEY_BYTES": "8",
        "KV_MAX_VALUE_BYTES": "1000",
        "KV_MAX_CLOCK_ENTRIES": "2",
        "KV_MAX_BATCH": "3",
        "KV_MAX_MEMORY": "5000",
        "KV_DEFER_TIMEOUT": "0",
        "KV_MAX_WATCHERS": "1",
        "KV_MAX_DEFERRED": "1",
    }
    with LocalCluster(1, free_ports(1), environment=limits) as running:
        yield Client(running)


_numbers = count()


@pytest.fixture
def key() -> str:
    """Return a path that no other test uses."""
    return f"/kvs/contract{next(_numbers)}"
