"""The example of docs/feeds.md: every command of it is run, in order, and prints what the page says."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ports import free_ports
from tools.paths import REPOSITORY

pytestmark = pytest.mark.processes

PAGE = REPOSITORY / "docs" / "feeds.md"
BLOCK = re.compile(r"^```(console|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)
END = "--- the end of a command ---"


def commands(text: str) -> list[tuple[str, str]]:
    """Return each command of the page with its output, and Python programs as commands that save them."""
    found = []
    for language, block in BLOCK.findall(text):
        if language == "python":
            found.append((f"cat >follow.py <<'PROGRAM'\n{block}PROGRAM", ""))
            continue
        for command in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = command.partition("\n")
            found.append((line, output))
    return found


def plain(output: str) -> str:
    """Return an output without what differs from run to run: incarnations, tokens, and messages of the shell."""
    output = re.sub(r"@[0-9a-f]{16}", "@incarnation", output)
    output = re.sub(r"\beJ[\w-]+…?", "token", output)
    lines = [line for line in output.splitlines() if not re.match(r"\[\d+\]|.*\bKilled\b|.*\bTerminated\b", line)]
    return "\n".join(lines).strip()


def test_every_command_of_the_page_prints_what_the_page_says(tmp_path: Path) -> None:
    first_port = free_ports(2)
    listed = commands(PAGE.read_text("utf-8"))
    assert len(listed) >= 18
    script = "\n".join(f"{command}\necho; echo '{END}'" for command, _ in listed)
    for number, port in enumerate(("8090", "8091")):
        script = script.replace(port, str(first_port + number))
    script = script.replace("manage.py", str(REPOSITORY / "manage.py")).replace("PYTHONPATH=.", "PYTHONPATH=$HERE")
    script = script.replace(".venv/bin/python", "$PYTHON")
    program = tmp_path / "page.sh"
    program.write_text(f"{script}\n", encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("KV_")}
    environment |= {"PYTHON": sys.executable, "HERE": str(REPOSITORY)}
    process = subprocess.Popen(
        ["bash", str(program)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Also what a failed command has left behind.
        process.communicate()
    printed = stdout.replace(str(first_port), "8090").replace(str(first_port + 1), "8091").split(END)[:-1]
    assert len(printed) == len(listed), stdout + stderr
    said = [f"$ {command}\n{plain(output)}" for command, output in listed]
    assert [f"$ {command}\n{plain(output)}" for (command, _), output in zip(listed, printed, strict=True)] == said
