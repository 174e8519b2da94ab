"""Authentication for the dashboard: one shared password, ``KV_ADMIN_PASSWORD``.

There is no database and therefore no accounts. The only user is created in memory for each request. The session is a
signed cookie. All replicas with the same secrets derive the same signing key (``Config.django_secret_key``), so a login
at one replica is valid at all of them. It ends everywhere when the password changes.

A signed cookie is valid until it expires, wherever a copy of it is. So each login has a random id, and a replica
remembers the logins that were ended at it. Other replicas do not learn of it.
"""

from __future__ import annotations

import hmac
import secrets
import threading
import time
from typing import Any, Final

from django.contrib.auth import SESSION_KEY
from django.contrib.auth.backends import BaseBackend
from django.contrib.auth.models import User
from django.contrib.auth.signals import user_logged_in, user_logged_out
from django.http import HttpRequest

from kvsite.config import current
from kvsite.dashboard.throttle import source_of, throttle

USER_ID = 1

LOGIN_ID: Final = "login"
"""Key of a session's data: the random id of the login that began it."""

MAX_ENDED_LOGINS: Final = 4096


class EndedLogins:
    """Ids of logins that were ended here, until their cookies expire. Thread-safe. Forgets the oldest when full."""

    def __init__(self, max_logins: int = MAX_ENDED_LOGINS) -> None:
        self._max_logins = max_logins
        self._lock = threading.Lock()
        self._until_s: dict[str, float] = {}
        """Id -> monotonic time at which its cookie has expired, oldest first."""

    def add(self, login: str, lifetime_s: float, now_s: float) -> None:
        """Remember that ``login`` has ended. ``lifetime_s``: of its cookie, at most."""
        with self._lock:
            while self._until_s and next(iter(self._until_s.values())) <= now_s:
                del self._until_s[next(iter(self._until_s))]
            if len(self._until_s) >= self._max_logins:
                del self._until_s[next(iter(self._until_s))]
            self._until_s[login] = now_s + lifetime_s

    def has(self, login: str) -> bool:
        """Return whether ``login`` has ended here."""
        return login in self._until_s


ended_logins = EndedLogins()


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


def track_logins() -> None:
    """Give each login an id, and remember the logins that end."""
    user_logged_in.connect(_begin_login, dispatch_uid="begin_login")
    user_logged_out.connect(_end_login, dispatch_uid="end_login")


def _begin_login(request: HttpRequest, **_: Any) -> None:
    request.session[LOGIN_ID] = secrets.token_hex(16)


def _end_login(request: HttpRequest, **_: Any) -> None:
    if login := request.session.get(LOGIN_ID):
        ended_logins.add(login, request.session.get_expiry_age(), time.monotonic())


def close_ended_session(request: HttpRequest) -> None:
    """Empty the session of ``request`` if its login has ended here, or has no id."""
    if SESSION_KEY not in request.session:
        return
    login = request.session.get(LOGIN_ID)
    if not login or ended_logins.has(login):
        request.session.flush()


def disable_last_login() -> None:
    """Stop Django from recording the time of a login: this writes to a database, and there is none."""
    user_logged_in.disconnect(dispatch_uid="update_last_login")
