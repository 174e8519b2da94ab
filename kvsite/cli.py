"""Causeway's command line: ``causeway help`` lists the commands. In a checkout, ``python manage.py`` is the same."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from kvsite import signals  # first: it notes which signals are ignored at the start
from store.version import VERSION

SETTINGS: Final = "kvsite.settings"

MANAGE: Final = Path(__file__).resolve().parent.parent / "manage.py"
"""Exists in a checkout, and in no installed package."""


def is_checkout() -> bool:
    """Return whether this package runs from a checkout, and is not installed."""
    return MANAGE.is_file() and MANAGE.parent.name not in {"site-packages", "dist-packages"}


def program() -> list[str]:
    """Return the command that runs this command line in another process, without its arguments.

    With ``-P``, Python does not look for modules in the current directory.
    """
    return [sys.executable, str(MANAGE)] if is_checkout() else [sys.executable, "-P", "-m", "kvsite"]


def shown_program() -> str:
    """Return the command as people type it."""
    if is_checkout():
        return f"{os.path.relpath(sys.executable)} manage.py"
    return "causeway" if shutil.which("causeway") else sys.argv[0]


def main() -> int:
    """Run one command and return the exit code. An invalid environment variable is reported in one line."""
    if sys.argv[1:] in (["--version"], ["version"]):
        print(f"Causeway {VERSION}")  # noqa: T201
        return 0
    if sys.argv[1:2] == ["run_replica"]:
        # Keep signals pending until the server reads them. The first process of a container has no default action for
        # them, so a SIGTERM that arrives while Django is being loaded would be lost.
        signals.block()
    # The shell of somebody who works on a Django project may name that project's settings.
    os.environ["DJANGO_SETTINGS_MODULE"] = SETTINGS
    from kvsite.command_line import CommandLine  # noqa: PLC0415  # after the variable
    from kvsite.config import ConfigError, current  # noqa: PLC0415

    try:
        current()
    except ConfigError as exc:
        print(exc, file=sys.stderr)  # noqa: T201
        return 2
    CommandLine(sys.argv).execute()
    return 0
