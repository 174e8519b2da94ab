"""Routes of the client API."""

from __future__ import annotations

from typing import Final

from store.api.changes import ChangesView
from store.api.export import ExportView
from store.api.routing import Route
from store.api.views import KeysView, KeyView

ROUTES: Final = (
    Route("changes", ChangesView, name="changes"),
    Route("export", ExportView, name="export"),
    Route("kvs", KeysView, name="kvs"),
    # A key is everything after /kvs/, slashes and line ends included. The view rejects an empty key.
    Route("kvs/", KeyView, name="key", takes_rest=True),
)

urlpatterns = [route.url_pattern() for route in ROUTES]
