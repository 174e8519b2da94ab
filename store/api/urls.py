"""Routes of the client API. A key is all that follows ``/kvs/``, slashes and newlines included."""

from __future__ import annotations

from django.urls import path, re_path

from store.api.views import KeysView, KeyView

urlpatterns = [
    path("kvs", KeysView.as_view(), name="kvs"),
    # Not <path:…>: its dot stops at a newline. An empty rest comes through, to be answered as an empty key.
    re_path(r"^kvs/(?P<rest>(?s:.*))$", KeyView.as_view(), name="key"),
]
