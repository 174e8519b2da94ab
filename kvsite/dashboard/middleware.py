"""Sessions, login, CSRF protection and messages, for the dashboard only.

Django expects these in MIDDLEWARE, which every request passes. API requests have no session and no cookies and should
not pay for them, so each class here does nothing unless the path belongs to the dashboard.
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

from kvsite.dashboard.auth import close_ended_session
from kvsite.errors import error_response
from kvsite.guard import PAGES

PREFIX = "/admin/"

MAX_FORM_BYTES = 64 * 1024
"""Maximum size of a request body. The only form that is posted is the login form: a password and a token."""

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Allow resources from this replica only, and nothing inline. A key that contains a script could not run it even if a
template failed to escape it."""


class OnlyDashboard(MiddlewareMixin):
    """Mixin that skips the middleware for all other paths. It must be the first base class."""

    def __call__(self, request: HttpRequest) -> Any:
        """Run the middleware if the path belongs to the dashboard, or pass the request on."""
        if request.path_info.startswith(PREFIX):
            return super().__call__(request)
        return self.get_response(request)


class DashboardAndPages(OnlyDashboard):
    """Like ``OnlyDashboard``, for the other pages that the login opens too (kvsite/docs_page.py)."""

    def __call__(self, request: HttpRequest) -> Any:
        """Run the middleware if the path belongs to the dashboard or is one of these pages."""
        if request.path_info in PAGES:
            return super(OnlyDashboard, self).__call__(request)
        return super().__call__(request)


class DashboardSecurity(OnlyDashboard, SecurityMiddleware):
    """Limits body sizes and sets security headers: no content sniffing, no referrer, a Content-Security-Policy."""

    def process_request(self, request: HttpRequest) -> Any:
        """Reject a request with a body that is too large, before the body is read."""
        if int(request.META.get("CONTENT_LENGTH") or 0) > MAX_FORM_BYTES:
            return error_response(request, 413, "Form is too large")
        return super().process_request(request)

    def process_response(self, request: HttpRequest, response: HttpResponse) -> HttpResponse:
        """Add the Content-Security-Policy."""
        response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
        return super().process_response(request, response)


class DashboardFrames(OnlyDashboard, XFrameOptionsMiddleware):
    """Prevents other sites from showing the pages in a frame."""


class DashboardSession(DashboardAndPages, SessionMiddleware):
    """Sessions, stored in signed cookies."""


class DashboardCsrf(OnlyDashboard, CsrfViewMiddleware):
    """CSRF protection for the login form."""

    def process_view(
        self, request: HttpRequest, callback: Callable[..., Any], callback_args: Any, callback_kwargs: Any
    ) -> HttpResponseForbidden | None:
        """Check dashboard requests only. Django calls this hook directly, not through ``__call__``."""
        if not request.path_info.startswith(PREFIX):
            return None
        return super().process_view(request, callback, callback_args, callback_kwargs)


class DashboardUser(DashboardAndPages, AuthenticationMiddleware):
    """Sets ``request.user`` from the session, unless its login has ended."""

    def process_request(self, request: HttpRequest) -> None:
        """Close the session of a login that has ended, and set the user."""
        close_ended_session(request)
        super().process_request(request)


class DashboardMessages(OnlyDashboard, MessageMiddleware):
    """One-time messages of the admin pages."""
