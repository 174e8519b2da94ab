"""Disconnects Django's receivers of request signals that have nothing to do in this project."""

from __future__ import annotations

from django.core.cache import close_caches
from django.core.handlers.base import reset_urlconf
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, reset_queries


def disconnect_idle_receivers() -> None:
    """Disconnect the receivers that Django connects to the start and the end of a request.

    They close database and cache connections and reset the URL configuration; this project has no database, no cache
    and one URL configuration. A signal without receivers costs almost nothing. Receivers that others connect are called
    as usual.
    """
    request_started.disconnect(reset_queries)
    request_started.disconnect(close_old_connections)
    request_finished.disconnect(close_old_connections)
    request_finished.disconnect(close_caches)
    request_finished.disconnect(reset_urlconf)
