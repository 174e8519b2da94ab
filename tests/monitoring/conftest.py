"""The tests of monitoring need Prometheus, which is large. They run only if named: `make monitoring` does that."""

from __future__ import annotations

# pytest ignores this list for files that its arguments name.
collect_ignore = ["test_prometheus.py"]
