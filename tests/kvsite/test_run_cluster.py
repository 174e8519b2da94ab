"""``run_cluster``: its table, its question before keys are lost, and ports that are taken."""

from __future__ import annotations

import io
import signal
import socket
from contextlib import closing
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.core.management.base import OutputWrapper

from kvsite import cli, signals
from kvsite.cluster import other_ports
from kvsite.management.commands import run_cluster
from kvsite.management.commands.run_cluster import CONFIRM_S, HEAD, StatusPrinter, farewell, table_lines

ROW = ("127.0.0.1:8090", "serving", "3 of 3", "1000000", "0", "12345", "12345")


@pytest.mark.parametrize("columns", [1, 10, 20, 40, 60, 80, 200])
@pytest.mark.parametrize("lines", [2, 5, 24])
def test_the_table_fits_any_terminal(columns: int, lines: int) -> None:
    shown = table_lines([HEAD, *[ROW] * 64], columns, lines)
    assert max(map(len, shown)) < max(columns, 2)
    assert len(shown) <= max(2, lines - 1)
    if columns >= 40 and lines > 2:
        assert "STATE" in shown[0]
        assert "serving" in shown[1]
    if columns >= 20:
        assert "more" in shown[-1]


def test_a_wide_terminal_shows_all_columns_in_line() -> None:
    head, row = table_lines([HEAD, ROW], 80, 24)
    assert head.split() == list(HEAD)
    assert all(head.index(name) == row.index(cell) for name, cell in zip(HEAD[:4], ROW[:4], strict=True))


def test_a_narrow_terminal_hides_the_last_columns_first() -> None:
    head, _ = table_lines([HEAD, ROW], 40, 24)
    assert head.split() == ["REPLICA", "STATE", "ALIVE", "KEYS"]


class FakeCluster:
    """``running``: the replicas that are processes of this cluster. ``ready``: the addresses that answer."""

    addresses = ("127.0.0.1:1", "127.0.0.1:2")
    running = frozenset({0, 1})
    ready = frozenset(addresses)

    def is_running(self, i: int) -> bool:
        return i in self.running

    def answers_ready(self, address: str) -> bool:
        return address in self.ready


def printer(*, is_live: bool = True, cluster: FakeCluster | None = None) -> tuple[StatusPrinter, io.StringIO]:
    out = io.StringIO()
    return StatusPrinter(cluster or FakeCluster(), OutputWrapper(out), is_live=is_live), out  # type: ignore[arg-type]


def test_the_first_ctrl_c_on_a_terminal_says_what_is_lost_and_the_second_one_stops() -> None:
    shown, out = printer()
    assert not shown._may_stop(signal.SIGINT, 3)
    assert "3 keys are in memory only. Press Ctrl-C again within 10 s to lose them." in out.getvalue()
    assert shown._may_stop(signal.SIGINT, 3)


def test_the_question_is_asked_anew_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, _ = printer()
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    assert not shown._may_stop(signal.SIGINT, 1)
    now_s += CONFIRM_S
    assert not shown._may_stop(signal.SIGINT, 1)


@pytest.mark.parametrize(
    ("signum", "keys", "is_live"),
    [(signal.SIGINT, 0, True), (signal.SIGTERM, 3, True), (signal.SIGHUP, 3, True), (signal.SIGINT, 3, False)],
)
def test_it_stops_at_once_without_keys_without_a_terminal_and_for_other_signals(
    signum: int, keys: int, *, is_live: bool
) -> None:
    shown, out = printer(is_live=is_live)
    assert shown._may_stop(signum, keys)
    assert out.getvalue() == ""


class FakeStop:
    """Stop requests that arrive at once. ``waited``: how many did."""

    def __init__(self) -> None:
        self.signum = signal.SIGINT
        self.waited = self.withdrawn = 0

    def wait(self, timeout_s: float) -> bool:
        self.waited += 1
        return True

    def withdraw(self) -> None:
        self.withdrawn += 1


def test_the_table_is_drawn_until_the_second_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = FakeStop()
    monkeypatch.setattr(run_cluster, "StopRequest", lambda: stop)
    shown, out = printer()
    monkeypatch.setattr(shown, "_row", lambda i: run_cluster.Row(("serving", "1 of 1", "2", "0", "0", "0"), 2))
    shown.run()
    assert (stop.waited, stop.withdrawn) == (2, 1)
    assert out.getvalue().count("serving") == 2 * len(FakeCluster.addresses)
    assert "2 keys are in memory only" in out.getvalue()


class RestartedByHand(FakeCluster):
    running = frozenset({0})
    ready = frozenset({"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:4"})


ALIVE = frozenset({"127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3", "127.0.0.1:4"})
"""The third has just been killed: members do not know it yet."""


def test_nothing_is_lost_while_a_replica_goes_on_that_was_started_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = FakeStop()
    monkeypatch.setattr(run_cluster, "StopRequest", lambda: stop)
    shown, out = printer(cluster=RestartedByHand())
    row = run_cluster.Row(("serving", "4 of 4", "2", "0", "0", "0"), 2, ALIVE)
    monkeypatch.setattr(shown, "_row", lambda i: row)
    others = shown.run()
    assert others == ["127.0.0.1:2", "127.0.0.1:4"]
    assert stop.waited == 1, "no second Ctrl-C is needed"
    assert "to lose them" not in out.getvalue()
    said = farewell(others)
    assert said.endswith("in the memory of 127.0.0.1:2, 127.0.0.1:4, which this command has not started.")
    assert "lost" not in said
    assert "h:1, h:2, h:3 and 2 more, which" in farewell([f"h:{n}" for n in range(1, 6)])
    assert farewell([]) == "Stopping. The data was in memory and is lost."


@pytest.mark.parametrize(("command", "target"), [("run_cluster", "run"), ("demo", "demo")])
def test_a_port_that_is_taken_is_answered_with_a_command_that_works(
    monkeypatch: pytest.MonkeyPatch, command: str, target: str
) -> None:
    monkeypatch.setattr(signals, "block", lambda: None)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        options: dict[str, Any] = {"limit": 1} if command == "demo" else {}
        with pytest.raises(CommandError, match="Address already in use") as raised:
            call_command(command, "--base-port", str(port), stdout=io.StringIO(), **options)
    assert str(raised.value).endswith(other_ports(port, 3, command, target))
    assert f"make {target} BASE_PORT=" in str(raised.value)


def test_other_ports_exist() -> None:
    assert "BASE_PORT=9090, or " in other_ports(8090, 3)
    assert other_ports(8090, 3).endswith("run_cluster --base-port 9090")
    assert "BASE_PORT=8090" in other_ports(65_000, 3)


def test_outside_a_checkout_there_is_no_make(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "is_checkout", lambda: False)
    assert "make" not in other_ports(8090, 3)
