"""Baselines: a replica's own HTTP server with almost no application behind it.

    python -m tools.benchmark.baselines empty PORT      a WSGI application that reads the body and responds
    python -m tools.benchmark.baselines django PORT     a Django view (minimal_view.py) without middleware

No application in Python can be faster on this server than the first; the second adds the cost of Django. Threads,
limits and HTTP settings are those of a replica (kvsite/server.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

CONTENT = b'{"result":"found","value":"0123456789abcdef0123456789abcdef"}'
_HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(CONTENT)))]

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def empty(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Read the body, and send the same response to every request."""
    if length := environ.get("CONTENT_LENGTH"):
        environ["wsgi.input"].read(int(length))
    start_response("200 OK", _HEADERS)
    return [CONTENT]


def load(kind: str) -> Wsgi:
    """Return the application ``empty`` or ``django``.

    Like a replica, the process freezes its objects after loading, so that no later collection traverses them.
    """
    import gc  # noqa: PLC0415

    application: Wsgi = empty
    if kind == "django":
        from django.conf import settings  # noqa: PLC0415
        from django.core.wsgi import get_wsgi_application  # noqa: PLC0415

        settings.ROOT_URLCONF = "tools.benchmark.minimal_view"
        settings.MIDDLEWARE = []
        application = get_wsgi_application()
    gc.collect()
    gc.freeze()
    return application


def main() -> None:
    """Serve until SIGTERM."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "kvsite.settings"
    from kvsite import signals  # noqa: PLC0415  # reads the variable
    from kvsite.config import Config  # noqa: PLC0415
    from kvsite.server import ReplicaServer  # noqa: PLC0415

    kind, port = sys.argv[1:]
    signals.block()
    config = Config(address=f"127.0.0.1:{port}")
    server = ReplicaServer(config, drain=lambda: None, stop_request=signals.StopRequest())
    server.serve(target_loader=lambda: load(kind), wrap_loader=False)


if __name__ == "__main__":
    main()
