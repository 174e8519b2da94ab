"""deploy/systemd: the unit starts a replica with the files that docs/secured-cluster.md makes for it."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path
from typing import Final

from kvsite.config import SETTINGS, Config
from kvsite.server import check_access
from store.secret_files import FILE_SUFFIX
from tests.support.walkthrough import BLOCK
from tools.paths import REPOSITORY

UNIT: Final = REPOSITORY / "deploy" / "systemd" / "causeway.service"
PAGE: Final = REPOSITORY / "docs" / "secured-cluster.md"
ETC: Final = "/etc/causeway"


def unit() -> dict[str, list[str]]:
    """Return name -> values of the section that describes the service."""
    found = defaultdict[str, list[str]](list)
    for line in UNIT.read_text("utf-8").partition("[Service]\n")[2].partition("\n[")[0].splitlines():
        if line and not line.startswith("#"):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def blocks(language: str) -> list[str]:
    return [block for found, block in BLOCK.findall(PAGE.read_text("utf-8")) if found == language]


def environment_file(directory: Path) -> dict[str, str]:
    """Type the commands of the page that make the file, and read it as systemd does."""
    typed = re.findall(
        r"^\$ (cat >>? causeway.env <<EOF\n.*?^EOF)$", "".join(blocks("console")), re.MULTILINE | re.DOTALL
    )
    (installing,) = blocks("bash")
    typed += re.findall(r"^(?:grep -v [^\n]*|cat >> .*?^EOF)$", installing, re.MULTILINE | re.DOTALL)
    assert len(typed) == 4
    script = "\n".join(typed).replace(ETC, str(directory))
    subprocess.run(["sh", "-eu"], input=script, text=True, cwd=directory, check=True, timeout=60)
    lines = (directory / "environment").read_text("utf-8").splitlines()
    assert all(re.fullmatch(r"[A-Z_]+='[^']+'", line) for line in lines), "a shell that reads it needs the quotes"
    return dict("".join(shlex.split(line)).split("=", 1) for line in lines)


def credentials(directory: Path) -> dict[str, str]:
    """Put files in the places of the credentials. Return the variables that the unit sets."""
    for value in unit()["LoadCredential"]:
        name, _, path = value.partition(":")
        assert path == f"{ETC}/{name}"
        (directory / name).write_text("PEM", "utf-8")
    return dict(value.replace("%d", str(directory)).split("=", 1) for value in unit()["Environment"])


def test_a_replica_starts_with_the_files_of_the_page(tmp_path: Path) -> None:
    of_file, of_unit = environment_file(tmp_path), credentials(tmp_path)
    assert unit()["EnvironmentFile"] == [f"{ETC}/environment"]
    assert not of_file.keys() & of_unit.keys(), "the values of the file would take precedence"
    config = Config.from_env({**of_unit, **of_file})
    check_access(config, config.listen[0])
    assert {token.name for token in config.api_tokens} == {"app", "prometheus"}
    assert config.cluster_secret
    assert config.admin_password
    assert None not in (config.tls_cert, config.tls_key, config.tls_ca)
    assert config.names_peers


def test_the_unit_and_the_file_set_each_secret_in_one_way(tmp_path: Path) -> None:
    of_file, of_unit = environment_file(tmp_path), credentials(tmp_path)
    for setting in SETTINGS:
        ways = {setting.variable, setting.variable + FILE_SUFFIX} & (of_file.keys() | of_unit.keys())
        assert len(ways) <= 1


def test_the_user_of_the_service_reads_credentials_and_writes_its_log_directory() -> None:
    """DynamicUser cannot read what only root can, and with ProtectSystem=strict it can write nowhere else."""
    service, (installing,) = unit(), blocks("bash")
    assert service["DynamicUser"] == ["yes"]
    assert service["ProtectSystem"] == ["strict"]
    for value in service["Environment"]:
        assert re.fullmatch(r"KV_\w+=%d/[\w.]+", value), "a path below /etc/causeway cannot be read"
        assert value.partition("%d/")[2] in {each.partition(":")[0] for each in service["LoadCredential"]}
    names = [each.partition(":")[0] for each in service["LoadCredential"]]
    assert re.search(r"^install -m 600 (.*) /etc/causeway/$", installing, re.MULTILINE)[1].split() == names  # type: ignore[index]
    (directory,) = service["LogsDirectory"]
    assert f"KV_AUDIT_LOG='/var/log/{directory}/audit.log'" in PAGE.read_text("utf-8")
