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
from django.views.decorators.http import require_safe

from kvsite.config import current
from kvsite.dashboard import details
from kvsite.dashboard.keys_page import PAGE_SIZE, key_list_page, key_page
from kvsite.dashboard.polling import poller
from kvsite.dashboard.replica_page import replica_page
from kvsite.dashboard.spacetime import diagram
from replication.api.context import node_of
from replication.node import Node

View: TypeAlias = Callable[..., HttpResponse]

ROUTES_WITHOUT_DATABASE = frozenset({"index", "login", "logout", "jsi18n"})
"""Admin routes that work without a database. ``r/<type>/<id>`` and the app lists query one, so they are left out."""


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
            ("overview/", self.overview_fragment, "overview_fragment"),
            ("replica/<str:address>/", self.replica, "replica"),
            ("replica/<str:address>/now/", self.replica_fragment, "replica_fragment"),
            ("keys/", self.keys, "keys"),
            ("keys/key/", self.key, "key"),
            ("spacetime/", self.spacetime, "spacetime"),
            ("spacetime/now/", self.spacetime_fragment, "spacetime_fragment"),
        ]
        own = [path(route, never_cache(require_safe(view)), name=name) for route, view, name in pages]
        return [*own, *(url for url in super().get_urls() if getattr(url, "name", None) in ROUTES_WITHOUT_DATABASE)]

    # -- front page ------------------------------------------------------------------------------------

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
        return self._guarded(
            request,
            lambda: self._live(
                request,
                title=address,
                subtitle="Replica",
                page="replica",
                address=address,
                fragment_url=reverse(f"{self.name}:replica_fragment", args=[address]),
                fragment_html=_replica_html(node_of(request), address),
            ),
        )

    def replica_fragment(self, request: HttpRequest, address: str) -> HttpResponse:
        """Render the part of a replica's page that is refreshed."""
        return self._fragment(request, lambda: _replica_html(node_of(request), address))

    # -- keys ------------------------------------------------------------------------------------------

    def keys(self, request: HttpRequest) -> HttpResponse:
        """Render the list of keys."""
        return self._guarded(request, lambda: self._keys(request))

    def _keys(self, request: HttpRequest) -> HttpResponse:
        prefix, after = request.GET.get("prefix", ""), request.GET.get("after", "")
        conflicts = request.GET.get("conflicts") == "true"
        node = node_of(request)
        keys = details.keys(node, prefix, after, PAGE_SIZE + 1, conflicts=conflicts)
        key_list = key_list_page(keys, details.known_members(node), prefix=prefix, after=after, conflicts=conflicts)
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

    def _live(self, request: HttpRequest, *, fragment_html: str, **context: Any) -> TemplateResponse:
        """Render a page around ``fragment_html``, which the browser refreshes from ``fragment_url`` every second."""
        html = mark_safe(fragment_html)  # noqa: S308  # a template rendered and escaped it
        return self._page(request, self.live_template, fragment_html=html, **context)

    def _page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        request.current_app = self.name
        return TemplateResponse(request, template, {**self.each_context(request), **context})


def _replica_html(node: Node | None, address: str) -> str:
    cluster = poller.latest(node).cluster
    replica = next((replica for replica in cluster.replicas if replica.address == address), None)
    page = replica_page(cluster, details.with_history(node, replica, cluster)) if replica else None
    return render_to_string("dashboard/_replica.html", {"page": page, "address": address})


def _spacetime_html(node: Node | None) -> str:
    cluster = details.cluster_with_recent_updates(node)
    return render_to_string("dashboard/_spacetime.html", {"diagram": diagram(cluster)})


site = DashboardSite()
