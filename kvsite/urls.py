"""All routes. The layers below declare the routes of the API."""

from __future__ import annotations

from django.urls import include, path, re_path

from kvsite.dashboard.site import site
from kvsite.docs_page import docs, to_dashboard, to_docs
from kvsite.errors import unknown_file
from kvsite.schema import SchemaView

urlpatterns = [
    path("", include("store.api.urls")),
    path("", include("replication.api.urls")),
    path("schema/", SchemaView.as_view(), name="schema"),
    path("docs/", docs, name="docs"),
    path("docs", to_docs),
    path("", to_dashboard),
    path("admin", to_dashboard),
    # WhiteNoise serves the files that exist (MIDDLEWARE).
    re_path(r"^admin/static/(?P<path>.+)$", unknown_file),
    path("admin/", site.urls),
]

handler400 = "kvsite.errors.bad_request"
handler403 = "kvsite.errors.permission_denied"
handler404 = "kvsite.errors.not_found"
handler500 = "kvsite.errors.server_error"
