"""What all commands of Causeway have in common: their help, their version, and how they end."""

from __future__ import annotations

import math
import os
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, RawDescriptionHelpFormatter
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, Final, NoReturn

from django.core.management.base import BaseCommand, CommandError, CommandParser, DjangoHelpFormatter

from store.version import VERSION

USAGE_ERROR: Final = 2
"""Exit code for arguments that are wrong. argparse uses it too."""

CREDENTIALS: Final[Mapping[str, str]] = {
    "SOCKET_ADDRESS": "address of the replica, unless --at gives one",
    "KV_TOKEN": "API token to send (or KV_TOKEN_FILE); otherwise the first write token of KV_API_TOKENS, best "
    "one without prefixes",
    "KV_TLS_CA": "use TLS, and verify the replica with this PEM file",
    "KV_TLS_CERT": "use TLS, and verify the replica with the system's certificates",
}
"""The variables of every command that talks to a replica."""


class HelpFormatter(DjangoHelpFormatter, RawDescriptionHelpFormatter):
    """Keeps the lines of the lists of exit codes and variables."""


class CausewayCommand(BaseCommand):
    """Base class of the commands.

    ``exit_codes``, ``environment``: what ``--help`` says about them.
    """

    _called_from_command_line: bool
    exit_codes: Mapping[int, str] = {0: "success", 1: "failure", USAGE_ERROR: "wrong arguments or settings"}
    environment: Mapping[str, str] = {}
    requires_system_checks = ()
    suppressed_base_arguments = {"--settings", "--pythonpath", "--traceback", "--verbosity"}

    def get_version(self) -> str:
        """Return the version of Causeway, for ``--version``."""
        return f"Causeway {VERSION}"

    def create_parser(self, prog_name: str, subcommand: str, **kwargs: Any) -> CommandParser:
        """Return the parser, whose help ends with the exit codes and variables."""
        parser = super().create_parser(prog_name, subcommand, **(self.help_options() | kwargs))
        report = parser.error

        def error(message: str) -> NoReturn:
            report(f"{message}{suggestion(message)}")
            raise AssertionError("unreachable")

        parser.error = error  # type: ignore[method-assign]  # argparse has suggestions from Python 3.14 on
        return parser

    def help_options(self) -> dict[str, Any]:
        """Return what the parsers of this command, and of its actions, have in common."""
        return {"formatter_class": HelpFormatter, "epilog": self._epilog()}

    def _epilog(self) -> str:
        lines = ["exit codes:", *(f"  {code}  {meaning}" for code, meaning in self.exit_codes.items())]
        if self.environment:
            width = max(map(len, self.environment))
            lines += ["", "environment:", *(f"  {name:<{width}}  {text}" for name, text in self.environment.items())]
        return "\n".join(lines)

    def run_from_argv(self, argv: list[str]) -> None:
        """Run the command. End quietly if nobody reads its output any more, as after ``kvs list | head``."""
        try:
            super().run_from_argv(argv)
            sys.stdout.flush()
        except BrokenPipeError:
            # Python flushes standard output once more at its end: let that succeed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)

    def execute(self, *args: Any, **options: Any) -> str | None:
        """Run the command. An error is printed without the name of its class."""
        try:
            return super().execute(*args, **options)
        except CommandError as exc:
            if not self._called_from_command_line or options.get("traceback"):
                raise
            self.stderr.write(str(exc))
            sys.exit(exc.returncode)


def suggestion(message: str) -> str:
    """Return what to add to an error of argparse about a word that is close to one of the choices."""
    if not (found := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)):
        return ""
    close = get_close_matches(found[1], re.findall(r"[\w-]+", found[2]), n=1)
    return f". Did you mean {close[0]}?" if close else ""


def file_error(exc: OSError) -> str:
    """Return an error of the operating system about a file, without its number."""
    reason = exc.strerror or str(exc)
    return reason if exc.filename is None else f"{exc.filename}: {reason}"


def add_timeout_argument(
    parser: ArgumentParser, default_s: float, what: str = "how long to wait for the replica's answer"
) -> None:
    """Add ``--timeout SECONDS``. ``what``: the time that it limits."""
    parser.add_argument(
        "--timeout",
        type=seconds_above(0),
        default=default_s,
        metavar="SECONDS",
        help=f"{what} (default: {default_s:g})",
    )


def add_json_argument(parser: ArgumentParser, what: str) -> None:
    """Add ``--json``, which makes the command print ``what`` for programs."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON")


def whole_number_from(low: int) -> Callable[[str], int]:
    """Return a parser of arguments that are whole numbers of at least ``low``."""

    def parse(text: str) -> int:
        if not text.isascii() or not text.removeprefix("-").isdigit() or int(text) < low:
            raise ArgumentTypeError(f"must be a whole number of at least {low}, not {text!r}")
        return int(text)

    return parse


def seconds_from(low: float, *, is_open: bool = False) -> Callable[[str], float]:
    """Return a parser of arguments that are finite seconds of at least ``low``; ``is_open``: of more than that."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < low or (is_open and value == low):
            limit = f"more than {low:g}" if is_open else f"at least {low:g}"
            raise ArgumentTypeError(f"must be a number of seconds, {limit}, not {text!r}")
        return value

    return parse


def seconds_above(low: float) -> Callable[[str], float]:
    """Return a parser of arguments that are seconds of more than ``low``."""
    return seconds_from(low, is_open=True)
