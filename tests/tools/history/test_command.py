"""``manage.py check_history``."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from tests.tools.history.histories import CLEAN, VIOLATING, patterns, put
from tools.history import (
    dump,
    load,
)
from tools.management.commands.check_history import Command


def test_the_command_prints_a_small_counterexample(tmp_path: Path) -> None:
    pattern, history = VIOLATING["the photo is missing from the album"]
    file = tmp_path / "history.jsonl"
    file.write_bytes(dump([*history, put("z", other="1")]))
    out = io.StringIO()
    with pytest.raises(CommandError) as caught:
        call_command(Command(), str(file), stdout=out)
    assert caught.value.returncode == 1
    text = out.getvalue()
    assert pattern in text
    assert "(4 of 5 operations)" in text
    # The printed counterexample can be checked again.
    lines = text.split("The counterexample as JSON lines:\n")[1]
    assert patterns(load(lines)) == [pattern]


def test_the_command_succeeds_for_a_clean_history(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    file.write_bytes(dump(CLEAN["deleted, then absent"]))
    out = io.StringIO()
    call_command(Command(), str(file), stdout=out)
    assert out.getvalue() == "causally consistent: 3 operations, 1 reads, 0 conflicts\n"


@pytest.mark.parametrize("content", ["{", '{"session":"a","kind":"put","after":["nobody"]}', None])
def test_the_command_fails_for_an_invalid_file(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "history.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(CommandError):
        call_command(Command(), str(file))
