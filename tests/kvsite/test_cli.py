"""The command line, in a checkout and installed (tests/repository/test_installation.py installs it)."""

from __future__ import annotations

import sys

import pytest

from kvsite import cli


@pytest.mark.parametrize("name", sorted(cli.WORKSHOP))
def test_an_installed_package_says_where_the_tools_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    monkeypatch.setattr(cli, "is_checkout", lambda: False)
    monkeypatch.setattr(sys, "argv", ["causeway", name, "--quick"])
    assert cli.main() == 2
    assert (
        capsys.readouterr().err
        == f"{name} measures or tests Causeway, and is only in the repository: manage.py {name}\n"
    )
