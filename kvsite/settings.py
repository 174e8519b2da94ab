"""Django's settings. Operators set environment variables instead (kvsite/config.py); some of these depend on them.

Django has no database here: the engine holds the data, signed cookies hold the sessions, and the admin site shows only
the dashboard. This module reads the environment before ``run_replica`` parses its flags. That is correct as long as it
does not use the settings that flags can override: address, bind and seeds.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from kvsite.config import current
from store.version import VERSION

BASE_DIR = Path(__file__).resolve().parent.parent
_DASHBOARD = BASE_DIR / "kvsite" / "dashboard"
_CONFIG = current()

DEBUG = False
SECRET_KEY = _CONFIG.django_secret_key()
# kvsite.hosts checks Host headers instead: it knows the members, and accepts names with underscores.
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "kvsite.urls"
APPEND_SLASH = False  # /kvs/a and /kvs/a/ are different keys
USE_I18N = False
USE_TZ = True
TIME_ZONE = "UTC"  # of the log, too
LANGUAGE_CODE = "en"
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"

# An empty dictionary makes Django reject every query with a clear error.
DATABASES: dict[str, Any] = {}
CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}


def _has_tools() -> bool:
    """Return whether ``import tools`` finds the package beside this one, not another package of this common name."""
    spec = find_spec("tools")
    if spec is None or spec.origin is None:
        return False
    package = BASE_DIR / "tools"
    return Path(spec.origin).resolve() == package / "__init__.py"


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
    # Benchmark, demo, simulation and history checker: in a checkout, not in the image or the wheel.
    *(["tools.apps.ToolsConfig"] if _has_tools() else []),
]

# All of it acts only on paths of the dashboard, see the modules. (WhiteNoise looks up each path in a
# dict.) Requests of the API pass none (kvsite/fast_path.py).
MIDDLEWARE = [
    "kvsite.dashboard.middleware.DashboardSecurity",
    "kvsite.dashboard.static_files.StaticFiles",
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

# Below /admin/, because requests without a token are answered only there (contract 5). Only the dashboard uses them.
STATIC_URL = "/admin/static/"
STATICFILES_DIRS = [_DASHBOARD / "static"]
WHITENOISE_USE_FINDERS = True  # serve files from where packages have them: nothing collects them
WHITENOISE_ALLOW_ALL_ORIGINS = False
WHITENOISE_MAX_AGE = 60  # seconds, for a URL without a version
STORAGES = {"staticfiles": {"BACKEND": "kvsite.dashboard.static_files.VersionedStorage"}}

AUTHENTICATION_BACKENDS = ["kvsite.dashboard.auth.PasswordBackend"]
SESSION_ENGINE = "django.contrib.sessions.backends.signed_cookies"
SESSION_COOKIE_AGE = 12 * 3600
SESSION_COOKIE_SAMESITE = "Strict"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _CONFIG.scheme == "https"
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
LOGIN_URL = "admin:login"
LOGIN_REDIRECT_URL = "admin:index"  # also after a login whose `next` names another host
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"
X_FRAME_OPTIONS = "DENY"
# Browsers respect it only over TLS; otherwise they ignore it and print a warning in the console.
SECURE_CROSS_ORIGIN_OPENER_POLICY = "same-origin" if _CONFIG.scheme == "https" else None

# `check --deploy` looks for Django's own middleware by name (W001 to W003). The subclasses used here skip API requests;
# tests/kvsite/test_security_pages.py checks their behaviour. kvsite.checks adds checks of the KV_* variables.
SILENCED_SYSTEM_CHECKS = ["security.W001", "security.W002", "security.W003"]
SESSION_COOKIE_HTTPONLY = True
CSRF_COOKIE_SAMESITE = "Strict"
CSRF_FAILURE_VIEW = "kvsite.errors.csrf_failure"

# Each reader of a body has its own limit: the API (KV_MAX_BODY_BYTES), the exchange between replicas, and the login
# form (kvsite.dashboard.middleware). Django's single limit would be wrong for two of them.
DATA_UPLOAD_MAX_MEMORY_SIZE = None

REST_FRAMEWORK: dict[str, Any] = {
    # kvsite.guard checks credentials (contract 5). There are no user accounts.
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
    "VERSION": VERSION,
    "OAS_VERSION": "3.1.1",
    "PREPROCESSING_HOOKS": ["kvsite.schema.name_keys"],
    "DISABLE_ERRORS_AND_WARNINGS": True,  # its guesses are not used, see store/api/schema/
}

LOGGING_CONFIG = "logging.config.dictConfig"
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"human": {"()": "kvsite.logs.HumanFormatter"}, "json": {"()": "kvsite.logs.JsonFormatter"}},
    "filters": {"drop_ordinary_statuses": {"()": "kvsite.logs.DropOrdinaryStatuses"}},
    "handlers": {"stderr": {"()": "kvsite.logs.QueueHandler", "formatter": _CONFIG.log_format}},
    "root": {"handlers": ["stderr"], "level": "INFO"},
    "loggers": {
        # Replaces Django's default, which sends mail to administrators.
        "django": {"handlers": [], "level": "INFO", "propagate": True},
        "django.request": {"filters": ["drop_ordinary_statuses"]},
        "_granian": {"level": "ERROR"},  # the server
    },
}
