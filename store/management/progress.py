"""A line about the progress of a command: how much is done, how fast, and how long the rest takes."""

from __future__ import annotations

import sys
import time
from typing import Final, TextIO

TERMINAL_EVERY_S: Final = 0.5
LOG_EVERY_S: Final = 10.0


class ProgressLine:
    """Writes to ``stream``, on one line if that is a terminal. ``verb``: what is done with keys, such as "exported"."""

    def __init__(self, verb: str, stream: TextIO | None = None) -> None:
        self._verb = verb
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._began_s = self._shown_s = 0.0
        self._width = 0

    def show(self, done: int, total: int) -> None:
        """Show the progress if it is time to. The rate counts from the first call on."""
        now_s = time.monotonic()
        if not self._began_s:
            self._began_s = self._shown_s = now_s
        if now_s - self._shown_s < (TERMINAL_EVERY_S if self._is_terminal else LOG_EVERY_S):
            return
        self._shown_s = now_s
        text = progress_text(self._verb, done, total, now_s - self._began_s)
        if not self._is_terminal:
            print(text, file=self._stream, flush=True)  # for people
            return
        self._width = max(self._width, len(text))
        print(f"\r{text.ljust(self._width)}", end="", file=self._stream, flush=True)

    def finish(self) -> None:
        """End the line."""
        if self._width:
            print(file=self._stream, flush=True)
            self._width = 0


def progress_text(verb: str, done: int, total: int, elapsed_s: float) -> str:
    """Return the line."""
    rate = done / elapsed_s if elapsed_s > 0 else 0.0
    left = f", {_duration((total - done) / rate)} left" if rate > 0 and done < total else ""
    return f"{verb} {done:,} of {total:,} keys, {rate:,.0f} per second{left}"


def counted(number: int, noun: str) -> str:
    """Return for example ``1 key`` or ``1,200 keys``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60} min"
