"""Causeway for Django: a cache, sessions, and middleware that lets users read their own writes.

    CACHES = {
        "default": {
            "BACKEND": "causeway_client.django.cache.CausewayCache",
            "LOCATION": "causeway://10.0.0.1:8090,10.0.0.2:8090,10.0.0.3:8090",
            "KEY_PREFIX": "shop",
        }
    }
    SESSION_ENGINE = "causeway_client.django.sessions"
    MIDDLEWARE = ["causeway_client.django.middleware.CausalMiddleware", ...]      # first

Modules: ``cache`` (what each method does and promises), ``sessions``, ``middleware``, ``clusters`` (connections and
options).
"""
