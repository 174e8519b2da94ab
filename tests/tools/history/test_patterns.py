"""Hand-written histories: each pattern is found, legal histories have none, and counterexamples are small."""

from __future__ import annotations

import pytest

from tests.tools.history.histories import CLEAN, VIOLATING, changed, delete, get, patterns, put
from tests.tools.history.naive import kinds, naive
from tools.history import (
    HistoryError,
    Operation,
    check,
    shrink,
)


@pytest.mark.parametrize("name", CLEAN)
def test_a_legal_history_has_no_violation(name: str) -> None:
    assert patterns(CLEAN[name]) == []
    assert shrink(CLEAN[name]) == []


@pytest.mark.parametrize("name", VIOLATING)
def test_each_pattern_is_found(name: str) -> None:
    pattern, history = VIOLATING[name]
    assert patterns(history) == [pattern]


@pytest.mark.parametrize("name", VIOLATING)
def test_the_naive_checker_agrees_on_hand_written_histories(name: str) -> None:
    history = VIOLATING[name][1]
    if VIOLATING[name][0] != "DotReuse" and not any(operation.versions for operation in history):
        assert kinds(check(history)) == naive(history)


@pytest.mark.parametrize("name", VIOLATING)
def test_the_counterexample_is_found_among_unrelated_operations(name: str) -> None:
    pattern, history = VIOLATING[name]
    noise = [put(f"n{i % 3}", **{f"noise{i}": str(i)}) for i in range(60)]
    noise += [get(f"n{i % 3}", **{f"noise{i}": str(i)}) for i in range(60)]
    mixed = noise[:50] + history + noise[50:]
    small = shrink(mixed)
    assert pattern in patterns(small)
    assert len(small) <= len(history)


def test_a_counterexample_keeps_the_path_of_causes_and_nothing_else() -> None:
    history = [put("a", x="1"), put("a", x="2")]
    for i in range(200):  # 200 causal paths from session a to session b
        history.append(put("a", **{f"k{i}": "1"}))
        history.append(get("b", **{f"k{i}": "1"}))
    history += [put("b", z="1"), get("c", z="1"), get("c", x="1")]
    small = shrink(history)
    assert patterns(small) == ["WriteCORead"]
    # Both writes of x, one path to b, one path to c, and the read.
    assert len(small) <= 7


def test_a_counterexample_never_depends_on_an_omitted_delete() -> None:
    # The delete by e excuses the absent read of b, but not that of a. Without the delete both would be violations.
    history = [
        put("a", x="1"),
        put("a", y="1"),
        get("b", x="1"),
        get("b", y=None),
        get("b", x=None),
        delete("e", "x"),
        get("a", y=None),
    ]
    assert patterns(history) == ["WriteCOInitRead"]
    assert [operation.id for operation in shrink(history)] == ["a#1", "a#2"]


def test_a_large_transaction_is_trimmed() -> None:
    wide = {f"k{i}": "1" for i in range(30)}
    small = shrink([put("a", **wide), get("b", **{**wide, "k7": None})])
    assert [len(operation.reads) + len(operation.writes) for operation in small] == [2, 2]


def test_a_replica_must_keep_what_it_served_to_another_client() -> None:
    history = [
        put("a", x="1"),
        put("a", x="2"),
        changed(get("b", x="2"), replica="r@1"),
        changed(get("c", x="1"), replica="r@1"),
    ]
    assert patterns(history) == []
    assert patterns(history, served_in_order=True) == ["WriteCORead"]
    restarted = [*history[:3], changed(history[3], replica="r@2")]
    assert patterns(restarted, served_in_order=True) == []


def test_arbitration_can_be_disabled() -> None:
    history = VIOLATING["the winner changes back"][1]
    assert patterns(history, arbitration=False) == []


def test_many_unknown_writes_share_few_lanes() -> None:
    history = []
    for i in range(300):
        history += [changed(put("a", x=f"{i}"), status="unknown"), get("a", x=f"{i}")]
    assert patterns(history) == []
    history.append(get("a", x="298"))
    assert patterns(history) == ["WriteCORead"]


def test_many_concurrent_unknown_writes() -> None:
    history = [changed(put("a", **{f"k{i}": "1"}), status="unknown") for i in range(40)]
    history += [get(f"s{i}", **{f"k{i}": "1"}) for i in range(40)]
    assert patterns(history) == []
    history.append(get("s7", k7=None))
    assert patterns(history) == ["WriteCOInitRead"]


def test_violations_are_limited() -> None:
    history = [put("a", x="1"), *(get("a", x=None) for _ in range(50))]
    report = check(history, limit=3)
    assert len(report.violations) == 3
    assert report.truncated
    assert not check(history, limit=50).truncated


def test_a_report_explains_the_violation() -> None:
    report = check([put("ann", x="1"), get("ann", x=None)])
    assert not report.ok
    assert str(report) == (
        "WriteCOInitRead: ann#1 [get: read no x] finds no value of 'x', although ann#0 [put: wrote x='1'], which is in "
        "its causal past, wrote one, and no delete or expiry can have removed it"
    )
    assert str(check([put("a", x="1"), get("a", x="1")])) == "causally consistent: 2 operations, 1 reads, 0 conflicts"


@pytest.mark.parametrize(
    ("history", "message"),
    [
        ([put("a", x="1"), put("b", x="1")], "unique"),
        ([changed(put("a", x="1"), after=("nobody",))], "not in the history"),
        ([changed(put("a", x="1"), id="i"), changed(put("a", x="2"), id="i", after=("i",))], "two operations"),
    ],
)
def test_an_invalid_history_is_rejected(history: list[Operation], message: str) -> None:
    with pytest.raises(HistoryError, match=message):
        check(history)
