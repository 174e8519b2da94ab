"""The command line: which commands there are, and what is said about those of Django that make no sense here."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Final

from django.core.management import ManagementUtility, get_commands, load_command_class
from django.core.management.base import BaseCommand

from store.version import VERSION

OWN_APPS: Final = frozenset({"kvsite", "replication", "store", "tools"})

HIDDEN: Final = frozenset({"runserver"})
"""Commands of ``OWN_APPS`` that ``help`` does not list. They work."""

DJANGO_HELP: Final[Mapping[str, str]] = {"check": "Check the settings; with --deploy, say what is not secured"}
"""Commands of Django that ``help`` lists -> what they do here."""

NO_DATABASE: Final = "Causeway has no database: replicas keep the data in memory"
NO_ACCOUNTS: Final = "Causeway has no user accounts: KV_ADMIN_PASSWORD protects the dashboard"
NO_PROJECT: Final = "Causeway is an application, and no project to extend"

WITHOUT_USE: Final[Mapping[str, str]] = {
    **dict.fromkeys(
        (
            "createcachetable",
            "dbshell",
            "dumpdata",
            "flush",
            "inspectdb",
            "loaddata",
            "makemigrations",
            "migrate",
            "optimizemigration",
            "remove_stale_contenttypes",
            "showmigrations",
            "sqlflush",
            "sqlmigrate",
            "sqlsequencereset",
            "squashmigrations",
            "testserver",
        ),
        NO_DATABASE,
    ),
    **dict.fromkeys(("changepassword", "createsuperuser"), NO_ACCOUNTS),
    **dict.fromkeys(("compilemessages", "makemessages", "startapp", "startproject"), NO_PROJECT),
    "clearsessions": "Causeway stores no sessions: they are signed cookies",
    "collectstatic": "Causeway serves static files from where the packages have them",
    "sendtestemail": "Causeway sends no mail",
    "test": "the tests run with pytest: make test",
}
"""Commands of Django that cannot do anything here -> why."""


class CommandLine(ManagementUtility):
    """Django's command line, with Causeway's commands."""

    def main_help_text(self, commands_only: bool = False) -> str:  # noqa: FBT001, FBT002  # Django's signature
        """Return the list of commands, each with the first sentence of its help."""
        apps = get_commands()
        names = sorted(name for name, app in apps.items() if self._package(app) in OWN_APPS and name not in HIDDEN)
        names = sorted([*names, *DJANGO_HELP])
        if commands_only:
            return "\n".join(names)
        width = max(map(len, names))
        lines = [f"Causeway {VERSION}: a replicated, causally consistent, in-memory key-value store.", ""]
        lines += [f"  {name:<{width}}  {DJANGO_HELP.get(name) or _first_sentence(apps[name], name)}" for name in names]
        return "\n".join([*lines, "", f"'{self.prog_name} help COMMAND' says more about one."])

    def fetch_command(self, subcommand: str) -> BaseCommand:
        """Return the command. Exit with 2 if it is one of ``WITHOUT_USE``."""
        if subcommand in WITHOUT_USE:
            sys.stderr.write(f"{subcommand} is a command of Django. {_sentence(WITHOUT_USE[subcommand])}\n")
            sys.exit(2)
        return super().fetch_command(subcommand)

    @staticmethod
    def _package(app: object) -> str:
        return app.partition(".")[0] if isinstance(app, str) else ""


def _first_sentence(app: object, name: str) -> str:
    try:
        command = load_command_class(app, name) if isinstance(app, str) else app
    except ImportError as exc:  # A tool may need a package that is not installed. The list is of use all the same.
        return f"(not available: {exc})"
    return str(getattr(command, "help", "")).partition(". ")[0].rstrip(".")


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
