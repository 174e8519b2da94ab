# ruff: noqa: N999  # the name of the command, which Django takes from the module
"""``import FILE``: write the keys of an export to a replica.

Exit codes: 0 everything was restored; 1 the import is done, and some of it could not be restored; 2 it has failed. If
the import has failed after it had begun to write, ``--if-absent`` goes on where it was.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from django.core.management.base import CommandError, CommandParser

from store.export_file import BadExport
from store.importing import Import, ImportFailed, Mode, Progress
from store.management.base import CREDENTIALS, CausewayCommand, file_error
from store.management.connection import Connection, add_at_argument
from store.management.progress import ProgressLine, counted
from store.management.replica import Replica

INCOMPLETE: Final = 1
FAILED: Final = 2


class Command(CausewayCommand):
    """Check a file, then write its keys in transactions."""

    help = "Write the keys of an export to a replica, as new writes. Refuses a replica that has some of the keys."
    exit_codes = {
        0: "everything was restored",
        INCOMPLETE: "the import is done, and a part could not be restored",
        FAILED: "the import has failed, or wrong arguments",
    }
    environment: Mapping[str, str] = CREDENTIALS

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the arguments."""
        parser.add_argument("file", metavar="FILE", help="an export; - reads standard input")
        parser.add_argument("--prefix-to", metavar="PREFIX", help="put this in place of the prefix of the export")
        existing = parser.add_mutually_exclusive_group()
        existing.add_argument("--if-absent", action="store_true", help="leave keys as they are that the replica has")
        existing.add_argument("--overwrite", action="store_true", help="replace keys that the replica has")
        parser.add_argument("--w", metavar="N", help='acks of each write: a number, "majority" or "all"')
        add_at_argument(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Import the file, and say what was not restored."""
        mode = Mode.IF_ABSENT if options["if_absent"] else Mode.OVERWRITE if options["overwrite"] else Mode.REFUSE
        text = options["w"]
        w = int(text) if text and text.isascii() and text.isdigit() else text
        checking, writing = ProgressLine("checked"), ProgressLine("imported")

        def show(progress: Progress) -> None:
            if progress.done:
                checking.finish()
                writing.show(progress.done, progress.total)
            else:
                checking.show(progress.checked, progress.total)

        def report(key: str, what: str) -> None:
            writing.finish()
            self.stderr.write(f"{key if key.isprintable() else ascii(key)}: {what}")

        try:
            replica = Replica(Connection.from_environ(at=options["at"]), w)
            with contextlib.closing(replica), opened(options["file"]) as file:
                replica.check_reachable()  # Before the whole file is read.
                work = Import(file, replica, mode=mode, prefix_to=options["prefix_to"], report=report, on_progress=show)
                done = work.run()
        except (BadExport, ImportFailed, ValueError, OSError) as exc:
            text = file_error(exc) if isinstance(exc, OSError) else str(exc)
            raise CommandError(text, returncode=FAILED) from None
        finally:
            checking.finish()
            writing.finish()
        self._summarise(done, replica.too_few_acks)

    def _summarise(self, done: Progress, too_few_acks: int) -> None:
        facts = [f"imported {counted(done.written, 'key')}"]
        if done.present:
            facts.append(f"{done.present:,} were there already")
        if done.expired:
            facts.append(f"{done.expired:,} had expired")
        self.stderr.write("; ".join(facts))
        if too_few_acks:
            transactions = counted(too_few_acks, "transaction")
            self.stderr.write(f"{transactions} had fewer acks than requested; replication continues")
        if done.siblings or done.unwritable:
            lost = f"{counted(done.siblings, 'sibling')} and {counted(done.unwritable, 'key')} could not be restored"
            raise CommandError(lost, returncode=INCOMPLETE)


@contextlib.contextmanager
def opened(name: str) -> Iterator[BinaryIO]:
    """Open a file that can be read twice. Standard input is copied to a temporary one."""
    if name != "-":
        with Path(name).open("rb") as file:
            yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(sys.stdin.buffer, copy)
        copy.seek(0)
        yield copy
