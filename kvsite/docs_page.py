"""``/docs/``: the API in a browser, with Swagger UI. It sends the requests that the reader tries out.

The page loads everything from this replica, so it works without Internet access. If tokens are set, a token opens it,
and so does the login of the dashboard: a browser cannot send a token with the address of a page. The page gets its
document from ``/admin/schema/``, which the same login opens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import reverse
from django.views.decorators.cache import never_cache
from django.views.generic import RedirectView

from kvsite.config import current
from kvsite.dashboard.site import site
from kvsite.errors import accepts_html, json_error, read_only
from kvsite.guard import BEARER, CHALLENGE, LOGIN_DECIDES
from store.version import VERSION

DOCS_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}
"""Resources of this replica only. Swagger UI sets styles inline; scripts cannot be inline."""


def login_or_token(view: Callable[..., HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Return ``view`` with a check of the login, if the guard has seen no token (kvsite/guard.py).

    A browser without the login is sent to its page, and other clients get 401.
    """

    def serve(request: HttpRequest, *args: Any, **parts: Any) -> HttpResponseBase:
        if not request.META.get(LOGIN_DECIDES) or site.has_permission(request):
            return view(request, *args, **parts)
        if accepts_html(request.META):
            return redirect_to_login(request.get_full_path(), reverse(f"{site.name}:login"))
        response = json_error(401, "Needs an API token: Authorization: Bearer …")
        response[CHALLENGE] = BEARER
        return response

    return serve


to_dashboard = login_or_token(RedirectView.as_view(url="/admin/"))
to_docs = login_or_token(RedirectView.as_view(url="/docs/"))


@login_or_token
@never_cache
@read_only
def docs(request: HttpRequest) -> HttpResponse:
    """Render the page."""
    # A reader with a token may have no login, and gets the document with the page's own rights.
    document_url = reverse(f"{site.name}:schema") if site.has_permission(request) else "/schema/"
    content = {"document_url": document_url, "needs_token": bool(current().api_tokens), "version": VERSION}
    return TemplateResponse(request, "docs.html", content, headers=DOCS_HEADERS)
