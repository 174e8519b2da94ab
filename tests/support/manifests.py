"""The resources in deploy/kubernetes, merged as kustomize merges them, and what a pod's replica gets of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from tools.paths import REPOSITORY

MANIFESTS = REPOSITORY / "deploy" / "kubernetes"
BASE, COMPONENTS, EXAMPLE = MANIFESTS / "base", MANIFESTS / "components", MANIFESTS / "overlays" / "example"

Resource = dict[str, Any]


def read(path: Path) -> list[Resource]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def kustomizations() -> list[Path]:
    return sorted(MANIFESTS.rglob("kustomization.yaml"))


def named(kustomization: Path, *fields: str) -> Iterator[Path]:
    """Return the paths of the files and directories that a kustomization lists in ``fields``."""
    content = read(kustomization)[0]
    for name in fields:
        for item in content.get(name, []):
            yield (kustomization.parent / (item["path"] if isinstance(item, dict) else item)).resolve()


def resource_files() -> list[Path]:
    return sorted({path for each in kustomizations() for path in named(each, "resources") if path.is_file()})


def resources() -> list[Resource]:
    return [resource for path in resource_files() for resource in read(path)]


def resource_named(kind: str, name: str = "causeway") -> Resource:
    (found,) = [each for each in resources() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def merged(old: Any, new: Any) -> Any:
    """Return ``old`` with the strategic merge patch ``new``. Lists of objects are merged by their field ``name``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return {**old, **{key: merged(old[key], value) if key in old else value for key, value in new.items()}}
    if isinstance(old, list) and isinstance(new, list) and all(isinstance(each, dict) for each in [*old, *new]):
        patches = {each["name"]: each for each in new}
        kept = [merged(each, patches.pop(each["name"], {})) for each in old]
        return [*kept, *patches.values()]
    return new


def stateful_set(*patches: Path) -> Resource:
    """Return the StatefulSet with the patches in the files ``patches``."""
    made = resource_named("StatefulSet")
    for path in patches:
        (patch,) = read(path)
        assert (patch["kind"], patch["metadata"]["name"]) == ("StatefulSet", made["metadata"]["name"])
        made = merged(made, patch)
    return made


def environment(container: Resource, pod: str = "causeway-1", namespace: str = "ns") -> dict[str, str]:
    """Return the variables of a pod, with references resolved, without Secrets."""
    fields = {"metadata.name": pod, "metadata.namespace": namespace}
    found: dict[str, str] = {}
    for each in container["env"]:
        value = each["value"] if "value" in each else fields[each["valueFrom"]["fieldRef"]["fieldPath"]]
        # A variable can refer only to variables before it.
        found[each["name"]] = re.sub(r"\$\((\w+)\)", lambda match: found[match[1]], value)
    return found


def pre_stop(container: Resource) -> tuple[float, list[str]]:
    """Return what the hook does: how many seconds it sleeps, and the arguments of ``manage.py`` after that."""
    (shell, flag, script) = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (shell, flag) == ("sh", "-c")
    match = re.fullmatch(r"sleep (\d+); exec python manage\.py (.*)", script)
    assert match, script
    return int(match[1]), match[2].split()
