"""``export``: write one causal snapshot of the keys of a replica to a file, once or regularly.

Exit codes: 0 the export is complete; 2 it is not, and no file has been written.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import requests
from django.core.management.base import CommandError, CommandParser
from urllib3.exceptions import HTTPError

from store.client.errors import BadExport
from store.client.export import ExportCheck
from store.importing import ImportFailed
from store.management.base import CREDENTIALS, CausewayCommand, file_error
from store.management.connection import Connection, add_at_argument, checked_address
from store.management.progress import ProgressLine, counted
from store.management.replica import Replica, broken_off

FAILED: Final = 2
READ_BYTES: Final = 256 * 1024
UNITS_S: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
DEFAULT_KEPT: Final = 24
FILES: Final = re.compile(r"causeway-\d{8}T\d{6}Z\.jsonl")
DRAFTS: Final = re.compile(rf"{FILES.pattern}\.\d+\.part")


class Command(CausewayCommand):
    """GET /export, checked while it is written."""

    help = (
        "Write all keys of a replica, as one causal snapshot. They go to standard output, to a file, or every so often "
        "to a file of its own in a directory."
    )
    exit_codes = {0: "the export is complete", FAILED: "it is not, and no file was written; or wrong arguments"}
    environment: Mapping[str, str] = CREDENTIALS

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("--prefix", default="", help="only keys that start with this text")
        parser.add_argument(
            "--to", metavar="PATH", type=Path, help="a file, or a directory for files named by their time (UTC)"
        )
        parser.add_argument(
            "--every", metavar="TIME", type=duration_s, help="export again after this time: 30m, 1h, 1d; needs --to DIR"
        )
        parser.add_argument(
            "--keep",
            metavar="N",
            type=positive,
            help=f"with --every: keep the latest N files in the directory (default: {DEFAULT_KEPT})",
        )
        add_at_argument(parser, takes_several=True)

    def handle(self, *args: Any, **options: Any) -> None:
        """Export once, or until the command is stopped."""
        target: Path | None = options["to"]
        if options["every"] is None:
            if options["keep"] is not None:
                raise CommandError("--keep needs --every", returncode=FAILED)
            self._export_once(target, options)
            return
        if target is None:
            raise CommandError("--every needs --to with a directory", returncode=FAILED)
        if not target.is_dir():
            what = "is a file" if target.exists() else "does not exist, create it first"
            raise CommandError(f"--every needs --to with a directory: {target} {what}", returncode=FAILED)
        for draft in target.iterdir():
            if DRAFTS.fullmatch(draft.name):  # An earlier run was killed.
                draft.unlink(missing_ok=True)
        with contextlib.suppress(KeyboardInterrupt):
            self._export_for_ever(target, options)

    def _export_for_ever(self, directory: Path, options: dict[str, Any]) -> None:
        """Export at a fixed rate. A failure is reported, and costs that one export."""
        next_s = time.monotonic()
        while True:
            try:
                self._export_once(directory, options)
                remove_old(directory, options["keep"] or DEFAULT_KEPT)
            except CommandError as exc:
                self.stderr.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {exc}")
            next_s = max(next_s + options["every"], time.monotonic())
            time.sleep(max(0.0, next_s - time.monotonic()))

    def _export_once(self, target: Path | None, options: dict[str, Any]) -> None:
        if target is not None and target.is_dir():
            target /= f"causeway-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.jsonl"
        try:
            keys = self._export_from_one_of(connections_to(options["at"]), options["prefix"], target)
        except (ImportFailed, BadExport, ValueError, OSError) as exc:
            text = file_error(exc) if isinstance(exc, OSError) else str(exc)
            raise CommandError(f"the export has failed: {text}", returncode=FAILED) from None
        self.stderr.write(f"exported {counted(keys, 'key')}" + ("" if target is None else f" to {target}"))

    def _export_from_one_of(self, connections: Sequence[Connection], prefix: str, target: Path | None) -> int:
        """Export from the first replica that can, and return the number of keys. Raises the error of the last one."""
        for place, connection in enumerate(connections, 1):
            check = ExportCheck()
            try:
                with contextlib.closing(Replica(connection)) as replica, opened(target) as file:
                    return copy(replica, prefix, file, check)
            except (ImportFailed, BadExport) as exc:
                # What has gone to standard output stays there.
                if place == len(connections) or (target is None and check.has_begun):
                    raise
                self.stderr.write(f"{exc}; trying {connections[place].address}")
        raise AssertionError("no replica to try")


def connections_to(at: str | None) -> list[Connection]:
    """Return the replicas to try, in order. Raises ValueError."""
    if not at:
        return [Connection.from_environ()]
    return [Connection.from_environ(at=checked_address(each.strip() or each)) for each in at.split(",")]


def copy(replica: Replica, prefix: str, file: BinaryIO, check: ExportCheck) -> int:
    """Copy an export to ``file`` through ``check``, and return the number of its keys.

    Raises ``BadExport`` if it is not complete, and ``ImportFailed``.
    """
    progress = ProgressLine("exported")
    with replica.export(prefix) as response:
        try:
            for data in received(response, check):
                check.feed(data)
                file.write(data)
                if check.first_line:
                    progress.show(check.count, check.keys)
        finally:
            progress.finish()
    check.end()
    return check.count


def received(response: requests.Response, check: ExportCheck) -> Iterator[bytes]:
    """Yield what arrives. Raises ``BadExport`` if the connection breaks."""
    try:
        yield from response.iter_content(READ_BYTES)
    except (requests.RequestException, HTTPError) as exc:
        raise check.error(f"the export is not complete: {broken_off(exc)}") from None


@contextlib.contextmanager
def opened(target: Path | None) -> Iterator[BinaryIO]:
    """Open a draft of ``target``, which takes its place if nothing fails. None: standard output."""
    if target is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    if not target.parent.is_dir():
        raise NotADirectoryError(0, "this directory does not exist: create it first", str(target.parent))
    draft = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        with draft.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def remove_old(directory: Path, keep: int) -> None:
    """Remove all files that this command has named, but for the latest ``keep``."""
    named = sorted(path for path in directory.iterdir() if FILES.fullmatch(path.name))
    for path in named[:-keep]:
        path.unlink(missing_ok=True)


def duration_s(text: str) -> float:
    """Return seconds for a text such as ``90s``, ``30m``, ``1h`` or ``1d``."""
    found = re.fullmatch(r"(\d{1,6})([smhd])", text)
    if not found or not int(found[1]):
        raise ArgumentTypeError("is no time such as 30m, 1h or 1d")
    return float(int(found[1]) * UNITS_S[found[2]])


def positive(text: str) -> int:
    """Return a whole number above 0."""
    if not re.fullmatch(r"\d{1,6}", text) or not int(text):
        raise ArgumentTypeError("is no whole number above 0")
    return int(text)
