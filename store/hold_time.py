"""How long a request was held because it asked to be: for its causal past, a change of a key, or acks.

Whoever measures requests wants to know how much of the time was work. Each request has a thread while it is answered,
so a figure for each thread is enough.
"""

from __future__ import annotations

import threading


class Held(threading.local):
    """``seconds``: for how long this thread has waited on purpose since it was last set to 0."""

    seconds = 0.0


HELD = Held()
