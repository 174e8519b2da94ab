#!/usr/bin/env python
"""Causeway's command line: ``python manage.py help`` lists what there is."""

import os
import sys


def main() -> int:
    """Run one command; a wrong variable of the environment is one line, not a traceback."""
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
