"""How the pages write durations, sizes, rates, lists and addresses."""

from __future__ import annotations

import pytest

from kvsite.dashboard.formatting import ago, listed, rate, short_labels, size, span


def test_formatting() -> None:
    assert [span(s) for s in (None, 0, 9.96, 42.9, 61, 3700, 90000)] == [
        "unknown",
        "0.0 s",
        "10.0 s",
        "42 s",
        "1 min 1 s",
        "1 h 1 min",
        "1 d 1 h",
    ]
    assert (ago(None), ago(3)) == ("never", "3.0 s ago")
    assert [size(n) for n in (None, 0, 1500, 150_000, 66_800_000, 2_000_000_000)] == [
        "unknown",
        "0 B",
        "1.5 kB",
        "150 kB",
        "66.8 MB",
        "2.0 GB",
    ]
    assert [rate(n) for n in (0, 0.4, 12.4, 12345)] == ["0/s", "0.4/s", "12/s", "12,345/s"]
    assert [listed(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"], list("abcde"))] == [
        "",
        "a",
        "a and b",
        "a, b and c",
        "a, b, c and 2 more",
    ]


@pytest.mark.parametrize(
    ("addresses", "labels"),
    [
        (["127.0.0.1:1", "127.0.0.1:2"], [":1", ":2"]),
        (["kv-1:8090", "kv-2:8090"], ["kv-1", "kv-2"]),
        (["a:1", "b:2"], ["a:1", "b:2"]),
        (["[::1]:1", "[::1]:2"], [":1", ":2"]),
        ([], []),
    ],
)
def test_short_labels_are_the_parts_that_differ(addresses: list[str], labels: list[str]) -> None:
    assert list(short_labels(addresses).values()) == labels
