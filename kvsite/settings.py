"""Django's settings. What an operator sets is in ``kvsite.config``; this is what follows from it.

Django serves without a database here: data lives in the engine, sessions in signed cookies, and the admin site shows
one page that is ours. Of the three settings that command flags of ``run_replica`` can override (address, bind, seeds)
none is used in this module, so it may read the environment before the flags are known.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvsite.config import current

BASE_DIR = Path(__file__).resolve().parent.parent
_DASHBOARD = BASE_DIR / "kvsite" / "dashboard"
_CONFIG = current()

DEBUG = False
SECRET_KEY = _CONFIG.django_secret_key()
# Hosts are checked by kvsite.hosts, which knows the members and takes names with underscores.
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "kvsite.urls"
WSGI_APPLICATION = "kvsite.wsgi.application"
APPEND_SLASH = False  # /kvs/a and /kvs/a/ are different keys
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"  # also the log's
LANGUAGE_CODE = "en"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"

# A dictionary with no database in it is not the same as none: Django then refuses every query with a clear error.
DATABASES: dict[str, Any] = {}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}


def _has_tools() -> bool:
    """Return whether ``import tools`` finds this checkout's package, not another package of this common name."""
    spec = find_spec("tools")
    if spec is None or spec.origin is None:
        return False
    package = BASE_DIR / "tools"
    return Path(spec.origin).resolve() == package / "__init__.py" and (package / "apps.py").is_file()


INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "kvsite.apps.KvsiteConfig",
    "django.contrib.admin.apps.SimpleAdminConfig",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",  # assets of /docs/
    "replication.apps.ReplicationConfig",
    "store.apps.StoreConfig",
    # Benchmark, demo, simulation and history checker: a checkout has them, the image does not.
    *(["tools.apps.ToolsConfig"] if _has_tools() else []),
]

# What a request of the API passes through; kvsite.fast_path knows no other middleware.
API_MIDDLEWARE = ["kvsite.hosts.HostMiddleware"]

# The rest steps aside unless the path is the dashboard's: see their module.
MIDDLEWARE = [
    *API_MIDDLEWARE,
    "kvsite.dashboard.middleware.DashboardSecurity",
    "kvsite.dashboard.throttle.LoginThrottle",
    "kvsite.dashboard.middleware.DashboardSession",
    "kvsite.dashboard.middleware.DashboardCsrf",
    "kvsite.dashboard.middleware.DashboardUser",
    "kvsite.dashboard.middleware.DashboardMessages",
    "kvsite.dashboard.middleware.DashboardFrames",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [_DASHBOARD / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

# Beneath the dashboard, whose pages alone use them: without tokens nothing else is served to anybody (SPEC 5).
STATIC_URL = "/admin/static/"
STATICFILES_DIRS = [_DASHBOARD / "static"]

AUTHENTICATION_BACKENDS = ["kvsite.dashboard.auth.PasswordBackend"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_SAMESITE = "Strict"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _CONFIG.scheme == "https"
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
LOGIN_URL = "admin:login"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# Browsers heed it over TLS alone; without, they tell everybody who opens the console that they do not.
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin" if _CONFIG.scheme == "https" else None

# `check --deploy` looks for Django's own middleware by name. Ours are subclasses that step aside for the API (W001 to
# W003); tests/kvsite/test_security_pages.py looks at what they do. What kvsite.checks adds is about KV_*.
SILENCED_SYSTEM_CHECKS = ["security.W001", "security.W002", "security.W003"]
SESSION_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Strict"

# Who reads a body says how long it may be: the API (KV_MAX_BODY_BYTES), replicas among themselves, the login form
# (kvsite.dashboard.middleware). Django's one limit for all would be wrong for two of the three.
DATA_UPLOAD_MAX_MEMORY_SIZE = None

REST_FRAMEWORK: dict[str, Any] = {
    # Who may do what is checked by the API's own guards (SPEC 5), not by accounts, which do not exist.
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": [],
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": ["rest_framework.parsers.JSONParser"],
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}

SPECTACULAR_SETTINGS: dict[str, Any] = {
    "TITLE": "Causeway",
    "DESCRIPTION": "A replicated, causally consistent, in-memory key-value store.",
    "VERSION": "0.1.0",
    "OAS_VERSION": "3.1.1",
    "PREPROCESSING_HOOKS": ["kvsite.schema.name_keys"],
    "DISABLE_ERRORS_AND_WARNINGS": True,  # what it cannot guess is written out
}

LOGGING_CONFIG = "logging.config.dictConfig"
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"human": {"()": "kvsite.logs.Human"}, "json": {"()": "kvsite.logs.Json"}},
    "filters": {"unusual": {"()": "kvsite.logs.Unusual"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": _CONFIG.log_format}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        # Replaces Django's default, which mails administrators.
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.request": {"filters": ["unusual"]},
        "_granian": {"level": "ERROR"},  # granian's own
    },
}
