"""deploy/kubernetes: valid by the published schemas, complete, and consistent with the replica that it runs.

The tests check each file, and the StatefulSet of each overlay. They need no kustomize binary: they merge the patches
themselves, and leave names and images as they are in the files.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from django.urls import resolve

from kvsite.config import Config, ConfigError
from kvsite.hosts import HostCheck
from kvsite.server import STOP_TIMEOUT_S
from store.environment import settings_of
from store.settings import RequestLimits
from tests.support.manifests import (
    COMPONENTS,
    EXAMPLE,
    MANIFESTS,
    Resource,
    environment,
    kustomizations,
    merged,
    named,
    pre_stop,
    read,
    resource_files,
    resource_named,
    resources,
    stateful_set,
)
from tools.paths import REPOSITORY

OLDEST, NEWEST = "1.27", kubernetes_validate.latest_version().removesuffix(".0")
"""The oldest version is that of docs/kubernetes.md. It supports all fields that the files use by default."""

SECRETS = {setting.variable for setting in settings_of(Config) if setting.is_secret}

VARIANTS = {
    "base": (),
    "example": (EXAMPLE / "statefulset.yaml",),
    "example with TLS": (COMPONENTS / "tls" / "statefulset.yaml", EXAMPLE / "statefulset.yaml"),
}


@pytest.fixture(params=VARIANTS)
def pod(request: pytest.FixtureRequest) -> Resource:
    spec: Resource = stateful_set(*VARIANTS[request.param])["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: Resource) -> Resource:
    (made,) = pod["containers"]
    return dict(made)


def config(container: Resource, directory: Path) -> Config:
    """Return the settings of a replica in the pod. ``directory`` stands for the mounted Secret with the certificate."""
    values = {name: text for name, text in environment(container).items() if not name.startswith("POD_")}
    for name, text in values.items():
        if text.startswith("/tls/"):
            (directory / Path(text).name).touch()
            values[name] = str(directory / Path(text).name)
    return Config.from_env(values)


def mebibytes(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return int(number) * {"Mi": 1, "Gi": 1024}[unit]


# -- valid and complete ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_resource_is_valid_by_the_published_schemas(version: str) -> None:
    checked = [*resources(), *(stateful_set(*patches) for patches in VARIANTS.values())]
    assert {each["kind"] for each in checked} == {
        "Namespace",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "StatefulSet",
    }
    for resource in checked:
        assert kubernetes_validate.validate(resource, version, strict=True) == version


def test_the_schemas_would_notice_a_misspelt_field() -> None:
    wrong = merged(resource_named("StatefulSet"), {"spec": {"podManagmentPolicy": "Parallel"}})
    with pytest.raises(kubernetes_validate.ValidationError, match="podManagmentPolicy"):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


def test_kustomizations_list_every_file_and_no_file_that_is_missing() -> None:
    known = {"apiVersion", "kind", "resources", "components", "patches", "images", "replicas", "namespace"}
    used = set()
    for path in kustomizations():
        content = read(path)[0]
        assert content["kind"] == ("Component" if COMPONENTS in path.parents else "Kustomization"), path
        assert content.keys() <= known | {"secretGenerator"}, path
        for target in named(path, "resources", "components", "patches"):
            assert (target / "kustomization.yaml").is_file() if target.is_dir() else target.is_file(), target
            used.add(target)
    assert {path for path in MANIFESTS.rglob("*.yaml") if path.name != "kustomization.yaml"} <= used


def test_selectors_match_the_labels_of_the_pods() -> None:
    labels = resource_named("StatefulSet")["spec"]["template"]["metadata"]["labels"]
    text = "".join(path.read_text() for path in resource_files())
    assert set(re.findall(r"app\.kubernetes\.io/name: (\S+)", text)) == {labels["app.kubernetes.io/name"]}
    assert resource_named("StatefulSet")["spec"]["selector"]["matchLabels"] == labels
    assert resource_named("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    for service in ("causeway", "causeway-peers"):
        assert resource_named("Service", service)["spec"]["selector"] == labels


# -- right about the replica -------------------------------------------------------------------------------------------


def test_a_replica_accepts_the_environment_of_its_pod(container: Resource, tmp_path: Path) -> None:
    made = config(container, tmp_path)
    assert made.address == "causeway-1.causeway-peers.ns.svc:8090", "stable over restarts"
    assert made.listen == ("0.0.0.0", 8090)
    assert made.view_dns == "causeway-peers:8090"
    assert made.seeds == ()
    assert made.log_format == "json"
    assert container["ports"] == [{"name": "http", "containerPort": 8090}]


def test_peers_find_replicas_that_are_not_ready_and_clients_get_ready_replicas_only(container: Resource) -> None:
    peers, clients = resource_named("Service", "causeway-peers")["spec"], resource_named("Service", "causeway")["spec"]
    assert peers["clusterIP"] == "None"
    assert peers["publishNotReadyAddresses"] is True
    assert not clients.get("publishNotReadyAddresses", False)
    assert resource_named("StatefulSet")["spec"]["serviceName"] == "causeway-peers"
    assert environment(container)["KV_VIEW_DNS"] == "causeway-peers:8090"
    for service in (peers, clients):
        assert service["ports"] == [{"name": "http", "port": 8090, "targetPort": "http"}]


def test_the_hosts_of_probes_and_services_are_allowed(container: Resource, tmp_path: Path) -> None:
    check = HostCheck(config(container, tmp_path), members=lambda: ())
    for host in ("causeway", "causeway.ns", "causeway.ns.svc", "causeway.ns.svc.cluster.local"):
        assert check.allows(f"{host}:8090"), host
    assert check.allows("causeway-peers:8090"), "peers that a lookup found use this name for each other"
    for pod_ip in ("10.0.0.1:8090", "[fd00:10::1]:8090", "10.0.0.1"):
        assert check.allows(pod_ip), "the Host header of a probe or a scrape"
    assert not check.allows("rebound.example:8090")
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"].keys() <= {"path", "port", "scheme"}, "no other Host header is needed"


def test_only_the_readiness_probe_requests_readyz_and_each_path_exists(container: Resource) -> None:
    paths = {
        probe: container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")
    }
    assert paths == {"startupProbe": "/healthz", "readinessProbe": "/readyz", "livenessProbe": "/healthz"}
    for path in paths.values():
        assert resolve(path)
    serves_tls = "KV_TLS_CERT" in environment(container)
    for probe in paths:
        assert container[probe]["httpGet"].get("scheme", "HTTP") == ("HTTPS" if serves_tls else "HTTP")
        assert container[probe]["httpGet"]["port"] == "http"


def test_the_grace_period_is_long_enough_for_the_hook_and_the_drain(pod: Resource, container: Resource) -> None:
    sleep_s, arguments = pre_stop(container)
    command, no_question, option, timeout_s = arguments
    assert (command, no_question, option) == ("leave_view", "--yes", "--timeout"), "a hook has no terminal to ask on"
    start_s = 15  # starting the hook's program on a busy node, and its first requests
    assert sleep_s + start_s + int(timeout_s) + STOP_TIMEOUT_S <= pod["terminationGracePeriodSeconds"]


def test_the_memory_limit_is_above_what_clients_can_fill(container: Resource) -> None:
    """docs/kubernetes.md: limit and request are at least twice KV_MAX_MEMORY plus 256 MiB."""
    max_memory_mib = int(environment(container)["KV_MAX_MEMORY"]) >> 20
    assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
    assert mebibytes(container["resources"]["limits"]["memory"]) >= 2 * max_memory_mib + 256
    assert max_memory_mib << 20 > 10 * RequestLimits().max_body_bytes


def test_every_container_is_locked_down(pod: Resource) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001, "the user of the image (Dockerfile)"
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "variables of Services called kv… would stop the start"
    for each in [*pod["containers"], *pod["initContainers"]]:
        assert each["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert each["resources"]["requests"]["memory"]
        assert each["resources"]["limits"]["memory"]
    image = (REPOSITORY / "Dockerfile").read_text()
    assert "USER 10001:10001" in image


def test_a_pod_waits_until_the_name_of_its_peers_resolves() -> None:
    (waiting,) = resource_named("StatefulSet")["spec"]["template"]["spec"]["initContainers"]
    program = [sys.executable, *waiting["command"][1:]]
    assert waiting["command"][:2] == ["python", "-c"]
    known = subprocess.run(program, env={**os.environ, "KV_VIEW_DNS": "localhost:1"}, timeout=20, check=False)
    assert known.returncode == 0
    process = subprocess.Popen(
        program, env={**os.environ, "KV_VIEW_DNS": "no-such-name.invalid:1"}, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("no-such-name.invalid: ")
    process.terminate()
    assert process.wait(10) == 1, "the first process of a container has no default action for SIGTERM"
    process.stdout.close()


def test_the_network_policy_of_the_base_admits_replicas_and_labelled_clients_to_the_port() -> None:
    policy, labels = resource_named("NetworkPolicy"), resource_named("StatefulSet")["spec"]["selector"]["matchLabels"]
    assert "networkpolicy.yaml" in read(MANIFESTS / "base" / "kustomization.yaml")[0]["resources"]
    spec = policy["spec"]
    assert spec["podSelector"]["matchLabels"] == labels
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    client = {"matchLabels": {"causeway-client": "true"}}
    replicas = {"podSelector": {"matchLabels": labels}}
    (ingress,) = spec["ingress"]
    assert ingress["from"] == [replicas, {"podSelector": client}, {"namespaceSelector": client}]
    to_peers, to_dns = spec["egress"]
    assert to_peers["to"] == [replicas]
    for rule in (ingress, to_peers):
        assert rule["ports"] == [{"port": 8090}]
    assert to_dns == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}


def test_the_example_names_the_image_by_a_tag_and_shows_how_to_name_it_by_its_digest() -> None:
    path = EXAMPLE / "kustomization.yaml"
    (image,) = read(path)[0]["images"]
    assert image.keys() == {"name", "newName", "newTag"}
    by_digest = yaml.safe_load(
        re.sub(r"    newTag: .*\n", "", path.read_text()).replace("    # digest:", "    digest:")
    )
    assert by_digest["images"] == [{"name": "causeway", "newName": image["newName"], "digest": "sha256:…"}]


# -- secrets -----------------------------------------------------------------------------------------------------------


def test_secrets_come_from_a_file_outside_git_and_the_values_of_its_example_are_rejected() -> None:
    (generated,) = read(EXAMPLE / "kustomization.yaml")[0]["secretGenerator"]
    (container,) = resource_named("StatefulSet")["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": generated["name"]}}], "not optional"
    assert generated["envs"] == ["causeway.env"]
    assert "causeway.env" in (EXAMPLE / ".gitignore").read_text().split()
    example = (EXAMPLE / "causeway.env.example").read_text().splitlines()
    values = dict(line.split("=", 1) for line in example if line and not line.startswith("#"))
    assert {*values} == SECRETS - {"KV_CLUSTER_SECRET_ALSO"}
    for name, value in values.items():
        with pytest.raises(ConfigError, match=f"^{name}: "):
            Config.from_env({name: value})


def test_no_file_contains_a_secret() -> None:
    shipped = "".join(path.read_text() for path in MANIFESTS.rglob("*.yaml"))
    for name in SECRETS:
        assert not re.search(rf"name: {name}\b", shipped)
    assert "kind: Secret" not in shipped
