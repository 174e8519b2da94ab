"""All routes. The API's own stand in the floor that serves them."""

from __future__ import annotations

from django.contrib.staticfiles.views import serve
from django.urls import include, path, re_path
from django.views.generic import RedirectView

from kvsite.dashboard.site import site
from kvsite.schema import SchemaView, docs

urlpatterns = [
    path("", include("store.api.urls")),
    path("", include("replication.api.urls")),
    path("schema/", SchemaView.as_view(), name="schema"),
    path("docs/", docs, name="docs"),
    path("", RedirectView.as_view(url="/admin/")),
    # A handful of small files for one page: a server of its own for them is not worth its set-up.
    re_path(r"^admin/static/(?P<path>.+)$", serve, {"insecure": True}),
    path("admin/", site.urls),
]

handler400 = "kvsite.errors.bad_request"
handler403 = "kvsite.errors.permission_denied"
handler404 = "kvsite.errors.not_found"
handler500 = "kvsite.errors.server_error"
