#!/usr/bin/env python
"""Causeway's command line: ``python manage.py help`` lists the commands."""

import os
import sys

from kvsite import signals


def main() -> int:
    """Run one command and return the exit code. An invalid environment variable is reported in one line."""
    if sys.argv[1:2] == ["run_replica"]:
        # Keep signals pending until the server reads them. The first process of a container has no default action for
        # them, so a SIGTERM that arrives while Django is being loaded would be lost.
        signals.block()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "kvsite.settings")
    from django.core.management import execute_from_command_line  # noqa: PLC0415  # after the variable

    from kvsite.config import ConfigError, current  # noqa: PLC0415

    try:
        current()
    except ConfigError as exc:
        print(exc, file=sys.stderr)  # noqa: T201
        return 2
    execute_from_command_line(sys.argv)
    return 0


if __name__ == "__main__":
    sys.exit(main())
