"""What the figures are held against: a replica's own server, with next to nothing behind it.

    python -m tools.benchmark.baselines empty PORT      a WSGI application that reads the body and answers
    python -m tools.benchmark.baselines django PORT     a Django view (bare.py), without any middleware

Threads, limits and HTTP settings are those of a replica (kvsite/server.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

ANSWER = b'{"result":"found","value":"0123456789abcdef0123456789abcdef"}'
_HEADERS = [("Content-Type", "application/json"), ("Content-Length", str(len(ANSWER)))]

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def empty(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Answer every request alike, once its body is read."""
    if length := environ.get("CONTENT_LENGTH"):
        environ["wsgi.input"].read(int(length))
    start_response("200 OK", _HEADERS)
    return [ANSWER]


def load(kind: str) -> Wsgi:
    """Return the application called ``empty`` or ``django``, as a replica's is loaded: with nothing left to collect."""
    import gc  # noqa: PLC0415

    application: Wsgi = empty
    if kind == "django":
        from django.conf import settings  # noqa: PLC0415
        from django.core.wsgi import get_wsgi_application  # noqa: PLC0415

        settings.ROOT_URLCONF = "tools.benchmark.bare"
        settings.MIDDLEWARE = []
        application = get_wsgi_application()
    gc.collect()
    gc.freeze()
    return application


def main() -> None:
    """Serve until SIGTERM."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "kvsite.settings"
    from kvsite import signals  # noqa: PLC0415  # after the variable
    from kvsite.config import Config  # noqa: PLC0415
    from kvsite.server import ReplicaServer  # noqa: PLC0415

    kind, port = sys.argv[1:]
    signals.block()
    server = ReplicaServer(Config(address=f"127.0.0.1:{port}"), drain=lambda: None)
    server.serve(target_loader=lambda: load(kind), wrap_loader=False)


if __name__ == "__main__":
    main()
