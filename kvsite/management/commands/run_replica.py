"""``run_replica``: run one replica in this process."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import CommandError, CommandParser

from kvsite import cli
from kvsite.config import Config, ConfigError
from kvsite.server import PortInUse, StartError, run
from store.management.base import CausewayCommand

FLAGS = {"address": "SOCKET_ADDRESS", "view": "VIEW", "bind": "KV_BIND"}
"""Flag -> the environment variable that it overrides."""


class Command(CausewayCommand):
    """Run one replica until SIGTERM or Ctrl-C. Environment variables (docs/settings.md) and flags configure it."""

    help = "Run one replica. Environment variables configure it (docs/settings.md); these flags override them."
    exit_codes = {
        0: "stopped, and no update is known to be lost",
        1: "stopped because of a problem, or updates may be lost; standard error says which",
        2: "cannot start: a setting is wrong, or the port is in use",
    }
    environment = {
        **{variable: f"as --{flag}" for flag, variable in FLAGS.items()},
        "KV_*": "all other settings (docs/settings.md)",
    }

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the flags."""
        parser.add_argument(
            "--address", help="host:port at which peers and clients reach the replica (default: SOCKET_ADDRESS)"
        )
        parser.add_argument("--view", help="comma-separated addresses to contact at the start (default: VIEW)")
        parser.add_argument("--bind", help="host:port to listen on, if it differs from --address (default: KV_BIND)")
        parser.add_argument(
            "--until-stdin-closes",
            action="store_true",
            help="stop when standard input is closed, so that the replica ends with the program that started it",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Read the settings and run the replica. Exits with its exit code, or 2 if it cannot start."""
        overrides = {variable: options[flag] for flag, variable in FLAGS.items() if options[flag] is not None}
        try:
            config = Config.from_env({**os.environ, **overrides})
            try:
                code = run(config, until_stdin_closes=options["until_stdin_closes"])
            except PortInUse as exc:
                flag = "bind" if config.bind else "address"
                raise StartError(
                    f"{exc}. Perhaps another replica runs there. Another port: {cli.shown_program()} run_replica "
                    f"--{flag} HOST:PORT"
                ) from exc
        except (ConfigError, StartError) as exc:
            raise CommandError(str(exc), returncode=2) from exc
        sys.exit(code)
