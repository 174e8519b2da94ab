"""Run a command that makes network namespaces, as root or as an ordinary user.

    python -m tools.netns COMMAND [ARGUMENT ...]

user_namespace.py describes how.
"""

from __future__ import annotations

import os
import sys

from tools.netns.errors import NetnsError
from tools.netns.user_namespace import command_with_rights


def main(command: list[str]) -> int:
    """Become ``command``; return only if that is not possible."""
    if not command:
        sys.stderr.write("usage: python -m tools.netns COMMAND [ARGUMENT ...]\n")
        return 2
    try:
        command = command_with_rights(command)
        # The process id stays the same, so signals and the exit code are the command's own.
        os.execvp(command[0], command)  # noqa: S606  # the caller chooses the command
    except (NetnsError, OSError) as exc:
        sys.stderr.write(f"python -m tools.netns: {exc}\n")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
