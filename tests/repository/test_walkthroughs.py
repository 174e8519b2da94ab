"""The pages that a newcomer types: every command works, in the order of the page, and prints what the page shows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvsite.cluster import LocalCluster
from store.address import split_address
from tests.conftest import ClusterFactory
from tests.support.ports import free_ports
from tests.support.walkthrough import Step, Terminal, matches, steps
from tools.paths import REPOSITORY

TEN_MINUTES = REPOSITORY / "docs" / "ten-minutes.md"
README = REPOSITORY / "README.md"
SECURED = REPOSITORY / "docs" / "secured-cluster.md"

ACTIONS: dict[str, Callable[[LocalCluster], None]] = {
    "make run": LocalCluster.wait_ready,
    "kill -9 PID": lambda made: made.kill(2),
    ".venv/bin/python manage.py run_replica --address 127.0.0.1:8092 --view 127.0.0.1:8090": lambda made: (
        made.start_one(2)
    ),
}
"""What a test does in place of the commands that ``make run`` starts and prints."""


@pytest.mark.processes
def test_ten_minutes(cluster: ClusterFactory, tmp_path: Path) -> None:
    made, done = cluster(3, start=False), 0
    made.start()
    with Terminal(tmp_path, split_address(made.addresses[0])[1]) as terminal:
        for step in steps(TEN_MINUTES):
            if step.runs:
                terminal.type(step)
            else:
                ACTIONS[step.command](made)
            done += 1
    assert done >= 20


@pytest.mark.processes
def test_a_secured_cluster(tmp_path: Path) -> None:
    done = 0
    with Terminal(tmp_path, free_ports(3)) as terminal:
        for step in steps(SECURED):
            assert step.runs, step
            terminal.type(step)
            done += 1
    assert done >= 15
    assert (tmp_path / "secured" / "ca.key").stat().st_mode & 0o077 == 0


@pytest.mark.processes
def test_the_session_of_the_readme(tmp_path: Path) -> None:
    """README.md says what to do if A was faster than its pause: repeat. On a busy machine that happens."""
    for attempt in range(5):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        if type_session(directory) >= 12:
            return
    pytest.fail("A has sent the write to B before it was paused, each time")


def type_session(directory: Path) -> int:
    """Type the session, and return the number of its commands; 0 if A was faster than its pause."""
    done = 0
    with Terminal(directory, free_ports(3)) as terminal:
        for step in steps(README, "A session with two replicas"):
            assert step.runs, step
            try:
                terminal.type(step)
            except AssertionError as exc:
                if step.expected.startswith("HTTP/1.1 503") and '{"result":"found","value":"pasta",' in str(exc):
                    return 0
                raise
            done += 1
    return done


def test_steps_of_one_section(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# a\n```console\n$ 1\n```\n## b\n```console\n$ 2\n```\n### c\n```console\n$ 3\n```\n"
        "## d\n```console\n$ 4\n```\n"
    )
    assert [step.command for step in steps(page, "b")] == ["2", "3"]


def test_steps_are_read_as_typed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("a\n```console\n$ cat <<EOF\nx\nEOF\nx\n$ true\n```\n```sh\nmake run\n```\n```json\n{}\n```\n")
    assert [*steps(page)] == [
        Step("cat <<EOF\nx\nEOF", "x", runs=True),
        Step("true", "", runs=True),
        Step("make run", "", runs=False),
    ]


@pytest.mark.parametrize(
    ("expected", "printed", "same"),
    [("a…c", "abc", True), ("a…c", "ab\nc", False), ("a.c", "abc", False), ("", "", True), ("", "error", False)],
)
def test_only_marked_text_may_differ(expected: str, printed: str, same: bool) -> None:
    assert matches(expected, printed) is same
