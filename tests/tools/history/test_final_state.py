"""Checks of the final states of the replicas."""

from __future__ import annotations

import pytest

from tests.tools.history.histories import changed, delete, get, put
from tools.history import (
    FINAL_SESSION,
    Operation,
    Survivor,
    Value,
    check_convergence,
    check_durability,
    check_survivors,
)


def test_replicas_must_end_equal() -> None:
    assert check_convergence({"r": {"x": "1"}, "s": {"x": "1", "y": None}}).ok
    report = check_convergence({"r": {"x": "1"}, "s": {"x": "2"}, "t": {"x": "1"}})
    assert str(report) == "Divergence: replicas differ on 'x': r, t: '1'; s: '2'"
    assert not check_convergence({"r": {"x": "1"}, "s": {}}).ok


@pytest.mark.parametrize(
    ("history", "final", "expected"),
    [
        ([put("a", x="1"), put("a", x="2")], {"x": ["2"]}, []),
        ([put("a", x="1"), put("a", x="2")], {"x": ["1"]}, ["WriteCORead"]),
        ([put("a", x="1"), put("b", x="2")], {"x": ["1"]}, []),
        ([put("a", x="1"), put("b", x="2")], {"x": ["1", "2"]}, []),
        ([put("a", x="1")], {}, ["WriteCOInitRead"]),
        ([put("a", x="1"), delete("b", "x")], {}, []),
        ([put("a", x="1"), delete("a", "x")], {"x": ["1"]}, ["DeletedRead"]),
        ([put("a", x="1")], {"x": ["7"]}, ["ThinAirRead"]),
        ([changed(put("a", x="1"), status="unknown")], {}, []),
        ([changed(put("a", x="1"), status="lost")], {}, []),
        ([put("a", x="1"), changed(put("a", x="2"), status="lost")], {"x": ["1"]}, []),
        ([put("a", x="1"), put("b", x="2"), get("c", x="1"), get("c", x="2")], {"x": ["1"]}, ["CyclicCF"]),
        # The violation is not in the final state: ``check`` finds it, ``check_durability`` does not report it.
        ([put("a", x="1"), get("a", x=None)], {"x": ["1"]}, []),
    ],
)
def test_an_acknowledged_write_is_present_or_was_replaced(
    history: list[Operation], final: dict[str, list[Value]], expected: list[str]
) -> None:
    report = check_durability(history, final)
    assert [violation.pattern for violation in report.violations] == expected
    assert all(FINAL_SESSION in violation.operations for violation in report.violations)


UPDATES = [
    Survivor("r:1", puts=("x",), timestamp=1, replica="r"),
    Survivor("s:1", puts=("x",), timestamp=2, replica="s"),
    Survivor("r:2", puts=("x",), replaces=(("x", "r:1"),), timestamp=3, replica="r"),
    Survivor("r:3", puts=("y",), timestamp=4, replica="r"),
    Survivor("s:2", deletes=("y",), replaces=(("y", "r:3"),), timestamp=5, replica="s"),
    Survivor("t:1", puts=("x", "z"), replaces=(("x", "s:1"),), timestamp=5, replica="t", lost=True),
    Survivor("s:3", puts=("w",), timestamp=6, replica="s", expiring=True),
]


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"x": ["r:2", "s:1"]}, []),
        ({"x": ["r:2", "s:1"], "w": ["s:3"]}, []),
        # t:1 was lost: it, and the version that it replaced, may be present or missing.
        ({"x": ["r:2"]}, []),
        ({"x": ["t:1", "r:2"], "z": ["t:1"]}, []),
        ({"x": ["s:1", "r:2"]}, ["WrongWinner"]),
        ({"x": ["s:1"]}, ["LostWrite"]),
        ({"x": ["r:2", "r:1"]}, ["Resurrection"]),
        ({"x": ["r:2"], "y": ["r:3"]}, ["Resurrection"]),
        ({"x": ["r:2", "q:9"]}, ["UnknownVersion"]),
        ({"x": ["r:2"], "y": ["s:2"]}, ["UnknownVersion"]),
    ],
)
def test_a_complete_record_accounts_for_each_version(state: dict[str, list[str]], expected: list[str]) -> None:
    report = check_survivors(UPDATES, {"r": {"x": ["r:2", "s:1"]}, "s": state})
    assert [violation.pattern for violation in report.violations] == expected


def test_a_timestamp_below_that_of_a_replaced_version_is_reported() -> None:
    updates = [
        Survivor("r:1", puts=("x",), timestamp=9),
        Survivor("r:2", puts=("x",), replaces=(("x", "r:1"),), timestamp=5),
    ]
    assert [v.pattern for v in check_survivors(updates, {}).violations] == ["ClockOrder"]
