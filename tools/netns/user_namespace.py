"""Let an ordinary user make network namespaces.

Only root may make network namespaces. Root runs a command unchanged. For an ordinary user the command runs in a *user
namespace* (user_namespaces(7)), in which the user counts as root. ``unshare`` makes it, with three parts:

``--user --map-root-user``
    Inside, the user's id is 0. Outside it stays what it was: files that the command writes belong to the user, and the
    command gets no rights over anything that existed before.

``--net``
    A new network, with a loopback interface only. The command reaches the networks that it makes, and nothing else.

``--mount``
    Mounts of the command are visible to the command only. An empty /run replaces the machine's, because ``ip netns``
    stores its namespaces in /run/netns, and iptables its lock in /run.

All of this ends with the last process inside. Some systems forbid it: ``command_with_rights`` tries it first.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

from tools.netns.errors import NetnsError

TOOLS = {"ip": "iproute2", "iptables-restore": "iptables", "mount": "mount", "unshare": "util-linux"}
"""Program -> the Debian package that has it."""

SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
"""Where programs are looked for. An ordinary user's PATH on Debian lacks the last two."""

_ENTER = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--"]
_PREPARE = 'mount -t tmpfs -o mode=755 tmpfs /run && ip link set lo up && exec "$@"'


def require_tools() -> None:
    """Raise ``NetnsError`` unless the programs that this package runs are installed."""
    missing = sorted({package for tool, package in TOOLS.items() if not shutil.which(tool, path=SYSTEM_PATH)})
    if missing:
        packages = " ".join(missing)
        raise NetnsError(f"network namespaces need {packages}: sudo apt-get install {packages}")


def command_in_user_namespace(command: Sequence[str]) -> list[str]:
    """Return a command line that runs ``command`` as root of a new user namespace."""
    return [*_ENTER, "env", f"PATH={SYSTEM_PATH}", "sh", "-c", _PREPARE, "sh", *command]


def command_with_rights(command: Sequence[str]) -> list[str]:
    """Return a command line that runs ``command`` with the right to make network namespaces.

    Raises ``NetnsError`` if a program is missing, or if this system does not let the user make user namespaces.
    """
    require_tools()
    if os.geteuid() == 0:
        return list(command)
    trial = subprocess.run(command_in_user_namespace(["true"]), capture_output=True, text=True, check=False)
    if trial.returncode:
        raise NetnsError(
            f"this user may not make user namespaces ({trial.stderr.strip()}). Run as root, or allow it: "
            "sudo sysctl user.max_user_namespaces=10000; "
            "on Ubuntu also: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0"
        )
    return command_in_user_namespace(command)
