"""Run the scenario files of ``tests/replication/scenarios``; tests/support/scenario.py interprets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scenario import format_blocks, play, read_blocks

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_has_the_expected_output(path: Path, pytestconfig: pytest.Config) -> None:
    blocks = read_blocks(path)
    played = play(blocks)
    if pytestconfig.getoption("rewrite_scenarios"):
        path.write_text(format_blocks(played), "utf-8")
        return
    for block, actual in zip(blocks, played, strict=True):
        assert actual.expected == block.expected, f"{path.name}:{block.line}"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_file_has_the_format_that_the_rewrite_option_writes(path: Path) -> None:
    assert format_blocks(read_blocks(path)) == path.read_text("utf-8")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_begins_with_prose(path: Path) -> None:
    assert path.read_text("utf-8").startswith("# ")
