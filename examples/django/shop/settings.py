"""Settings of the example. There is no database."""

from __future__ import annotations

import os
from typing import Any

SECRET_KEY = os.environ.get("SECRET_KEY", "only for the example")
DEBUG = False
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "shop.urls"
WSGI_APPLICATION = "shop.wsgi.application"
INSTALLED_APPS: list[str] = []
DATABASES: dict[str, Any] = {}
USE_TZ = True

CACHES = {
    "default": {
        "BACKEND": "causeway_client.django.cache.CausewayCache",
        "LOCATION": os.environ.get("CAUSEWAY_URL", "causeway://127.0.0.1:8090,127.0.0.1:8091,127.0.0.1:8092"),
        "KEY_PREFIX": "shop",
        "OPTIONS": {"w": int(os.environ.get("CAUSEWAY_W", "2"))},  # with 2, no crash of one replica loses a cart
    }
}
SESSION_ENGINE = "causeway_client.django.sessions"

MIDDLEWARE = [
    "causeway_client.django.middleware.CausalMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
]
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "root": {"handlers": ["console"], "level": "WARNING"},
}

if os.environ.get("WITHOUT_CAUSALITY"):  # to see what the middleware is for
    MIDDLEWARE = MIDDLEWARE[1:]
