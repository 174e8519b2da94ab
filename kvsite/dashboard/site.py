"""The admin site whose front page is the dashboard: where its pages are, and who may see them."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin import AdminSite
from django.contrib.admin.forms import AdminAuthenticationForm
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver, path, reverse
from django.utils.safestring import mark_safe
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from kvsite.config import current
from kvsite.dashboard.keeper import keeper

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
    index_template = "dashboard/index.html"

    def has_permission(self, request: HttpRequest) -> bool:
        """Return whether this request may see the pages."""
        if not current().admin_password:
            return True
        return bool(request.user.is_active and request.user.is_staff)

    def get_urls(self) -> list[URLPattern | URLResolver]:
        """Return our pages, and the admin's own routes that work without a database."""
        own = [path("overview/", never_cache(require_safe(self.overview)), name="overview")]
        return [*own, *(url for url in super().get_urls() if getattr(url, "name", None) in ROUTES_WITHOUT_DATABASE)]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Render the front page; Django's own asks the admin log, which is a table."""
        look = keeper.look()
        request.current_app = self.name
        context = {
            **self.each_context(request),
            "title": self.index_title,
            "subtitle": look.snapshot.asked,
            "overview_html": mark_safe(look.overview_html),  # noqa: S308  # rendered by a template, escaped there
            **(extra_context or {}),
        }
        return TemplateResponse(request, self.index_template, context)

    def overview(self, request: HttpRequest) -> HttpResponse:
        """Render the part of the front page that is refreshed; tell htmx to go to the login where one is due."""
        if not self.has_permission(request):
            return HttpResponse(status=403, headers={"HX-Redirect": reverse(f"{self.name}:login")})
        return HttpResponse(keeper.look().overview_html)


site = DashboardSite()
