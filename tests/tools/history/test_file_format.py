"""Histories as JSON lines."""

from __future__ import annotations

import pytest

from tests.tools.history.histories import CLEAN, VIOLATING, put
from tools.history import (
    HistoryError,
    Operation,
    dump,
    load,
)


@pytest.mark.parametrize("history", [*CLEAN.values(), *(history for _, history in VIOLATING.values())])
def test_a_history_survives_dump_and_load(history: list[Operation]) -> None:
    assert load(dump(history)) == history
    assert load(dump(history).decode()) == history


def test_lines_are_split_at_newlines_only() -> None:
    history = [put("a", **{"x\u2028": "line\u2028separator\u0085"})]
    assert load(dump(history)) == history
    assert load("\n" + dump(history).decode() + "\r\n\n") == history


@pytest.mark.parametrize(
    "line",
    [
        '{"session":"a"}',
        "[]",
        "{",
        '{"session":"a","kind":"put","writes":[["x",1.5]]}',
        '{"session":"a","kind":"put","writes":[["x"]]}',
        '{"session":"a","kind":"fetch"}',
        "[" * 100_000,
        b'{"session":"\xff","kind":"get"}',
        '{"session":"\ud800","kind":"get"}',
    ],
)
def test_the_error_names_the_invalid_line(line: str | bytes) -> None:
    first = '{"session":"a","kind":"get","reads":[["x",null]]}\n'
    with pytest.raises(HistoryError, match="line 2"):
        load(first.encode() + line if isinstance(line, bytes) else first + line)
