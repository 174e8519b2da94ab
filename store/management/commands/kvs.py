"""``kvs get|put|patch|delete|list|watch|explain``: send requests to one replica. For people and shell scripts.

Exit codes: 0 success; 1 the key is absent; 2 the request was rejected or no replica answered, and nothing was changed;
3 a write was sent and its outcome is unknown. Values are read and printed as JSON. A value that does not look like JSON
is taken as text; one that begins like JSON and is broken is an error. Bytes are written from a file, and printed as
base64 in quotes, or as they are with ``get --raw``.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import sys
from argparse import ArgumentParser
from base64 import b64encode
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from django.core.management.base import CommandError, CommandParser

from store.client import KEEP, ChangedKey, ClientError, Json, Patch, Read, Session, Unavailable, Uncertain, Written
from store.management.base import (
    CREDENTIALS,
    CausewayCommand,
    add_json_argument,
    add_timeout_argument,
    seconds_above,
    seconds_from,
    whole_number_from,
)
from store.management.connection import OTHER_REPLICA, Connection, add_at_argument, why_not_reachable
from store.management.explanation import NotExplained, fetch, in_words
from store.management.tls_check import WRONG_CA, mismatch

ABSENT, FAILED, UNKNOWN = 1, 2, 3

JSON_BEGINS: Final = ("{", "[", '"')
"""What a value begins with that is meant as JSON, even if it is broken."""

MAX_QUOTED: Final = 40
"""Characters of a value that an error quotes."""

TIMEOUT_S: Final = 10.0
"""How long a command waits for its answer by default."""


class Command(CausewayCommand):
    """The ``kvs`` command. Each action is the method with its name."""

    help = "Read, write, delete or list keys at one replica. 'kvs ACTION --help' says more about one action."
    exit_codes = {
        0: "success",
        ABSENT: "the key is absent",
        FAILED: "rejected, wrong arguments, or no replica answers: nothing was changed",
        UNKNOWN: "a write was sent and its outcome is unknown",
    }
    environment: Mapping[str, str] = CREDENTIALS

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the actions and their options."""
        actions = parser.add_subparsers(dest="action", required=True)

        def add_action(name: str, text: str) -> ArgumentParser:
            return actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.", **common)

        common = self.help_options()
        get = add_action("get", "print a value as JSON")
        get.add_argument("key")
        get.add_argument("--raw", action="store_true", help="print a string without quotes, and bytes as they are")
        get.add_argument("--siblings", action="store_true", help="print all concurrent values, the winner first")
        get.add_argument("--etag", action="store_true", help="print the ETag of the version, not the value")
        put = add_action("put", "write a value")
        put.add_argument("key")
        value = put.add_mutually_exclusive_group(required=True)
        value.add_argument(
            "value",
            nargs="?",
            help="JSON, or text that does not begin like JSON; - reads standard input, without its last line break",
        )
        value.add_argument("--bytes", metavar="FILE", help="write the bytes of this file; - reads standard input")
        put.add_argument("--text", action="store_true", help="write the value as a string, even if it is JSON")
        put.add_argument("--ttl", type=seconds_above(0), metavar="SECONDS", help="let the value expire after this time")
        put.add_argument("--if-none-match", action="store_true", help="write only if the key is absent")
        patch = add_action("patch", "change a counter, a set or a map, or a time to live")
        add_patch_arguments(patch)
        delete = add_action("delete", "delete a key")
        delete.add_argument("key")
        for writing in (put, patch, delete):
            writing.add_argument("--if-match", metavar="ETAG", help="only if this is the current version")
            writing.add_argument("--w", metavar="N", help='wait for acks: a number, "majority" or "all"')
        listing = add_action("list", "print keys in order, one per line")
        listing.add_argument("--prefix", default="", help="only keys that start with this text")
        listing.add_argument("--after", default="", metavar="KEY", help="only keys after this one")
        listing.add_argument(
            "--limit", type=whole_number_from(1), metavar="N", help="print at most N keys (default: all)"
        )
        listing.add_argument("--values", action="store_true", help="print each key, a tab, and its value as JSON")
        listing.add_argument("--conflicts", action="store_true", help="only keys with concurrent values")
        watch = add_action("watch", "print the keys with a prefix, and then each change, until Ctrl-C")
        watch.add_argument("prefix", nargs="?", default="", help="only keys that start with this text (default: all)")
        for action, printed in (
            (get, "the value and what is known of it"),
            (put, "the result"),
            (patch, "the result"),
            (delete, "the result"),
            (listing, "each key, on one line,"),
            (watch, "each change, on one line,"),
        ):
            add_json_argument(action, printed)
            add_common_arguments(action)
        explaining = add_action("explain", "say in words why a key reads as it does at one replica, absent or not")
        explaining.add_argument("key")
        add_json_argument(explaining, "the answer of /replication/explain/KEY")
        add_at_argument(explaining)
        add_timeout_argument(explaining, TIMEOUT_S)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run the action, and turn errors of the client into exit codes."""
        if options["action"] == "explain":
            self.explain(options)
            return
        action = getattr(self, options["action"])
        try:
            with open_session(options) as session:
                action(session, options)
        except BrokenPipeError:
            raise
        except Uncertain as exc:
            raise CommandError(f"{exc}{tls_advice(exc)}", returncode=UNKNOWN) from exc
        except Unavailable as exc:
            raise CommandError(f"{exc}{tls_advice(exc)}", returncode=FAILED) from exc
        except UnicodeEncodeError as exc:
            part = exc.object[exc.start : exc.end][:MAX_QUOTED]
            error = f"an argument has half of a character, or bytes that are not UTF-8: {part!r}"
            raise CommandError(error, returncode=FAILED) from exc
        except (ClientError, ValueError, OSError) as exc:
            raise CommandError(str(exc), returncode=FAILED) from exc

    def get(self, session: Session, options: dict[str, Any]) -> None:
        """Print a value, its siblings or its ETag."""
        read = session.get(options["key"], siblings=options["siblings"], wait_s=options["wait"])
        if not read.found:
            raise CommandError("Key does not exist", returncode=ABSENT)
        if options["json"]:
            self.stdout.write(as_json(read_as_json(options["key"], read)))
            return
        if options["etag"]:
            self.stdout.write(read.etag or "")
            return
        for value in [sibling.value for sibling in read.siblings] or [read.value]:
            if options["raw"] and isinstance(value, bytes):
                self.stdout.flush()
                sys.stdout.buffer.write(value)
                sys.stdout.buffer.flush()
            else:
                self.stdout.write(value if options["raw"] and isinstance(value, str) else as_json(value))
        if read.conflicts > 1 and not options["siblings"]:
            self.stderr.write(f"in conflict: {read.conflicts} concurrent values (see --siblings)", self.style.WARNING)

    def put(self, session: Session, options: dict[str, Any]) -> None:
        """Write a value. Print whether it was created or replaced."""
        written = session.put(
            options["key"],
            value_of(options),
            ttl_s=options["ttl"],
            if_match=options["if_match"],
            if_none_match=options["if_none_match"],
            w=write_concern(options["w"]),
            wait_s=options["wait"],
        )
        self._print_result("created" if written.created else "replaced", written, options)

    def patch(self, session: Session, options: dict[str, Any]) -> None:
        """Change a value that merges. Print whether it was created or merged."""
        change = Patch(
            options["key"],
            increment=options["increment"],
            add=[element_of(text, "--add") for text in options["add"]] or None,
            remove=[element_of(text, "--remove") for text in options["remove"]] or None,
            fields=fields_of(options["set"]) or None,
            unset=options["unset"] or None,
            ttl_s=None if options["no_ttl"] else KEEP if options["ttl"] is None else options["ttl"],
            if_match=options["if_match"],
            if_none_match=options["if_none_match"],
        )
        written = session.patch(change, w=write_concern(options["w"]), wait_s=options["wait"])
        if written.absent:
            raise CommandError("Key does not exist", returncode=ABSENT)
        self._print_result("created" if written.created else "merged", written, options)

    def delete(self, session: Session, options: dict[str, Any]) -> None:
        """Delete a key."""
        written = session.delete(
            options["key"], if_match=options["if_match"], w=write_concern(options["w"]), wait_s=options["wait"]
        )
        if not written.deleted:
            raise CommandError("Key does not exist", returncode=ABSENT)
        self._print_result("deleted", written, options)

    def list(self, session: Session, options: dict[str, Any]) -> None:
        """Print keys, page by page."""
        left = options["limit"] if options["limit"] is not None else sys.maxsize
        after: str | None = options["after"]
        while after is not None and left > 0:
            page = session.list(
                prefix=options["prefix"],
                after=after,
                limit=min(left, 1000),
                values=options["values"],
                conflicts=options["conflicts"],
                wait_s=options["wait"],
            )
            for key in page.keys:
                if options["json"]:
                    value = value_as_json(page.items[key]) if options["values"] else {}
                    self.stdout.write(as_json({"key": key} | value))
                else:
                    self.stdout.write(as_line(key) + (f"\t{as_json(page.items[key])}" if options["values"] else ""))
            left -= len(page.keys)
            after = page.next

    def watch(self, session: Session, options: dict[str, Any]) -> None:
        """Print changes as they arrive."""
        with contextlib.suppress(KeyboardInterrupt):
            present: set[str] = set()
            listed: set[str] | None = None
            wait_s = options["wait"] if options["wait"] is not None else 30.0
            for found in session.changes(options["prefix"], wait_s=wait_s):
                if found.reset and listed is None:
                    listed = set()
                elif not found.reset:
                    listed = None
                for change in found.changes:
                    if listed is not None:
                        listed.add(change.key)
                    self._print_change(change, options)
                    (present.discard if change.deleted else present.add)(change.key)
                if listed is not None and not found.more:
                    for key in sorted(present - listed):
                        self._print_change(ChangedKey(key, deleted=True), options)
                    present &= listed
                    listed = None
                self.stdout.flush()

    def explain(self, options: dict[str, Any]) -> None:
        """Print why a key reads as it does. A session is of no use: the answer has no causal metadata."""
        try:
            explanation = fetch(reachable(options), options["key"], options["timeout"])
        except NotExplained as exc:
            raise CommandError(f"{exc}{tls_advice(exc)}", returncode=FAILED) from exc
        except ValueError as exc:
            raise CommandError(str(exc), returncode=FAILED) from exc
        for line in [as_json(explanation)] if options["json"] else in_words(explanation):
            self.stdout.write(line)

    def _print_change(self, change: ChangedKey, options: dict[str, Any]) -> None:
        if options["json"]:
            fields = {"deleted": True} if change.deleted else {**value_as_json(change.value), "etag": change.etag}
            self.stdout.write(as_json({"key": change.key} | fields))
        elif change.deleted:
            self.stdout.write(self.style.ERROR(f"{as_line(change.key)}\tdeleted"))
        else:
            note = f"\t({change.conflicts} concurrent values)" if change.conflicts > 1 else ""
            self.stdout.write(f"{self.style.SUCCESS(as_line(change.key))}\t{as_json(change.value)}{note}")

    def _print_result(self, result: str, written: Written, options: dict[str, Any]) -> None:
        acks = written.acks
        if options["json"]:
            etag = {} if written.etag is None else {"etag": written.etag}
            known = {} if acks is None else {"acks": acks, "concern_met": written.concern_met}
            self.stdout.write(as_json({"key": options["key"], "result": result} | etag | known))
        else:
            self.stdout.write(result if acks is None else f"{result} acks={acks}")
        if not written.concern_met:
            self.stderr.write(
                "fewer acks than requested; the write is applied and replication continues", self.style.WARNING
            )


def add_patch_arguments(parser: ArgumentParser) -> None:
    """Add what ``patch`` changes. Elements and the values of fields are JSON, or else text."""
    parser.add_argument("key")
    parser.add_argument("--increment", type=int, metavar="N", help="add N to a counter")
    parser.add_argument("--add", action="append", default=[], metavar="ELEMENT", help="add to a set (repeatable)")
    parser.add_argument(
        "--remove", action="append", default=[], metavar="ELEMENT", help="remove from a set (repeatable)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="set in a map (repeatable)")
    parser.add_argument("--unset", action="append", default=[], metavar="FIELD", help="unset in a map (repeatable)")
    ttl = parser.add_mutually_exclusive_group()
    ttl.add_argument("--ttl", type=seconds_above(0), metavar="SECONDS", help="let the value expire after this time")
    ttl.add_argument("--no-ttl", action="store_true", help="let the value never expire")
    parser.add_argument("--if-none-match", action="store_true", help="write only if the key is absent")


def fields_of(texts: list[str]) -> dict[str, Json]:
    """Return the fields and their values in ``FIELD=VALUE``. Raises ValueError."""
    fields: dict[str, Json] = {}
    for text in texts:
        name, found, value = text.partition("=")
        if not found:
            raise ValueError(f"--set takes FIELD=VALUE, not {text!r}")
        if name in fields:
            raise ValueError(f"--set takes each field once, and {name!r} is repeated")
        fields[name] = element_of(value, "--set", f"{name}=")
    return fields


def element_of(text: str, option: str, before: str = "") -> Json:
    """Return ``text``, of an option of ``patch``, as ``from_text`` does. Raises ValueError, which names the option.

    ``before``: what stands before it in the argument.
    """
    try:
        return from_text(text)
    except NotAValue as exc:
        shown = f": {option} {shlex.quote(before + as_json(text))}" if len(before + text) <= MAX_QUOTED else ""
        raise ValueError(f"{option}: {exc} (text has to be a JSON string here{shown})") from None


def add_common_arguments(parser: ArgumentParser) -> None:
    """Add the options that every action has."""
    add_at_argument(parser)
    add_timeout_argument(parser, TIMEOUT_S)
    parser.add_argument(
        "--metadata", type=Path, metavar="FILE", help="read the causal metadata from this file and write it back"
    )
    parser.add_argument(
        "--wait",
        type=seconds_from(0),
        metavar="SECONDS",
        help="how long the replica may wait for the causal past (at most 60)",
    )


@contextlib.contextmanager
def open_session(options: dict[str, Any]) -> Iterator[Session]:
    """Open a session with the address and credentials of the environment, and read and write the metadata file."""
    path: Path | None = options["metadata"]
    metadata = read_metadata(path) if path is not None and path.exists() else {}
    connection = reachable(options)
    address, timeout_s = connection.address, options["timeout"]
    if "://" not in address and connection.is_tls:
        address = f"https://{address}"
    with Session(
        [address],
        token=connection.token or None,
        metadata=metadata,
        verify=connection.verify,
        timeout_s=timeout_s,
        attempt_timeout_s=timeout_s,
    ) as session:
        try:
            yield session
        finally:
            # After an error too: a failed precondition has shown the current version to the session.
            if path is not None and session.metadata != metadata:
                replace_file(path, as_json(session.metadata) + "\n")


def reachable(options: dict[str, Any]) -> Connection:
    """Return how to reach the replica. Raises ``CommandError`` if it cannot be reached, ``ValueError`` for bad input.

    A session would try again until its time is over: that is right for a program, and too long for a person.
    """
    connection = Connection.from_environ(at=options["at"])
    if reason := why_not_reachable(connection.address, options["timeout"]):
        raise CommandError(f"{connection.address} does not answer: {reason} {OTHER_REPLICA}", returncode=FAILED)
    return connection


def tls_advice(exc: ClientError | NotExplained) -> str:
    """Return what to add to an error if TLS is its cause; empty if it is not, or that is not known."""
    url = urlsplit(exc.replica)
    if not url.hostname or not url.port:
        return ""
    is_tls = url.scheme == "https"
    advice = mismatch(url.hostname, url.port, is_tls=is_tls)
    if not advice and is_tls and "SSLError" in str(exc):
        advice = WRONG_CA
    return f"; {advice}" if advice else ""


def read_metadata(path: Path) -> Any:
    """Return the causal metadata in a file. Raises ValueError, which names the file."""
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as exc:
        raise ValueError(f"--metadata: {path} is no causal metadata: {exc}") from None


def replace_file(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically: a reader gets the old or the new content."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.new")
    draft.write_text(text, "utf-8")
    draft.replace(path)


def value_of(options: dict[str, Any]) -> Json:
    """Return the value that ``put`` writes. Raises OSError if its file cannot be read, ValueError if input is empty."""
    if options["bytes"] is not None:
        return sys.stdin.buffer.read() if options["bytes"] == "-" else Path(options["bytes"]).read_bytes()
    text = options["value"]
    if text == "-":
        text = sys.stdin.read()
        if not text and not options["text"]:  # Probably the program before it in the pipe has failed.
            raise ValueError('standard input is empty; to write an empty string: put --text KEY ""')
        # `echo` and editors end a text with a line break that is not part of it.
        text = text.removesuffix("\n").removesuffix("\r")
    if options["text"]:
        return text
    try:
        return from_text(text)
    except NotAValue as exc:
        raise ValueError(f"{exc} (put --text takes any text)") from None


class NotAValue(ValueError):
    """A text that is meant as JSON, and is not, or has a number that no replica takes."""


def from_text(text: str) -> Json:
    """Return ``text`` decoded as JSON, or ``text`` itself if it is not valid JSON. ``NaN`` is not valid JSON.

    Raises NotAValue if it begins like an array, an object or a string of JSON: then JSON was meant. And if it has a
    number beyond the range of doubles.
    """

    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    def to_float(number: str) -> float:
        value = float(number)
        if math.isinf(value):
            raise NotAValue(f"{shortened(text)} has a number beyond the range of a double: {number[:MAX_QUOTED]}")
        return value

    try:
        return json.loads(text, parse_constant=reject, parse_float=to_float)
    except NotAValue:
        raise
    except (ValueError, RecursionError) as exc:
        if not text.lstrip().startswith(JSON_BEGINS):
            return text
        raise NotAValue(f"{shortened(text)} begins like JSON, but is not: {exc}") from None


def shortened(text: str) -> str:
    """Return the beginning of ``text``, for an error."""
    return repr(text if len(text) <= MAX_QUOTED else f"{text[:MAX_QUOTED]}…")


def read_as_json(key: str, read: Read) -> dict[str, Json]:
    """Return what ``get --json`` prints."""
    siblings = [value_as_json(each.value) | {"version": each.version} for each in read.siblings]
    return {
        "key": key,
        **value_as_json(read.value),
        "type": read.type,
        "etag": read.etag,
        "conflicts": read.conflicts,
        "expires": read.expires,
        **({"siblings": siblings} if siblings else {}),
    }


def value_as_json(value: Json) -> dict[str, Json]:
    """Return the fields of a value for ``--json``, as in the API."""
    return {"value": value, "encoding": "base64"} if isinstance(value, bytes) else {"value": value}


def as_json(value: Json) -> str:
    """Return ``value`` as one line of JSON, with bytes in base64."""

    def encode(value: object) -> str:
        if isinstance(value, bytes):
            return b64encode(value).decode()
        raise TypeError(type(value))

    return json.dumps(value, ensure_ascii=False, default=encode)


def as_line(key: str) -> str:
    """Return ``key`` for one line of output: as JSON if it has unprintable characters or starts with a quote."""
    return key if key.isprintable() and not key.startswith('"') else as_json(key)


def write_concern(text: str | None) -> int | str | None:
    """Return the value of ``--w``: a number or a word."""
    return int(text) if text and text.isascii() and text.isdigit() else text
