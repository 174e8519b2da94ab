"""A bounded queue of lines that one thread writes, so that no request waits for a pipe or a disk.

A pipe that nobody reads blocks its writer. So threads only append lines here. When the queue is full, lines are dropped
and counted; when it flows again, a line says how many are missing.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Protocol

FLUSH_S: Final = 1.0
"""How long the end of the process waits for lines to be written."""


class Sink(Protocol):
    """Where lines go.

    ``retry_s``: how long to wait before a line is written again that could not be written; None drops it.
    """

    retry_s: float | None

    def write(self, data: bytes) -> bool:
        """Write all of ``data``, however long that takes. Return False if the file does not accept it."""


class DescriptorSink:
    """An open file, such as standard error."""

    retry_s: float | None = None

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, data: bytes) -> bool:
        """See ``Sink``."""
        try:
            write_all(self._descriptor, data)
        except (OSError, ValueError):
            return False
        return True


def write_all(descriptor: int, data: bytes) -> None:
    """Write all of ``data``. Raises OSError, and ``PartlyWritten`` if some of it was written before."""
    written = 0
    while written < len(data):
        try:
            written += os.write(descriptor, data[written:])
        except BlockingIOError:  # Somebody has made the file non-blocking.
            select.select([], [descriptor], [])
        except OSError as exc:
            if not written:
                raise
            raise PartlyWritten(exc.errno, exc.strerror) from exc


class PartlyWritten(OSError):
    """The file has accepted a part of a line."""


class LineQueue:
    """At most ``max_bytes`` of lines that wait to be written to ``sink``, or one line that is longer. Thread-safe.

    Nothing here blocks but ``flush``. The thread that writes starts with the first line. ``report``: returns the line
    that says how many lines are missing. ``dropped_lines``: how many could not be written so far.
    """

    def __init__(self, sink: Sink, max_bytes: int, report: Callable[[int], str]) -> None:
        self.dropped_lines = 0
        self.bytes = 0
        self._sink = sink
        self._max_bytes = max_bytes
        self._report = report
        self._lines: deque[bytes] = deque()
        self._reported = 0
        self._changed = threading.Condition(threading.Lock())
        self._writer: threading.Thread | None = None
        self._writer_pid = 0

    def write(self, line: str) -> None:
        """Append ``line``, which has no line end, or drop it."""
        encoded = _encoded(line)
        with self._changed:
            if self.bytes and self.bytes + len(encoded) > self._max_bytes:
                self.dropped_lines += 1
                return
            self._lines.append(encoded)
            self.bytes += len(encoded)
            if self._writer is None or self._writer_pid != os.getpid():  # A fork copies no threads.
                self._start_writer()
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, at most ``FLUSH_S``."""
        deadline_s = time.monotonic() + FLUSH_S
        with self._changed:
            while self.bytes and (left_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(left_s)

    def _start_writer(self) -> None:
        writer = threading.Thread(target=self._write_lines, name="log", daemon=True)
        try:
            writer.start()
        except RuntimeError:
            return  # The system has no thread left. The next line tries again.
        self._writer, self._writer_pid = writer, os.getpid()

    def _write_lines(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # Other threads receive them.
        while True:
            with self._changed:
                while not self._lines:
                    self._changed.wait()
                line = self._lines[0]  # It stays in the queue until it is written, so that ``flush`` waits for it.
            is_written = self._sink.write(line)
            if not is_written and self._sink.retry_s is not None:
                time.sleep(self._sink.retry_s)
                continue
            with self._changed:
                self._lines.popleft()
                self.bytes -= len(line)
                self.dropped_lines += not is_written
                unreported = self.dropped_lines - self._reported
                flows = is_written and self.bytes <= self._max_bytes // 2
                if unreported and flows:
                    self._reported = self.dropped_lines
                self._changed.notify_all()
            if unreported and flows:
                self._sink.write(_encoded(self._report(unreported)))


def _encoded(line: str) -> bytes:
    return f"{line}\n".encode("utf-8", "backslashreplace")
