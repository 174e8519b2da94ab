"""``make matrix``: run the tests with each Python version that pyproject.toml names and this machine has.

Each version gets its own environment, ``.venv/matrix/<version>``, from the locked requirements. So this also shows that
the lock works for all versions. Tests that need a browser or network namespaces are left out: they depend on the
Python version no more than other tests with real replicas, and ``make test`` runs them with one version.

    python -m tools.matrix [--django SERIES] [VERSION …] [-- PYTEST_ARGUMENT …]

``--django``: install the latest release of this series of Django, such as 6.0, instead of the locked one.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from tools.paths import REPOSITORY, first_line, say

REQUIREMENTS = REPOSITORY / "requirements-dev.txt"
CLIENT = REPOSITORY / "clients" / "python" / "src"
ENVIRONMENTS = REPOSITORY / ".venv" / "matrix"
SELECTED = "not browser and not netns" + ("" if sys.platform == "linux" else " and not linux")
CLOSING_LINE = re.compile(r"=* ?(\d+ (?:passed|failed|error|deselected).* in [\d.]+s.*?) ?=*$")


class MatrixError(Exception):
    """An environment could not be created. The text is the output of pip or venv."""


def supported() -> list[str]:
    """Return the Python versions that pyproject.toml names, such as "3.11"."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = (re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", line) for line in project["classifiers"])
    return [match[1] for match in found if match]


def candidates(version: str) -> Iterator[Path]:
    """Yield paths at which Python ``version`` may be installed, the preferred one first."""
    if on_path := shutil.which(f"python{version}"):
        yield Path(on_path)
    yield from sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"), reverse=True)


def find(version: str) -> Path | None:
    """Return the path of a Python ``version`` with venv, None if there is none."""
    probe = f"import sys, venv, ensurepip; sys.exit('%d.%d' % sys.version_info[:2] != '{version}')"
    for python in candidates(version):
        # A program on PATH may be a pyenv shim without a Python behind it.
        if subprocess.run([python, "-c", probe], capture_output=True, check=False).returncode == 0:
            return python
    return None


def environment(version: str, python: Path, django: str = "") -> Path:
    """Create or update the environment of ``version``; return the path of its Python. Raises ``MatrixError``."""
    home = ENVIRONMENTS / (f"{version}-django{django}" if django else version)
    inside, marker = home / "bin" / "python", home / ".ready"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if marker.exists() and marker.read_text(encoding="ascii") == wanted:
        return inside
    install = ["--quiet", "--disable-pip-version-check", "--require-hashes", "-r", str(REQUIREMENTS)]
    for command in (
        [str(python), "-m", "venv", "--clear", str(home)],
        [str(inside), "-m", "pip", "install", *install],
        *([[str(inside), "-m", "pip", "install", "--quiet", f"Django~={django}.0"]] if django else []),
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise MatrixError((done.stderr or done.stdout).strip())
    (link,) = home.glob("lib/python*/site-packages")
    (link / "causeway-client.pth").write_text(f"{CLIENT}\n", encoding="utf-8")
    marker.write_text(wanted, encoding="ascii")
    return inside


def run_version(version: str, arguments: list[str], django: str = "") -> tuple[bool | None, str]:
    """Run the tests with ``version``. Return whether they passed (None: not run), and a summary line."""
    python = find(version)
    if python is None:
        return None, "not installed on this machine, so not tested"
    say(f"Python {version}: {python}")
    try:
        inside = environment(version, python, django)
    except MatrixError as exc:
        say(str(exc))
        return False, "the locked requirements cannot be installed"
    command = [str(inside), "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", SELECTED, *arguments]
    summary = "no output"
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as tests:
        for line in tests.stdout or ():
            say(line.rstrip("\n"))
            summary = closing[1] if (closing := CLOSING_LINE.match(line)) else summary
    return tests.returncode == 0, summary


def main(arguments: list[str]) -> int:
    """Run the matrix, print a table, and return 0 if at least one version ran and none failed."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("versions", nargs="*")
    parser.add_argument("--django", default="")
    options = parser.parse_args(arguments[:split])
    versions, for_pytest = options.versions or supported(), arguments[split + 1 :]
    if unknown := sorted(set(versions) - set(supported())):
        say(f"pyproject.toml does not name Python {', '.join(unknown)}")
        return 2
    results = {version: run_version(version, for_pytest, options.django) for version in versions}
    say("Python  result  tests")
    for version, (passed, summary) in results.items():
        say(f"{version:<8}{'-' if passed is None else 'passed' if passed else 'FAILED':<8}{summary}")
    ran = [passed for passed, _ in results.values() if passed is not None]
    return 0 if ran and all(ran) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
