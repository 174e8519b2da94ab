"""Each file of ``tests/replication/scenarios`` shows one subtle rule as text (tests/support/scenario.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.scenario import format_blocks, play, read_blocks

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, pytestconfig: pytest.Config) -> None:
    blocks = read_blocks(path)
    played = play(blocks)
    if pytestconfig.getoption("rewrite_scenarios"):
        path.write_text(format_blocks(played), "utf-8")
        return
    for block, happened in zip(blocks, played, strict=True):
        assert happened.expected == block.expected, f"{path.name}:{block.line}"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_is_written_as_the_rewrite_switch_writes_it(path: Path) -> None:
    assert format_blocks(read_blocks(path)) == path.read_text("utf-8")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_a_scenario_says_why(path: Path) -> None:
    assert path.read_text("utf-8").startswith("# ")
