"""The admin site with the dashboard as its front page: its URLs, its views and the check of permissions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from django import forms
from django.contrib.admin import AdminSite
from django.contrib.admin.forms import AdminAuthenticationForm
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils.safestring import mark_safe
from django.views.decorators.cache import never_cache
from prometheus_client import generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from kvsite.config import current
from kvsite.dashboard import details
from kvsite.dashboard.charts import WINDOWS
from kvsite.dashboard.keys_page import key_list_page, key_page, key_search, raw_value
from kvsite.dashboard.polling import poller
from kvsite.dashboard.replica_page import replica_page
from kvsite.dashboard.spacetime import diagram
from kvsite.dashboard.update_page import parse_update, update_page
from kvsite.errors import error_response, read_only
from kvsite.schema import as_json
from replication.api.context import context_of, node_of
from replication.api.metrics import registry_of
from replication.node import Node
from store.api.rendering import JSON
from store.settings import RequestLimits
from store.version import VERSION

View: TypeAlias = Callable[..., HttpResponse]

ADMIN_ROUTES = frozenset({"login", "logout", "jsi18n"})
"""Routes of the admin site that are used. ``r/<type>/<id>`` and the app lists query a database."""


class PasswordForm(AdminAuthenticationForm):
    """The login form of the admin site. There is only one user, so the user name is filled in and not checked."""

    username = forms.CharField(initial="admin", required=False)

    def clean_username(self) -> str:
        """Return a default for an empty user name: without one, the form does not authenticate."""
        return str(self.cleaned_data.get("username") or "admin")


class DashboardSite(AdminSite):
    """The dashboard. It requires a login if ``KV_ADMIN_PASSWORD`` is set. It is read-only: no model is registered."""

    site_header = "Causeway"
    site_title = "Causeway"
    index_title = "Cluster"
    site_url = None
    enable_nav_sidebar = False
    login_form = PasswordForm
    index_template = live_template = "dashboard/live.html"

    def has_permission(self, request: HttpRequest) -> bool:
        """Return whether the user of this request may see the pages."""
        if not current().admin_password:
            return True
        return bool(request.user.is_active and request.user.is_staff)

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Return the dashboard pages and the admin routes that work without a database."""
        pages: list[tuple[str, View, str]] = [
            ("", self.front_page, "index"),
            ("overview/", self.overview_fragment, "overview_fragment"),
            ("replica/<str:address>/", self.replica, "replica"),
            ("replica/<str:address>/now/", self.replica_fragment, "replica_fragment"),
            ("keys/", self.keys, "keys"),
            ("keys/key/", self.key, "key"),
            ("keys/raw/", self.raw, "raw"),
            ("update/", self.update, "update"),
            ("spacetime/", self.spacetime, "spacetime"),
            ("spacetime/now/", self.spacetime_fragment, "spacetime_fragment"),
            ("schema/", self.schema, "schema"),
            ("metrics/", self.metrics, "metrics"),
        ]
        own = [path(route, never_cache(read_only(view)), name=name) for route, view, name in pages]
        return [*own, *(url for url in super().get_urls() if getattr(url, "name", None) in ADMIN_ROUTES)]

    # -- front page ------------------------------------------------------------------------------------

    def front_page(self, request: HttpRequest) -> HttpResponse:
        """Render the front page."""
        return self._guarded(request, lambda: self.index(request))

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Render the front page. Django's own index queries the admin log, which needs a database."""
        poll = poller.latest(node_of(request))
        return self._live(
            request,
            title=self.index_title,
            subtitle=poll.cluster.local_address,
            page="overview",
            fragment_url=reverse(f"{self.name}:overview_fragment"),
            fragment_html=poll.overview_html,
            **(extra_context or {}),
        )

    def overview_fragment(self, request: HttpRequest) -> HttpResponse:
        """Render the part of the front page that is refreshed."""
        return self._fragment(request, lambda: poller.latest(node_of(request)).overview_html)

    # -- one replica -----------------------------------------------------------------------------------

    def replica(self, request: HttpRequest, address: str) -> HttpResponse:
        """Render the page of a replica."""
        return self._guarded(request, lambda: self._replica(request, address))

    def _replica(self, request: HttpRequest, address: str) -> HttpResponse:
        window = _window(request)
        fragment_url = reverse(f"{self.name}:replica_fragment", args=[address])
        return self._live(
            request,
            title=address,
            subtitle="Replica",
            page="replica",
            address=address,
            fragment_url=f"{fragment_url}?window={window}",
            fragment_html=_replica_html(node_of(request), address, window),
        )

    def replica_fragment(self, request: HttpRequest, address: str) -> HttpResponse:
        """Render the part of a replica's page that is refreshed."""
        return self._fragment(request, lambda: _replica_html(node_of(request), address, _window(request)))

    # -- keys ------------------------------------------------------------------------------------------

    def keys(self, request: HttpRequest) -> HttpResponse:
        """Render the list of keys."""
        return self._guarded(request, lambda: self._keys(request))

    def _keys(self, request: HttpRequest) -> HttpResponse:
        node, search = node_of(request), key_search(request.GET.dict())
        key_list = key_list_page(details.keys(node, search), details.known_members(node), search)
        return self._page(request, "dashboard/keys.html", title="Keys", page="keys", key_list=key_list)

    def key(self, request: HttpRequest) -> HttpResponse:
        """Render the page of one key."""
        return self._guarded(request, lambda: self._key(request))

    def _key(self, request: HttpRequest) -> HttpResponse:
        key = request.GET.get("key", "")
        node = node_of(request)
        content = key_page(details.explanation(node, key), details.known_members(node))
        return self._page(
            request, "dashboard/key.html", title=key or "Key", subtitle="Key", page="key", key_page=content
        )

    def raw(self, request: HttpRequest) -> HttpResponse:
        """Return the value of one version of a key as it is stored: JSON, or bytes to save."""
        return self._guarded(request, lambda: self._raw(request))

    def _raw(self, request: HttpRequest) -> HttpResponse:
        explanation = details.explanation(node_of(request), request.GET.get("key", ""))
        found = raw_value(explanation, request.GET.get("version", "")) if explanation else None
        if found is None:
            return error_response(request, 404, "This replica does not have this version, or it is too long to show")
        content, is_json = found
        if is_json:
            return HttpResponse(content, content_type="application/json")
        headers = {"Content-Disposition": 'attachment; filename="value"'}
        return HttpResponse(content, content_type="application/octet-stream", headers=headers)

    # -- one update ------------------------------------------------------------------------------------

    def update(self, request: HttpRequest) -> HttpResponse:
        """Render the page of one update."""
        return self._guarded(request, lambda: self._update(request))

    def _update(self, request: HttpRequest) -> HttpResponse:
        dot = parse_update(request.GET.get("update", ""))
        if dot is None:
            return error_response(request, 404, "An update is named by the id of its replica, a colon and its counter")
        node = node_of(request)
        cluster, keys = details.cluster_with_recent_updates(node)
        key = keys.get(dot)
        if key is None and details.wrote(node, dot, request.GET.get("key", "")):
            key = request.GET["key"]
        content = update_page(cluster, dot, key)
        return self._page(
            request, "dashboard/update.html", title=content.name, subtitle="Update", page="update", update_page=content
        )

    # -- the API ---------------------------------------------------------------------------------------

    def schema(self, request: HttpRequest) -> HttpResponse:
        """Return the document of ``/docs/``, which the same login opens."""
        return self._data(request, lambda: HttpResponse(as_json(limits_of(request)), content_type=JSON))

    def metrics(self, request: HttpRequest) -> HttpResponse:
        """Return ``/metrics`` to those who may see the dashboard."""
        context = context_of(request)
        if context is None:
            return error_response(request, 404, "No replica runs in this process")
        return self._data(
            request,
            lambda: HttpResponse(generate_latest(registry_of(context)), content_type=CONTENT_TYPE_PLAIN_0_0_4),
        )

    # -- the space-time diagram ------------------------------------------------------------------------

    def spacetime(self, request: HttpRequest) -> HttpResponse:
        """Render the space-time diagram."""
        return self._guarded(
            request,
            lambda: self._live(
                request,
                title="Space-time diagram",
                page="spacetime",
                fragment_url=reverse(f"{self.name}:spacetime_fragment"),
                fragment_html=_spacetime_html(node_of(request)),
            ),
        )

    def spacetime_fragment(self, request: HttpRequest) -> HttpResponse:
        """Render the diagram and its table, which are refreshed together."""
        return self._fragment(request, lambda: _spacetime_html(node_of(request)))

    # -- shared ----------------------------------------------------------------------------------------

    def _guarded(self, request: HttpRequest, render: Callable[[], HttpResponse]) -> HttpResponse:
        """Render a page, or redirect to the login if the request has no permission."""
        if not self.has_permission(request):
            return redirect_to_login(request.get_full_path(), reverse(f"{self.name}:login"))
        return render()

    def _fragment(self, request: HttpRequest, render: Callable[[], str]) -> HttpResponse:
        """Render the refreshed part of a page. Without permission, tell htmx to open the login page."""
        if not self.has_permission(request):
            return HttpResponse(status=403, headers={"HX-Redirect": reverse(f"{self.name}:login")})
        return HttpResponse(render())

    def _data(self, request: HttpRequest, render: Callable[[], HttpResponse]) -> HttpResponse:
        """Return data that a page loads, or that a browser shows as text."""
        if self.has_permission(request):
            return render()
        return error_response(request, 403, "Log in to the dashboard first")

    def _live(self, request: HttpRequest, *, fragment_html: str, **context: Any) -> TemplateResponse:
        """Render a page around ``fragment_html``, which the browser refreshes from ``fragment_url`` every second."""
        html = mark_safe(fragment_html)  # noqa: S308  # a template rendered and escaped it
        return self._page(request, self.live_template, fragment_html=html, **context)

    def _page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        request.current_app = self.name
        return TemplateResponse(request, template, {**self.each_context(request), **context})

    def each_context(self, request: HttpRequest) -> dict[str, Any]:
        """Add what every page shows: the version, and where the metrics are for this browser."""
        has_tokens = bool(current().api_tokens)
        metrics_url = reverse(f"{self.name}:metrics") if has_tokens else "/metrics"
        return {**super().each_context(request), "version": VERSION, "metrics_url": metrics_url}


def limits_of(request: HttpRequest) -> RequestLimits:
    """Return the limits in force; the defaults if no replica runs in this process."""
    context = context_of(request)
    return RequestLimits() if context is None else context.limits


def _window(request: HttpRequest) -> str:
    window = request.GET.get("window", "")
    return window if window in WINDOWS else "minutes"


def _replica_html(node: Node | None, address: str, window: str) -> str:
    cluster = poller.latest(node).cluster
    replica = next((replica for replica in cluster.replicas if replica.address == address), None)
    page = replica_page(cluster, details.with_history(node, replica, cluster, window), window) if replica else None
    return render_to_string("dashboard/_replica.html", {"page": page, "address": address})


def _spacetime_html(node: Node | None) -> str:
    cluster, keys = details.cluster_with_recent_updates(node)
    return render_to_string("dashboard/_spacetime.html", {"diagram": diagram(cluster, keys)})


site = DashboardSite()
