"""Settings of replicas that have faults: shorter timeouts than the defaults, and long enough for a busy machine."""

from __future__ import annotations

DOWN_AFTER_S = 2.0
SYNC_INTERVAL_S = 0.4
QUICK = {"KV_DOWN_AFTER": f"{DOWN_AFTER_S:g}", "KV_SYNC_INTERVAL": f"{SYNC_INTERVAL_S:g}"}
