"""``run_replica``: serve one replica in this process."""

from __future__ import annotations

import os
import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from kvsite.config import Config, ConfigError
from kvsite.server import StartError, run

FLAGS = {"address": "SOCKET_ADDRESS", "view": "VIEW", "bind": "KV_BIND"}
"""Flag -> the variable that it overrides."""


class Command(BaseCommand):
    """Serve one replica, configured by the environment (docs/settings.md) or by flags, until SIGTERM or Ctrl-C."""

    help = "Serve one replica, configured by the environment (docs/settings.md) or by these flags."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the flags."""
        parser.add_argument("--address", help="own host:port, as peers reach it (default: SOCKET_ADDRESS)")
        parser.add_argument("--view", help="comma-separated addresses to ask at the start (default: VIEW)")
        parser.add_argument("--bind", help="host:port to listen on, if it is another (default: KV_BIND)")
        parser.add_argument(
            "--until-stdin-closes",
            action="store_true",
            help="end when standard input is closed: for a program that starts replicas and must not leave them behind",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Serve."""
        overrides = {variable: options[flag] for flag, variable in FLAGS.items() if options[flag] is not None}
        try:
            config = Config.from_env({**os.environ, **overrides})
            code = run(config, until_stdin_closes=options["until_stdin_closes"])
        except (ConfigError, StartError) as exc:
            raise CommandError(str(exc), returncode=2) from exc
        sys.exit(code)
