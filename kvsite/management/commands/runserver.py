"""``runserver``: Django's development server around one lone replica."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from django.core.management.commands import runserver

from kvsite.config import current
from kvsite.server import build
from replication.address import join_address

logger = logging.getLogger("causeway")


class Command(runserver.Command):
    """Serve one replica without peers, reloading on changes of the code. Data is lost at each reload.

    Not for more than trying a view: it takes no chunked bodies, and hands over nothing at its end.
    """

    addr: str  # set by Django's handle()
    port: str
    help = "Serve one lone replica for development, with reloading."
    default_port = "8090"

    def check_migrations(self) -> None:
        """Leave out Django's question: there is no database."""

    def inner_run(self, *args: Any, **options: Any) -> None:
        """Start the replica in the process that serves: with reloading, a child of the one that was started."""
        # "0" is Django's short form of 0.0.0.0, and that is nobody's name.
        host = "127.0.0.1" if self.addr in ("0", "0.0.0.0", "::") else self.addr  # noqa: S104
        address = join_address(host, int(self.port))
        runtime = build(dataclasses.replace(current(), address=address, bind="", seeds=()), logger.error)
        runtime.node.start()
        super().inner_run(*args, **options)
