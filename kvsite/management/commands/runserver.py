"""``runserver``: Django's development server with a single replica."""

from __future__ import annotations

import dataclasses
import logging
import os
from typing import Any

from django.core.management.base import CommandError
from django.core.management.commands import runserver

from kvsite.cluster import DEFAULT_BASE_PORT
from kvsite.config import current
from kvsite.server import StartError, build, check_access
from kvsite.wsgi import load
from store.address import join_address

logger = logging.getLogger("causeway")


class Command(runserver.Command):
    """Run one replica without peers, and reload it when the code changes. Each reload loses the data.

    Use it to try views only: it accepts no chunked bodies, and the replica does not drain when it stops.
    """

    addr: str  # Django's handle() sets both
    port: str
    help = "Run a single replica for development, and reload it when the code changes."
    default_port = str(DEFAULT_BASE_PORT)

    def check_migrations(self) -> None:
        """Do nothing: there is no database."""

    def get_handler(self, *args: Any, **options: Any) -> Any:
        """Return the WSGI application that serves the replica."""
        return load(self._context)

    def on_bind(self, server_port: int) -> None:
        """Say where the server listens, and what to use instead of it."""
        os.environ["DJANGO_RUNSERVER_HIDE_WARNING"] = "true"  # It names servers that cannot run a replica.
        super().on_bind(server_port)
        self.stdout.write(
            self.style.WARNING("This is a development server. Use run_replica instead to run a replica for clients.")
        )

    def inner_run(self, *args: Any, **options: Any) -> None:
        """Start the replica in the process that serves. With reloading, that is a child of the first process."""
        # "0" is Django's short form of 0.0.0.0, which cannot be the address of a replica.
        host = "127.0.0.1" if self.addr in ("0", "0.0.0.0", "::") else self.addr  # noqa: S104
        address = join_address(host, int(self.port))
        try:
            check_access(dataclasses.replace(current(), seeds=(), view_dns=""), self.addr)
        except StartError as exc:
            raise CommandError(str(exc), returncode=2) from None
        self._context = build(dataclasses.replace(current(), address=address, bind="", seeds=()), logger.error)
        self._context.node.start()
        self.stdout.write(
            "This is one replica for development, without peers. Each reload loses its data. A cluster: run_cluster"
        )
        super().inner_run(*args, **options)
