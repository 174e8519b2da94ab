"""Sessions, login, CSRF and messages, for the pages of the dashboard only.

Django wants them in MIDDLEWARE, where every request passes. A request of the API has no session and no cookie, and
should not pay for them: each class here steps aside unless the path is the dashboard's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.contrib.auth.middleware import AuthenticationMiddleware
from django.contrib.messages.middleware import MessageMiddleware
from django.contrib.sessions.middleware import SessionMiddleware
from django.http import HttpRequest, HttpResponse, HttpResponseForbidden
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.csrf import CsrfViewMiddleware
from django.middleware.security import SecurityMiddleware
from django.utils.deprecation import MiddlewareMixin

from kvsite.errors import json_error

PREFIX = "/admin/"

MAX_FORM_BYTES = 64 * 1024
"""The longest form is the login's: a password and a token."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Everything from this replica, nothing inline: a key that is some script shows as its text, whatever goes wrong."""


class OnlyDashboard(MiddlewareMixin):
    """Mixin, to stand first: skip the middleware for every other path."""

    def __call__(self, request: HttpRequest) -> Any:
        """Run the middleware, or go straight on."""
        if request.path_info.startswith(PREFIX):
            return super().__call__(request)
        return self.get_response(request)


class DashboardSecurity(OnlyDashboard, SecurityMiddleware):
    """No sniffing of types, no referrers to elsewhere, no scripts but ours, no bodies beyond a login form's."""

    def process_request(self, request: HttpRequest) -> Any:
        """Refuse a long body before anything reads it."""
        if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_FORM_BYTES:
            return json_error(413, "Form is too large")
        return super().process_request(request)

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Add the policy for content."""
        response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return super().process_response(request, response)


class DashboardFrames(OnlyDashboard, XFrameOptionsMiddleware):
    """No framing by other sites."""


class DashboardSession(OnlyDashboard, SessionMiddleware):
    """Sessions in signed cookies."""


class DashboardCsrf(OnlyDashboard, CsrfViewMiddleware):
    """Proof that a form came from our own page: the login's."""

    def process_view(
        self, request: HttpRequest, callback: Callable[..., Any], callback_args: Any, callback_kwargs: Any
    ) -> HttpResponseForbidden | None:
        """Check dashboard requests only: Django calls this hook without passing through ``__call__``."""
        if not request.path_info.startswith(PREFIX):
            return None
        return super().process_view(request, callback, callback_args, callback_kwargs)


class DashboardUser(OnlyDashboard, AuthenticationMiddleware):
    """``request.user``, from the session."""


class DashboardMessages(OnlyDashboard, MessageMiddleware):
    """One-time notices of the admin's pages."""
