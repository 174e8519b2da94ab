"""Who may see the dashboard: nobody asked where no password is set, else whoever knows it.

There is no database, so there are no accounts: one user exists, in memory, while a request lasts. The session is a
signed cookie; its key is the same on all replicas that share their secrets (``Config.django_secret_key``), so that a
login at one replica holds at all of them, and ends for all when the password changes.
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
    """Return the one user. The password is marked unusable: then the admin site offers no page to change it."""
    return User(pk=USER_ID, username="admin", password="!", is_staff=True, is_active=True)  # noqa: S106


class PasswordBackend(BaseBackend):
    """Compare with ``KV_ADMIN_PASSWORD`` in constant time; the user name is not asked for."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **extra: Any
    ) -> User | None:
        """Return the user where the password is right and one is set."""
        expected = current().admin_password
        if not expected or password is None:
            return None
        if not hmac.compare_digest(password.encode(), expected.encode()):
            return None
        if request is not None:
            throttle.forgive(source_of(request))
        return operator()

    def get_user(self, user_id: int) -> User | None:
        """Return the user of a session."""
        return operator() if user_id == USER_ID else None


def forget_last_login() -> None:
    """Stop Django from writing the time of a login to a database that is not there."""
    user_logged_in.disconnect(dispatch_uid="update_last_login")
