"""Plume's text format: what we write keeps the verdict, and what others write can be read."""

from __future__ import annotations

import io
import random
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.tools.history.histories import CLEAN, VIOLATING, changed, get, patterns, put
from tests.tools.history.model import run_model
from tools.history import HistoryError, Operation, check, dump, dump_plume, load_plume
from tools.management.commands.check_history import Command


def through(history: list[Operation]) -> list[Operation]:
    return load_plume(dump_plume(history))


@pytest.mark.parametrize("name", CLEAN)
def test_a_legal_history_stays_legal(name: str) -> None:
    assert patterns(through(CLEAN[name])) == []


def is_expressible(history: list[Operation]) -> bool:
    """Return whether the format can say everything that is in the history."""
    return not any(
        operation.siblings or operation.versions or operation.replica or operation.update or operation.kind == "changes"
        for operation in history
    ) and all(value is not None for operation in history for _, value in operation.writes)


EXPRESSIBLE = [name for name, (_, history) in VIOLATING.items() if is_expressible(history)]


def test_most_violations_can_be_expressed() -> None:
    assert len(EXPRESSIBLE) >= 8


@pytest.mark.parametrize("name", EXPRESSIBLE)
def test_a_violation_stays_one(name: str) -> None:
    assert patterns(through(VIOLATING[name][1]))


def test_lines_have_plumes_form() -> None:
    history = [put("ann", photo="p"), put("ann", album="a"), get("bob", album="a", photo=None)]
    assert dump_plume(history).splitlines() == [
        "w(1,1,1,1)",
        "w(2,1,1,2)",
        "r(2,1,2,3)",
        "r(1,0,2,3)",
    ]
    assert patterns(through(history)) == ["WriteCOInitRead"]


def test_metadata_that_was_handed_over_is_a_key_of_its_own() -> None:
    first = changed(put("a", x="1"), id="first")
    history = [first, changed(get("b", y=None), after=("first",)), get("b", x=None)]
    assert patterns(history) == patterns(through(history)) == ["WriteCOInitRead"]


def test_a_write_with_an_unknown_outcome_follows_its_session_and_binds_it_to_nothing() -> None:
    unknown = changed(put("a", x="2"), status="unknown")
    unread = [put("a", y="1"), unknown, get("a", x=None)]
    assert "w(1,1,1,1)" in dump_plume(unread)
    assert patterns(through(unread)) == []
    read = [put("a", y="1"), unknown, get("b", x="2"), get("b", y=None), get("a", x=None)]
    assert patterns(read) == patterns(through(read)) == ["WriteCOInitRead"]


def test_what_failed_is_left_out_and_hands_over_what_its_session_had_before() -> None:
    history = [
        put("a", x="1"),
        changed(put("a", x="2"), status="failed", id="failed"),
        changed(get("b", y=None), after=("failed",)),
        get("b", x=None),
    ]
    assert patterns(through(history)) == ["WriteCOInitRead"]
    assert patterns(through(history[:3])) == []


seeds = st.integers(0, 2**32)


@given(seed=seeds, steps=st.integers(0, 200), keys=st.integers(2, 6), clients=st.integers(1, 8))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_histories_of_a_correct_store_have_no_violation(seed: int, steps: int, keys: int, clients: int) -> None:
    history = run_model(seed, steps, keys=keys, clients=clients).history
    assert str(check(through(history))).startswith("causally consistent")


@given(seed=seeds)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_a_read_of_another_value_gets_the_same_verdict(seed: int) -> None:
    """Of histories without deletes, siblings and unknown outcomes: there the formats say the same."""
    rng = random.Random(seed)
    history = [
        changed(operation, siblings=(), expiring=False, versions=(), replica=None, after=(), status="ok")
        for operation in run_model(seed, 80, keys=3, clients=4).history
        if all(value is not None for _, value in operation.writes)
    ]
    written = [pair for operation in history for pair in operation.writes]
    readers = [index for index, operation in enumerate(history) if operation.reads]
    if not written or not readers:
        return
    index = rng.choice(readers)
    key, value = rng.choice(written)
    reads = dict(history[index].reads) | {key: value}
    history[index] = changed(history[index], reads=tuple(reads.items()))
    assert check(through(history)).ok == check(history).ok


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("r(1,2,3)", "line 1: not of the form"),
        ("w(1,1,1,1)\nr(1,1,2,1)", "line 2: transaction 1 is in session s1 too"),
        ("w(1,0,1,1)", "line 1: nobody can write 0"),
        ("r(1,1,1,1)\nr(1,2,1,1)", "line 2: the transaction reads two values"),
        ("w(1,1,1,1)\nr(1,2,1,1)", "line 2: the transaction reads another value"),
        (f"w(1,{'9' * 30},1,1)", "line 1: not of the form"),
    ],
)
def test_what_is_no_history_is_named_with_its_line(text: str, message: str) -> None:
    with pytest.raises(HistoryError, match=message):
        load_plume(text)


def test_a_transaction_may_read_its_own_write_and_write_twice() -> None:
    assert load_plume("w(1,1,1,1)\nr(1,1,1,1)\nw(1,2,1,1)\n\nr(1,2,2,2)\n") == [
        Operation("s1", "txn", writes=(("k1", 2),)),
        Operation("s2", "txn", reads=(("k1", 2),)),
    ]


def test_the_command_reads_and_writes_the_format(tmp_path: Path) -> None:
    recorded, written = tmp_path / "history.jsonl", tmp_path / "history.txt"
    recorded.write_bytes(dump(VIOLATING["the photo is missing from the album"][1]))
    for arguments in ([str(recorded), "--write-plume", str(written)], ["--plume", str(written)]):
        out = io.StringIO()
        with pytest.raises(CommandError, match="not causally consistent"):
            call_command(Command(), *arguments, stdout=out)
        assert "WriteCOInitRead" in out.getvalue()
    written.write_text("w(1,1,1,1)\nr(1,1,2,2)\n")
    call_command(Command(), "--plume", str(written), stdout=io.StringIO())
