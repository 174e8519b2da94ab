"""Free ports of the loopback interface, for replicas and fakes that a test starts."""

from __future__ import annotations

import itertools
import os
import socket
from contextlib import closing
from typing import Final

PORTS_PER_WORKER: Final = 1300
_WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
PORTS: Final = range(21000 + _WORKER * PORTS_PER_WORKER, 21000 + (_WORKER + 1) * PORTS_PER_WORKER)
"""Below the range of ports that the kernel assigns, so that a free port stays free. Each worker has its own."""

_next_port = itertools.cycle(PORTS)


def free_ports(count: int = 1) -> int:
    """Return the first of ``count`` consecutive free ports that no earlier call returned."""
    run: list[int] = []
    for port in itertools.islice(_next_port, 2 * len(PORTS)):
        run = [*run, port] if _is_free(port) and (not run or port == run[-1] + 1) else []
        if len(run) == count:
            return run[0]
    raise RuntimeError(f"no {count} free ports in a row among {PORTS}")


def _is_free(port: int) -> bool:
    """Return whether no process listens on ``port`` of 127.0.0.1."""
    with closing(socket.socket()) as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
