"""Hold time: how long the current request waited because its client asked for that.

A request waits for its causal past, for a change of a key, or for acks. The slow-request log subtracts this time, so
that it reports work and not waiting (kvsite/slow_requests.py).
"""

from __future__ import annotations

import threading


class HoldTime(threading.local):
    """Hold time per thread. A thread serves one request at a time.

    ``seconds``: time waited by this thread since it was last set to 0. The edge sets it to 0 when a request starts.
    """

    seconds = 0.0
