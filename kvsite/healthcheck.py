"""``python -m kvsite.healthcheck``: exits with 0 if the replica of this environment is ready, for container runtimes.

It sends one HTTP request, as a client does. It does not load Django, because it runs every few seconds.
"""

from __future__ import annotations

import http.client
import ssl
import sys

from kvsite.config import Config, current

TIMEOUT_S = 2.0
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104  # the address to call if the replica listens on all


def is_ready(config: Config) -> bool:
    """Return whether the replica of ``config`` on this machine is ready."""
    host, port = config.listen
    return answers_ready(config.scheme, _LOOPBACK.get(host, host), port)


def answers_ready(scheme: str, host: str, port: int) -> bool:
    """Return whether ``GET /readyz`` at this address returns 200."""
    connection = _connect(scheme, host, port)
    try:
        connection.request("GET", "/readyz", headers={"Host": "localhost"})
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _connect(scheme: str, host: str, port: int) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    # The certificate need not be valid for this name: the request carries no secret.
    unverified = ssl._create_unverified_context()  # noqa: S323, SLF001
    return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=unverified)


if __name__ == "__main__":
    sys.exit(0 if is_ready(current()) else 1)
