"""What Django does around every request and what does nothing here."""

from __future__ import annotations

from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, reset_queries


def disconnect_idle_receivers() -> None:
    """Take away what Django has connected to the start and the end of a request.

    There is no database, no cache, and no request with a URL configuration of its own. With nobody to call, the signals
    cost next to nothing; whoever else connects to them is called as ever.
    """
    request_started.disconnect(reset_queries)
    request_started.disconnect(close_old_connections)
    request_finished.disconnect(close_old_connections)
    request_finished.disconnect(close_caches)
    request_finished.disconnect(reset_urlconf)
