"""Reads an export part by part, and checks that it is complete. Without I/O.

    {"causeway-export":1,"keys":2,"causal-metadata":{…},…}
    {"key":"user/1","versions":[{"value":{"name":"Ada"},"timestamp":1795391360636245}]}
    {"key":"visits","versions":[{"value":7,"type":"counter","timestamp":1795391360636250,"expires":1795394960.6}]}
    {"count":2,"sha256":"…"}

The last line has the number of keys, and the SHA-256 of all bytes before it. Causeway's command ``export`` uses
``ExportCheck`` too.
"""

from __future__ import annotations

import hashlib
from typing import Final

from .errors import BadExport
from .exchange import decode

FORMAT: Final = 1

MAX_LINE_BYTES: Final = 256 * 1024 * 1024
"""Longest line that is read. The command ``import`` of Causeway accepts no longer one."""

MAX_REASON_CHARACTERS: Final = 300
"""Most characters of a replica's reason that an error repeats."""


class ExportCheck:
    """Checks an export while its bytes pass by.

    The last line that has ended is held back until the next one ends: it may be the one with the checksum.

    ``replica``: base URL of where the export comes from, for errors.
    ``first_line``: the line about the export, once the second line has ended; empty until then.
    ``keys``: how many keys the first line announces. ``count``: how many lines of keys ``feed`` has returned.
    """

    def __init__(self, replica: str = "") -> None:
        self.first_line = b""
        self.keys = 0
        self.count = 0
        self._replica = replica
        self._checksum = hashlib.sha256()
        self._held: list[bytes] = []
        self._unended: list[bytes] = []
        self._unended_bytes = 0

    @property
    def has_begun(self) -> bool:
        """Whether any byte has passed by."""
        return bool(self._unended)

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes, and return the lines of keys that are certain now, without their line breaks.

        Raises ``BadExport`` if the first line is not that of an export, or a line is longer than ``MAX_LINE_BYTES``.
        """
        self._unended.append(data)
        self._unended_bytes += len(data)
        if self._unended_bytes > MAX_LINE_BYTES:
            raise self.error(f"a line is longer than {MAX_LINE_BYTES} bytes")
        if b"\n" not in data:
            return []
        *ended, rest = b"".join(self._unended).split(b"\n")
        self._unended, self._unended_bytes = [rest], len(rest)
        lines = [*self._held, *ended]
        self._held = [lines.pop()]
        if not lines:
            return []
        self._checksum.update(b"\n".join([*lines, b""]))
        if not self.first_line:
            self._begin(lines.pop(0))
        self.count += len(lines)
        return lines

    def end(self) -> None:
        """Note that no byte follows. Raises ``BadExport`` unless the export is complete and as the replica made it."""
        last_line = self._held[0] if self._held else b""
        if last_line and not self.first_line:
            self._begin(last_line)
            last_line = b""
        if not last_line or self._unended_bytes:
            raise self.error("the export is not complete: it ends in the middle")
        last = decode(last_line) or {}
        if "error" in last:
            raise self.error(f"the export could not be completed: {str(last['error'])[:MAX_REASON_CHARACTERS]}")
        if "sha256" not in last:
            raise self.error(f"the export is not complete: it ends after {self.count + 1} of {self.keys} keys")
        if last["sha256"] != self._checksum.hexdigest() or not last.get("count") == self.keys == self.count:
            raise self.error("the export is damaged: its last line does not fit to what is before it")

    def error(self, reason: str) -> BadExport:
        """Return the error for this export."""
        return BadExport(self._replica, reason)

    def _begin(self, line: bytes) -> None:
        header = decode(line) or {}
        if header.get("causeway-export") != FORMAT or type(header.get("keys")) is not int:
            raise self.error("this is no export of Causeway: the first line is not that of one")
        self.first_line, self.keys = line, header["keys"]
