"""Stop signals: one thread waits for the signals that ask this process to stop.

A signal handler could interrupt code that holds a lock which the handler needs. So there is no handler: the main thread
blocks the signals before it starts other threads, and one thread waits for them with ``signal.sigwait``.

``signal.sigtimedwait`` is not usable. If a process is paused (SIGSTOP, SIGCONT) for longer than its timeout, CPython
returns a struct of uninitialised memory instead of None, and a replica that was only paused would stop.

A signal that was ignored when the process started stays ignored: ``nohup`` ignores SIGHUP, and a shell ignores SIGINT
for a command that it starts with ``&``. The kernel would deliver a blocked signal to ``sigwait`` although it is
ignored, so such a signal is neither blocked nor waited for.
"""

from __future__ import annotations

import signal
import threading

_CANDIDATES = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})

IGNORED_SIGNALS = frozenset(signum for signum in _CANDIDATES if signal.getsignal(signum) is signal.SIG_IGN)
"""Those that were ignored when this module was loaded, which is the first thing that the command line does."""

STOP_SIGNALS = _CANDIDATES - IGNORED_SIGNALS


class StopRequest:
    """Records the arrival of ``STOP_SIGNALS``, which must be blocked in every thread before.

    ``signum``: the signal that arrived last, None if there was none.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._arrived = threading.Event()
        threading.Thread(target=self._wait_for_signal, name="signals", daemon=True).start()

    def wait(self, timeout_s: float) -> bool:
        """Wait at most ``timeout_s``; return whether a stop signal has arrived."""
        return self._arrived.wait(timeout_s)

    def make(self) -> None:
        """Request the stop from within this process."""
        self._arrived.set()

    def withdraw(self) -> None:
        """Forget the request: from now on, ``wait`` waits for another one."""
        self._arrived.clear()

    def _wait_for_signal(self) -> None:
        while STOP_SIGNALS:
            self.signum = signal.sigwait(STOP_SIGNALS)
            self._arrived.set()


def block() -> None:
    """Block ``STOP_SIGNALS`` in this thread and in all threads that it starts."""
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)


def keep_ignored() -> None:
    """Ignore ``IGNORED_SIGNALS`` again, after a library has set handlers. Call it from the main thread."""
    for signum in IGNORED_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
