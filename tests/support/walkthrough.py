"""Runs the commands of a page as a reader types them, and compares what they print with what the page shows."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple, Self

from kvsite.cli import MANAGE
from tests.support.waiting import wait_until

BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HERE_DOCUMENT: Final = re.compile(r"<<(\w+)$")
DONE: Final = "--- the command has ended ---"


class Step(NamedTuple):
    """One command of a page. ``expected``: what it prints; ``…`` stands for any text in a line.

    ``runs``: whether a test types it. The page shows other commands in blocks of ``sh``.
    """

    command: str
    expected: str
    runs: bool


def steps(page: Path, section: str = "") -> Iterator[Step]:
    """Yield the commands of the blocks ``console`` and ``sh`` of a page, or of its section ``section``."""
    text = page.read_text("utf-8")
    if section:
        text = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    for language, block in BLOCK.findall(text):
        if language == "sh":
            yield Step(block.strip(), "", runs=False)
        elif language == "console":
            yield from _typed(block)


def _typed(block: str) -> Iterator[Step]:
    lines = iter(block.splitlines())
    command, output = "", list[str]()
    for line in lines:
        if not line.startswith("$ "):
            output.append(line)
            continue
        if command:
            yield Step(command, "\n".join(output).rstrip(), runs=True)
        command, output = line[2:], []
        if found := HERE_DOCUMENT.search(command):
            for part in lines:
                command += f"\n{part}"
                if part == found[1]:
                    break
    yield Step(command, "\n".join(output).rstrip(), runs=True)


def matches(expected: str, printed: str) -> bool:
    """Return whether a command has printed what the page shows."""
    pattern = ".*".join(re.escape(part) for part in expected.split("…"))
    return re.fullmatch(pattern, printed) is not None


class Terminal:
    """A shell in ``directory`` that ends, with all that it started, at the end of the block.

    ``base_port``: stands for port 8090 of the page, and the next two for the ports after it.
    """

    def __init__(self, directory: Path, base_port: int) -> None:
        self._base_port = base_port
        self._output = directory / "output"
        programs = directory / "bin"
        programs.mkdir()
        (programs / "causeway").write_text(f'#!/bin/sh\nexec "{sys.executable}" "{MANAGE}" "$@"\n')
        (programs / "causeway").chmod(0o755)
        # The Python of the page, with the client installed.
        (programs / "python3").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "python3").chmod(0o755)
        # What a checkout has after `make run`.
        (directory / "manage.py").symlink_to(MANAGE)
        python = directory / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        with self._output.open("wb") as output:
            self._shell = subprocess.Popen(
                ["bash", "--norc"],
                cwd=directory,
                env={**_clean(os.environ), "PATH": f"{programs}:{os.environ['PATH']}", "NO_PROXY": "*"},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.killpg(self._shell.pid, signal.SIGKILL)
        self._shell.communicate()

    def type(self, step: Step) -> None:
        """Type the command of a step, and check what it prints."""
        assert self._shell.stdin is not None
        start = self._output.stat().st_size
        self._shell.stdin.write(f"{self._with_ports(step.command)}\nprintf '\\n%s\\n' '{DONE}'\n".encode())
        self._shell.stdin.flush()

        def printed() -> str:
            return self._output.read_bytes()[start:].decode()

        wait_until(lambda: DONE in printed(), timeout_s=30, what=printed)
        shown = printed().partition(DONE)[0].replace("\r\n", "\n").strip()  # HTTP's line breaks look the same.
        expected = self._with_ports(step.expected)
        assert matches(expected, shown), f"$ {step.command}\nshould print\n{expected}\nand prints\n{shown}"

    def _with_ports(self, text: str) -> str:
        return re.sub(r"\b809[012]\b", lambda port: str(self._base_port + int(port[0]) - 8090), text)


def _clean(environ: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in environ.items() if not name.startswith(("KV_", "VIEW", "SOCKET_"))}
