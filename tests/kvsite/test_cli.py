"""The command line (tests/repository/test_installation.py installs it)."""

from __future__ import annotations

import io
import re
import sys
import tomllib
from typing import Any

import pytest
from django.core.management import get_commands

from kvsite import cli, signals
from kvsite.command_line import OWN_APPS, WITHOUT_USE, _sentence
from kvsite.management.commands import runserver
from store.version import VERSION
from tools.paths import REPOSITORY


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run the command line in this process, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["manage.py", *arguments])
    try:
        return cli.main()
    except SystemExit as exc:
        return int(exc.code or 0)


@pytest.mark.parametrize("arguments", [["--version"], ["version"], ["kvs", "--version"], ["run_replica", "--version"]])
def test_the_version_is_that_of_causeway(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    # run_replica blocks signals, which this process still needs.
    monkeypatch.setattr(signals, "block", lambda: None)
    assert run(monkeypatch, *arguments) == 0
    assert capsys.readouterr().out == f"Causeway {VERSION}\n"


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert project["version"] == VERSION
    assert f'image.version="{VERSION}"' in (REPOSITORY / "Dockerfile").read_text("utf-8")


@pytest.mark.parametrize("arguments", [[], ["help"], ["--help"]])
def test_help_lists_the_commands_of_causeway_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) == 0
    shown = capsys.readouterr().out
    for name in ("run_replica", "run_cluster", "kvs", "show_view", "join_view", "leave_view", "check", "simulate"):
        assert re.search(rf"^  {name} +[A-Z]", shown, re.MULTILINE), name
    for name in ("migrate", "runserver", "createsuperuser", "startapp", "spectacular"):
        assert name not in shown


@pytest.mark.parametrize("name", sorted(WITHOUT_USE))
def test_commands_of_django_that_cannot_work_say_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for arguments in ([name], ["help", name]):
        assert run(monkeypatch, *arguments) == 2
        assert capsys.readouterr().err == f"{name} is a command of Django. {_sentence(WITHOUT_USE[name])}\n"


def test_every_command_of_django_is_known() -> None:
    """A later release of Django may bring another one that makes no sense here."""
    harmless = {"check", "diffsettings", "findstatic", "generateschema", "shell", "spectacular"}
    foreign = {name for name, app in get_commands().items() if str(app).partition(".")[0] not in OWN_APPS}
    assert foreign <= harmless | WITHOUT_USE.keys()


@pytest.mark.parametrize(
    "name", ["benchmark", "check_history", "demo", "kvs", "run_cluster", "run_replica", "simulate"]
)
def test_every_help_names_the_exit_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, "help", name) == 0
    assert "exit codes:\n  0  " in capsys.readouterr().out


def test_runserver_names_run_replica_and_no_other_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DJANGO_RUNSERVER_HIDE_WARNING", "")  # restored at the end
    shown = io.StringIO()
    command: Any = runserver.Command(stdout=shown, no_color=True)
    command.addr, command._raw_ipv6 = "127.0.0.1", False
    command.on_bind(8090)
    assert "http://127.0.0.1:8090/" in shown.getvalue()
    assert "Use run_replica instead" in shown.getvalue()
    assert "WSGI" not in shown.getvalue()
