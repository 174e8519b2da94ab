"""The admin site whose front page is the dashboard: where its pages are, and who may see them."""

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
from kvsite.dashboard.keys_page import PAGE, key_page, keys_page
from kvsite.dashboard.polling import keeper
from kvsite.dashboard.replica_page import replica_page
from kvsite.dashboard.spacetime import diagram

Page: TypeAlias = Callable[..., HttpResponse]

ROUTES_WITHOUT_DATABASE = frozenset({"index", "login", "logout", "jsi18n"})
"""The admin's routes that need no model. ``r/<type>/<id>`` and the app lists would ask a database."""


class PasswordForm(AdminAuthenticationForm):
    """The admin's login form; there is one user, so the name is filled in and not compared."""

    username = forms.CharField(initial="admin", required=False)

    def clean_username(self) -> str:
        """Return a name whatever was typed: the form refuses to authenticate without one."""
        return str(self.cleaned_data.get("username") or "admin")


class DashboardSite(AdminSite):
    """Open where no ``KV_ADMIN_PASSWORD`` is set, else behind its login. Read-only: it registers no model."""

    site_header = "Causeway"
    site_title = "Causeway"
    index_title = "Cluster"
    site_url = None
    enable_nav_sidebar = False
    login_form = PasswordForm
    index_template = live_template = "dashboard/live.html"

    def has_permission(self, request: HttpRequest) -> bool:
        """Return whether this request may see the pages."""
        if not current().admin_password:
            return True
        return bool(request.user.is_active and request.user.is_staff)

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Return our pages, and the admin's own routes that work without a database."""
        pages: list[tuple[str, Page, str]] = [
            ("overview/", self.overview, "overview"),
            ("replica/<str:address>/", self.replica, "replica"),
            ("replica/<str:address>/now/", self.replica_now, "replica_now"),
            ("keys/", self.keys, "keys"),
            ("keys/key/", self.key, "key"),
            ("spacetime/", self.spacetime, "spacetime"),
            ("spacetime/now/", self.spacetime_now, "spacetime_now"),
        ]
        own = [path(route, never_cache(require_safe(view)), name=name) for route, view, name in pages]
        return [*own, *(url for url in super().get_urls() if getattr(url, "name", None) in ROUTES_WITHOUT_DATABASE)]

    # -- the front page --------------------------------------------------------------------------------

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Render the front page; Django's own asks the admin log, which is a table."""
        look = keeper.look()
        return self._live(
            request,
            title=self.index_title,
            subtitle=look.snapshot.asked,
            page="overview",
            now_url=reverse(f"{self.name}:overview"),
            now_html=look.overview_html,
            **(extra_context or {}),
        )

    def overview(self, request: HttpRequest) -> HttpResponse:
        """Render the part of the front page that is refreshed."""
        return self._now(request, lambda: keeper.look().overview_html)

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
                now_url=reverse(f"{self.name}:replica_now", args=[address]),
                now_html=_replica_html(address),
            ),
        )

    def replica_now(self, request: HttpRequest, address: str) -> HttpResponse:
        """Render the part of a replica's page that is refreshed."""
        return self._now(request, lambda: _replica_html(address))

    # -- keys ------------------------------------------------------------------------------------------

    def keys(self, request: HttpRequest) -> HttpResponse:
        """Render the list of keys."""
        return self._guarded(request, lambda: self._keys(request))

    def _keys(self, request: HttpRequest) -> HttpResponse:
        prefix, after = request.GET.get("prefix", ""), request.GET.get("after", "")
        conflicts = request.GET.get("conflicts") == "true"
        found = details.keys(prefix, after, PAGE + 1, conflicts=conflicts)
        keys = keys_page(found, details.known_members(), prefix=prefix, after=after, conflicts=conflicts)
        return self._page(request, "dashboard/keys.html", title="Keys", page="keys", keys=keys)

    def key(self, request: HttpRequest) -> HttpResponse:
        """Render the page of one key."""
        return self._guarded(request, lambda: self._key(request))

    def _key(self, request: HttpRequest) -> HttpResponse:
        key = request.GET.get("key", "")
        told = key_page(details.explanation(key), key, details.known_members())
        return self._page(request, "dashboard/key.html", title=key or "Key", subtitle="Key", page="key", told=told)

    # -- the space-time diagram ------------------------------------------------------------------------

    def spacetime(self, request: HttpRequest) -> HttpResponse:
        """Render the space-time diagram."""
        return self._guarded(
            request,
            lambda: self._live(
                request,
                title="Space-time diagram",
                page="spacetime",
                now_url=reverse(f"{self.name}:spacetime_now"),
                now_html=_spacetime_html(),
            ),
        )

    def spacetime_now(self, request: HttpRequest) -> HttpResponse:
        """Render the part of the diagram's page that is refreshed: all of it."""
        return self._now(request, _spacetime_html)

    # -- what they share -------------------------------------------------------------------------------

    def _guarded(self, request: HttpRequest, render: Callable[[], HttpResponse]) -> HttpResponse:
        """Render a page, or send whoever may not see it to the login."""
        if not self.has_permission(request):
            return redirect_to_login(request.get_full_path(), reverse(f"{self.name}:login"))
        return render()

    def _now(self, request: HttpRequest, render: Callable[[], str]) -> HttpResponse:
        """Render a part; tell htmx to go to the login where one is due."""
        if not self.has_permission(request):
            return HttpResponse(status=403, headers={"HX-Redirect": reverse(f"{self.name}:login")})
        return HttpResponse(render())

    def _live(self, request: HttpRequest, *, now_html: str, **context: Any) -> TemplateResponse:
        """Render a page around ``now_html``, which asks for itself again every second (at ``now_url``)."""
        html = mark_safe(now_html)  # noqa: S308  # rendered by a template, escaped there
        return self._page(request, self.live_template, now_html=html, **context)

    def _page(self, request: HttpRequest, template: str, **context: Any) -> TemplateResponse:
        request.current_app = self.name
        return TemplateResponse(request, template, {**self.each_context(request), **context})


def _replica_html(address: str) -> str:
    snapshot = keeper.look().snapshot
    known = next((replica for replica in snapshot.replicas if replica.address == address), None)
    page = replica_page(snapshot, details.with_history(known, snapshot)) if known else None
    return render_to_string("dashboard/_replica.html", {"page": page, "address": address})


def _spacetime_html() -> str:
    return render_to_string("dashboard/_spacetime.html", {"diagram": diagram(details.latest())})


site = DashboardSite()
