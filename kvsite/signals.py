"""Waiting for the end: the signals that ask a process to stop, taken synchronously.

A handler could run while a lock that it needs is held by what it interrupts. So the signals are blocked, in the
main thread before any other starts, and one thread waits for them.
``signal.sigtimedwait`` will not do: in a process that was paused (SIGSTOP, SIGCONT) beyond its timeout, CPython's
returns a struct of uninitialised memory in place of None, and a replica that was only paused would stop itself.
"""

from __future__ import annotations

import signal
import threading

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class StopRequest:
    """Becomes set when one of ``STOP_SIGNALS`` arrives; they must be blocked in every thread by then."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        threading.Thread(target=self._take, name="signals", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s``; return whether the end was asked for."""
        return self._arrived.wait(timeout_s)

    def _take(self) -> None:
        signal.sigwait(STOP_SIGNALS)
        self._arrived.set()


def block() -> None:
    """Block ``STOP_SIGNALS`` in this thread and all that it will start."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
