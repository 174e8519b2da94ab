"""``KV_SEED_FILE``: a replica that starts alone imports an export before it serves clients (contract 4).

The replica joins as usual. When it has everything that others have, a thread decides: if no other replica answers and
there is no data, it imports the file; otherwise the file is left alone. Clients get 503 until then, and ``/readyz``
says why. A replica that starts meanwhile gets what is there already, as from any member.

A file that is no complete export stops the process: an empty store in place of a backup would be found too late.
"""

from __future__ import annotations

import logging
import shlex
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from rest_framework.exceptions import APIException

from kvsite.context import ServerContext
from store.api import parsing
from store.api.transactions import parse_transaction
from store.engine import Change
from store.errors import PreconditionFailed, StoreError
from store.export_file import BadExport
from store.importing import Import, ImportFailed, KeyPresent, Mode, NotTaken, Progress
from store.management.progress import counted, progress_text
from store.values import store_bytes

logger = logging.getLogger("causeway.seed")

POLL_S: Final = 0.05
LOG_EVERY_S: Final = 10.0

MAX_NAMED: Final = 20
"""Keys that log lines name because they were not restored as they were. Further ones are only counted."""


class OwnReplica:
    """This process's replica as a target of an import."""

    def __init__(self, context: ServerContext) -> None:
        self._context = context

    def is_empty(self, prefix: str) -> bool:
        return not self._context.engine.stats()["keys"]

    def present(self, keys: Sequence[str]) -> Sequence[str]:
        return self._context.engine.present(keys)

    def write(self, writes: Sequence[bytes]) -> None:
        limits = self._context.limits
        if len(writes) > limits.max_batch:
            raise NotTaken(f"a transaction has at most {limits.max_batch} keys")
        try:
            body = parsing.decode(b'{"writes":[%b]}' % b",".join(writes), parsing.TRANSACTION_BODY)
            self._seed(parse_transaction(body, limits)[1])
        except APIException as exc:
            raise NotTaken(str(exc.detail)) from None

    def write_bytes(self, key: str, content: bytes, ttl_s: float | None, *, if_absent: bool) -> None:
        limits = self._context.limits
        if len(content) > limits.max_value_bytes or len(key.encode()) > limits.max_key_bytes:
            raise NotTaken("the key or its value is too long")
        if ttl_s is not None and ttl_s > parsing.MAX_TTL_S:
            raise NotTaken("its deadline is too far ahead")
        self._seed([Change(key, store_bytes(content), parsing.ttl_us(ttl_s), None, if_absent)])

    def _seed(self, changes: Sequence[Change]) -> None:
        try:
            self._context.node.seed(changes)
        except PreconditionFailed:
            raise KeyPresent from None
        except StoreError as exc:
            raise ImportFailed(str(exc)) from None


class Seeder:
    """Imports ``path`` into the replica of ``context``, in a thread, if the replica starts alone.

    The replica must have been made with ``awaits_seed``. ``on_fatal``: called with the reason if the file cannot be
    imported.
    """

    def __init__(self, context: ServerContext, path: Path, on_fatal: Callable[[str], None]) -> None:
        self._context = context
        self._path = path
        self._on_fatal = on_fatal
        self._logged_s = 0.0
        self._named = 0

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self.run, name="seed", daemon=True).start()

    def run(self) -> None:
        """Wait until the replica has caught up, import the file if it is alone, and let the replica serve."""
        node = self._context.node
        while not node.may_seed:
            time.sleep(POLL_S)
        if not node.is_alone:
            # Replicas that start together all meet first. Then the backup is missing, and nobody would notice.
            keys = self._context.engine.stats()["keys"]
            level = logging.INFO if keys else logging.WARNING
            what = f"it has {keys} keys" if keys else self._no_data()
            logger.log(level, "KV_SEED_FILE: not imported, because this replica does not start alone; %s", what)
        elif not self._import():
            return
        node.end_seed()

    def _no_data(self) -> str:
        """Return what to do if the file was not imported and there is no data either."""
        return (
            "it has NO DATA. If the other replicas have none either, write the file to this one: "
            f"causeway import --at {self._context.config.address} {shlex.quote(str(self._path))}"
        )

    def _import(self) -> bool:
        """Import the file. Return False if that has failed, and the process has to stop."""
        self._logged_s = time.monotonic()
        began_s: float | None = None
        logger.info("KV_SEED_FILE: importing %s", self._path)

        def log_progress(progress: Progress) -> None:
            nonlocal began_s
            now_s = time.monotonic()
            if progress.done and began_s is None:
                began_s = now_s
            if began_s is not None and now_s - self._logged_s > LOG_EVERY_S:
                self._logged_s = now_s
                text = progress_text("imported", progress.done, progress.total, now_s - began_s)
                logger.info("KV_SEED_FILE: %s", text)

        try:
            with self._path.open("rb") as file:
                work = Import(
                    file,
                    OwnReplica(self._context),
                    mode=Mode.IF_ABSENT,
                    report=self._report,
                    on_progress=log_progress,
                )
                done = work.run()
        except (BadExport, ImportFailed, OSError) as exc:
            self._on_fatal(f"KV_SEED_FILE: {exc}")
            return False
        except Exception:  # A thread that ended in silence would leave a replica that joins for ever.
            logger.exception("KV_SEED_FILE: the import has failed")
            self._on_fatal("KV_SEED_FILE: the import has failed because of a fault of Causeway; the log says more")
            return False
        logger.info("KV_SEED_FILE: imported %s; %d had expired", counted(done.written, "key"), done.expired)
        if done.siblings or done.unwritable:
            lost = f"{counted(done.siblings, 'sibling')} and {counted(done.unwritable, 'key')}"
            logger.warning("KV_SEED_FILE: %s could not be restored", lost)
        return True

    def _report(self, key: str, what: str) -> None:
        self._named += 1
        if self._named <= MAX_NAMED:
            logger.warning("KV_SEED_FILE: %r: %s", key, what)
