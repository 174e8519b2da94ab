"""The oracle knows which requests have to succeed, where random runs seldom go."""

from __future__ import annotations

from random import Random

import pytest

from store.merging import Increment
from store.versions import Change, Patch, Version, Versions
from tools.simulation.oracle import Oracle
from tools.simulation.world import World


def plain(*values: bytes) -> Versions:
    return tuple(Version(value, f"r{n}", 1, 1, {}) for n, value in enumerate(values))


@pytest.mark.parametrize(
    ("current", "operation", "may"),
    [
        (plain(b"1"), None, True),
        (plain(b"1", b"1"), None, True),
        (plain(b"1", b"2"), None, False),
        (plain(b"1", b"1"), Increment(1), False),
        ((), None, False),
        ((), Increment(1), True),
    ],
)
def test_a_time_to_live_changes_for_one_plain_value_in_however_many_versions(
    current: Versions, operation: Increment | None, may: bool
) -> None:
    oracle = Oracle(World(Random(1), ["r1:1"]))
    change = Change("m0", None, patch=Patch(operation, keeps_ttl=False, max_bytes=1000))
    assert oracle.may_patch(change, current) is may
