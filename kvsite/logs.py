"""What of the log is worth a line."""

from __future__ import annotations

import logging

ORDINARY = frozenset({404, 412, 503})
"""Answers that say how the data is, not that somebody did wrong: absent, changed meanwhile, not here yet."""


class Unusual(logging.Filter):
    """Drop Django's warnings of answers that are a store's daily business; keep other 4xx and all 500s."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log."""
        return getattr(record, "status_code", None) not in ORDINARY
