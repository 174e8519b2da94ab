"""The admin site whose front page is the dashboard. The page itself is minimal here."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.admin import AdminSite
from django.contrib.admin.forms import AdminAuthenticationForm
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.urls import URLPattern, URLResolver

from kvsite.config import current

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
        """Return the admin's own routes that work without a database."""
        return [url for url in super().get_urls() if getattr(url, "name", None) in ROUTES_WITHOUT_DATABASE]

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Render the front page; Django's own asks the admin log, which is a table."""
        context = {**self.each_context(request), "title": self.index_title, **(extra_context or {})}
        request.current_app = self.name
        return TemplateResponse(request, self.index_template, context)


site = DashboardSite()
