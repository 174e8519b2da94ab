"""Paths of the repository, and what the command lines of the tools share."""

from pathlib import Path
from typing import Final

REPOSITORY: Final = Path(__file__).resolve().parents[1]
MANAGE: Final = REPOSITORY / "manage.py"


def say(text: str) -> None:
    """Print a line and flush it, for people who watch a long run."""
    print(text, flush=True)  # noqa: T201  # the output of a command


def first_line(docstring: str | None) -> str:
    """Return the first line of a docstring, the description of a command."""
    return (docstring or "").partition("\n")[0]
