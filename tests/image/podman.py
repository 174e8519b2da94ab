"""Run podman with private storage, and build a substitute for the base image on machines without a registry.

    with Podman() as podman:                   # needs root, podman and crun; removes everything at the end
        archive = base_substitute("3.12")      # needs debootstrap, and a Python 3.12 on this machine
        podman("import", archive, "python:3.12-slim")
        build(podman, "causeway", "python:3.12-slim")
        podman.once("causeway", "id")

The substitute is a minimal Debian system with the Python of this machine in /usr/local, where the real base image has
it. It differs from the real one in size, and in the releases of Debian and Python.

`make image` runs everything in a private mount namespace (``unshare --mount``).
"""

from __future__ import annotations

import ast
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tools.matrix import find
from tools.paths import REPOSITORY

CACHE = REPOSITORY / ".venv" / "image"
SYSTEM_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
CGROUPS = Path("/sys/fs/cgroup")

HARDENING = [
    "--pull=never",
    "--read-only",
    "--read-only-tmpfs=false",
    "--cap-drop=all",
    "--security-opt=no-new-privileges",
]

# The pip options that the build of the image needs. All others concern this machine only.
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "timeout", "default-timeout")


class ImageError(RuntimeError):
    """A command failed. The text is its output."""


def run(*command: str | Path, stdin: int | None = None, timeout_s: float = 600) -> str:
    """Run a command and return its standard output. Raises ``ImageError`` if it fails."""
    name = shutil.which(str(command[0]), path=SYSTEM_PATH) or str(command[0])
    words = [name, *map(str, command[1:])]
    done = subprocess.run(
        words, stdin=stdin, capture_output=True, text=True, check=False, timeout=timeout_s, env=_environment()
    )
    if done.returncode:
        raise ImageError(f"{' '.join(words)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def limits() -> list[str]:
    """Return options that give a container the resource limits of this process.

    By default podman raises the limits. That needs a capability which containers, such as a CI machine, often lack.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return [f"--ulimit=nofile={soft}:{hard}", "--ulimit=nproc=4096:4096", "--cgroups=disabled"]


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": SYSTEM_PATH}


class Podman:
    """Podman with private images and containers, in a temporary directory. Call it with command line arguments."""

    def __init__(self) -> None:
        if Path("/proc/self/ns/mnt").readlink() == Path(f"/proc/{os.getppid()}/ns/mnt").readlink():
            raise ImageError("this needs a private mount namespace: run `make image`")
        # A short path: it contains sockets, whose paths may have at most 107 characters.
        self.home = Path(tempfile.mkdtemp(prefix="cwi-"))
        places = {"--root": "root", "--runroot": "runroot", "--tmpdir": "tmp"}
        self._options = [f"{option}={self.home / name}" for option, name in places.items()]
        self._options += ["--cgroup-manager=cgroupfs", "--events-backend=file", "--runtime=crun"]
        if (CGROUPS / "unified").is_mount():
            # crun does not support both versions of control groups at once: here it finds version 2 only.
            run("mount", "-t", "cgroup2", "cgroup2", CGROUPS)

    def __call__(self, *arguments: str | Path, stdin: int | None = None, timeout_s: float = 900) -> str:
        """Run ``podman ARGUMENTS`` and return its standard output. Raises ``ImageError`` if it fails."""
        return run("podman", *self._options, *arguments, stdin=stdin, timeout_s=timeout_s)

    def code(self, *arguments: str) -> int:
        """Run ``podman ARGUMENTS`` and return its exit code."""
        command = ["podman", *self._options, *arguments]
        return subprocess.run(command, capture_output=True, check=False, timeout=60, env=_environment()).returncode

    def logs(self, name: str) -> str:
        """Return the output of the program in a container."""
        command = ["podman", *self._options, "logs", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        return done.stdout

    def inspect(self, name: str) -> dict[str, Any]:
        """Return podman's description of a container or an image."""
        found: dict[str, Any] = json.loads(self("inspect", name))[0]
        return found

    def start(self, name: str, image: str, namespace: str, environment: dict[str, str]) -> None:
        """Start a container in a network namespace, hardened as in compose.yaml and without a writable file system."""
        named = [f"--env={variable}={value}" for variable, value in environment.items()]
        place = ["--detach", f"--name={name}", f"--network=ns:/run/netns/{namespace}"]
        self("run", *place, *HARDENING, *limits(), *named, image)

    def once(self, image: str, *command: str) -> str:
        """Run a command in a temporary container, hardened like the others; return its standard output."""
        return self("run", "--rm", "--no-healthcheck", "--network=none", *HARDENING, *limits(), image, *command)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all containers and remove everything."""
        self.code("rm", "--all", "--force", "--time=0")
        mounted = [line.split()[1] for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines()]
        for place in sorted((place for place in mounted if place.startswith(f"{self.home}/")), reverse=True):
            run("umount", place)
        shutil.rmtree(self.home)


# --- The build ----------------------------------------------------------------------------------------------------


def build(podman: Podman, image: str, base: str) -> str:
    """Build the Dockerfile on ``base``. Return a text that must not appear in the image.

    The build uses the package index of this machine. The pip configuration enters the build as secrets, which contain
    the returned text.
    """
    marker = uuid.uuid4().hex
    configured = _pip_configuration()
    certificates = Path(configured.get("cert", "/etc/ssl/certs/ca-certificates.crt"))
    lines = [f"# {marker}", "[global]", "cert = /run/secrets/ca.pem"]
    lines += [f"{option} = {configured[option]}" for option in _PIP_OPTIONS if option in configured]
    pip_conf = podman.home / "pip.conf"
    pip_conf.write_text("\n".join(lines) + "\n", encoding="utf-8")
    ca = podman.home / "ca.pem"
    ca.write_text(f"# {marker}\n{certificates.read_text(encoding='utf-8')}", encoding="utf-8")
    how = ["--isolation=chroot", "--network=host", "--format=docker", "--layers=false", "--pull=never"]
    given = [f"--secret=id=pip.conf,src={pip_conf}", f"--secret=id=ca.pem,src={ca}", f"--build-arg=PYTHON={base}"]
    podman("build", *how, *given, f"--tag={image}", REPOSITORY)
    return marker


def _pip_configuration() -> dict[str, str]:
    """Return the pip options of this machine, from files and environment, without those that refer to local files."""
    found = {}
    for line in run(sys.executable, "-m", "pip", "config", "list").splitlines():
        name, _, value = line.partition("=")
        text = str(ast.literal_eval(value))
        if not text.startswith("file:"):
            found[name.rpartition(".")[2]] = text
    return found


# --- The base -----------------------------------------------------------------------------------------------------


def base_of(dockerfile: Path) -> tuple[str, str]:
    """Return the name of the base image in the Dockerfile, and its version of Python."""
    match = re.search(r"^ARG PYTHON=(\S+/python:(3\.\d+)\S*)$", dockerfile.read_text(encoding="utf-8"), re.MULTILINE)
    if match is None:
        raise ImageError("the Dockerfile has no line ARG PYTHON=…/python:3.x…")
    return match[1], match[2]


def base_substitute(version: str) -> Path:
    """Return a tar file with the file system of the substitute. It is built once and kept until `make clean`."""
    made = CACHE / f"base-{version}.tar"
    if made.exists():
        return made
    python = find(version)
    if python is None:
        raise ImageError(f"the substitute for the base image needs Python {version} with venv on this machine")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cwi-base-") as directory:
        root = Path(directory)
        release = platform.freedesktop_os_release()["VERSION_CODENAME"]
        run("debootstrap", "--variant=minbase", "--include=ca-certificates", release, root)
        for unneeded in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"):
            shutil.rmtree(root / unneeded, ignore_errors=True)
        _copy_python(python, version, root)
        part = made.with_suffix(".part")
        run("tar", "-C", root, "-cf", part, ".")
    part.rename(made)
    return made


def _copy_python(python: Path, version: str, root: Path) -> None:
    """Copy a Python of this machine and its libraries to /usr/local below ``root``."""
    prefix = Path(run(python, "-c", "import sys; print(sys.base_prefix)").strip())
    local, library = root / "usr" / "local", f"lib/python{version}"
    unneeded = shutil.ignore_patterns("site-packages", "test", "tests", "idlelib", "turtledemo", "config-*", "*.pyc")
    shutil.copytree(prefix / library, local / library, ignore=unneeded, symlinks=True, dirs_exist_ok=True)
    (local / library / "site-packages").mkdir()
    shutil.copy2((prefix / "bin" / f"python{version}").resolve(), local / "bin" / f"python{version}")
    for name in ("python", "python3"):
        (local / "bin" / name).symlink_to(f"python{version}")
    modules = (local / library / "lib-dynload").glob("*.so")
    for needed in _libraries([local / "bin" / f"python{version}", *modules]):
        # Parts of the C library are there already, and must match each other.
        if not list(root.glob(f"**/{needed.name}")):
            shutil.copy2(needed.resolve(), local / "lib" / needed.name)
    run("chroot", root, "/sbin/ldconfig")
    run("chroot", root, "/usr/local/bin/python3", "-m", "ensurepip")


def _libraries(programs: Iterable[Path]) -> set[Path]:
    """Return the shared libraries that ``programs`` use on this machine."""
    return {Path(path) for program in programs for path in re.findall(r"=> (/\S+)", run("ldd", program))}
