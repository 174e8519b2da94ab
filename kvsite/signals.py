"""Stop signals: one thread waits for the signals that ask this process to stop.

A signal handler could interrupt code that holds a lock which the handler needs. So there is no handler: the main thread
blocks the signals before it starts other threads, and one thread waits for them with ``signal.sigwait``.

``signal.sigtimedwait`` is not usable. If a process is paused (SIGSTOP, SIGCONT) for longer than its timeout, CPython
returns a struct of uninitialised memory instead of None, and a replica that was only paused would stop.
"""

from __future__ import annotations

import signal
import threading

STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


class StopRequest:
    """Records the arrival of one of ``STOP_SIGNALS``, which must be blocked in every thread before."""

    def __init__(self) -> None:
        self._arrived = threading.Event()
        threading.Thread(target=self._wait_for_signal, name="signals", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s``; return whether a stop signal has arrived."""
        return self._arrived.wait(timeout_s)

    def _wait_for_signal(self) -> None:
        signal.sigwait(STOP_SIGNALS)
        self._arrived.set()


def block() -> None:
    """Block ``STOP_SIGNALS`` in this thread and in all threads that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
