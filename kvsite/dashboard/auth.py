"""Authentication for the dashboard: one shared password, ``KV_ADMIN_PASSWORD``.

There is no database and therefore no accounts. The only user is created in memory for each request. The session is a
signed cookie. All replicas with the same secrets derive the same signing key (``Config.django_secret_key``), so a login
at one replica is valid at all of them. It ends everywhere when the password changes.
"""

from __future__ import annotations

import hmac
from typing import Any

from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in
from django.http import HttpRequest

from kvsite.config import current
from kvsite.dashboard.throttle import source_of, throttle

USER_ID = 1


def operator() -> User:
    """Return the only user. Its password is marked unusable, so that the admin site offers no page to change it."""
    return User(pk=USER_ID, username="admin", password="!", is_staff=True, is_active=True)  # noqa: S106


class PasswordBackend(BaseBackend):
    """Compares the password with ``KV_ADMIN_PASSWORD`` in constant time. The user name is ignored."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **extra: Any
    ) -> User | None:
        """Return the user if a password is set and ``password`` is correct, else None."""
        expected = current().admin_password
        if not expected or password is None:
            return None
        if not hmac.compare_digest(password.encode(), expected.encode()):
            return None
        if request is not None:
            throttle.reset(source_of(request))
        return operator()

    def get_user(self, user_id: int) -> User | None:
        """Return the user with the id that a session contains."""
        return operator() if user_id == USER_ID else None


def disable_last_login() -> None:
    """Stop Django from recording the time of a login: this writes to a database, and there is none."""
    user_logged_in.disconnect(dispatch_uid="update_last_login")
