"""Every container that a file of deployments/ starts is confined, and every API asks who is there.

The walk knows four forms: pods of Kubernetes, services of compose, containers of the Docker pool, Ray's. What names an
image in any other form fails, so that a new file or a new kind of container cannot go unnoticed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deployments.team import PROJECT

FOLDER = PROJECT / "deployments"
FILES = sorted(path for kind in ("yaml", "yml", "json") for path in FOLDER.rglob(f"*.{kind}"))
POD_LISTS = ("containers", "initContainers", "ephemeralContainers")
SWITCH = "FORETUNE_FORBID_REMOTE_CODE"
AUTHENTICATION = "PREFECT_API_AUTH_STRING"


def documents(path: Path) -> list[Any]:
    text = path.read_text()
    return [json.loads(text)] if path.suffix == ".json" else list(yaml.safe_load_all(text))


def mappings(value: Any) -> Iterator[dict[str, Any]]:
    """Every mapping at any depth, the value itself first."""
    if isinstance(value, dict):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from mappings(inner)


def pods(document: Any) -> list[dict[str, Any]]:
    return [each for each in mappings(document) if any(isinstance(each.get(name), list) for name in POD_LISTS)]


def of_pod(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [container for name in POD_LISTS for container in pod.get(name, [])]


def services(document: Any) -> dict[str, dict[str, Any]]:
    return document.get("services", {}) if isinstance(document, dict) else {}


def docker_jobs(document: Any) -> list[dict[str, Any]]:
    """Job configurations of the Docker worker: those with an image that are no pod's."""
    found = [each["job_configuration"] for each in mappings(document) if "job_configuration" in each]
    return [job for job in found if "image" in job]


def ray_clusters(document: Any) -> list[dict[str, Any]]:
    return [document["docker"]] if isinstance(document, dict) and "run_options" in document.get("docker", {}) else []


def of_image(value: dict[str, Any]) -> bool:
    """Whether this mapping starts a container; a form's field called image, of a pool's variables, does not."""
    return isinstance(value.get("image"), str)


EVERY = [pytest.param(path, document, id=path.name) for path in FILES for document in documents(path)]


@pytest.mark.parametrize(("path", "document"), EVERY)
def test_whatever_names_an_image_is_a_container_that_is_looked_at(path, document):
    known = [*(c for pod in pods(document) for c in of_pod(pod)), *services(document).values()]
    known += [*docker_jobs(document), *ray_clusters(document)]
    templates = [each for name, each in document.items() if name.startswith("x-")] if services(document) else []
    for each in mappings(document):
        assert not of_image(each) or any(each is one for one in [*known, *templates]), (path, each)


@pytest.mark.parametrize(("path", "document"), EVERY)
def test_every_pod_and_its_containers_are_confined(path, document):
    for pod in pods(document):
        around = pod.get("securityContext", {})
        assert around.get("runAsNonRoot") is True and around.get("runAsUser", 0) > 0, path
        assert around.get("seccompProfile") == {"type": "RuntimeDefault"}, path
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod), path
        assert not any("hostPath" in volume for volume in pod.get("volumes", [])), path
        for container in of_pod(pod):
            inside = container.get("securityContext", {})
            assert inside.get("allowPrivilegeEscalation") is False, (path, container["name"])
            assert inside.get("readOnlyRootFilesystem") is True, (path, container["name"])
            assert inside.get("capabilities") == {"drop": ["ALL"]}, (path, container["name"])
            assert not {"privileged", "runAsUser", "runAsNonRoot", "seccompProfile"} & set(inside)
            assert "/tmp" in [mount["mountPath"] for mount in container["volumeMounts"]], (path, container["name"])


@pytest.mark.parametrize(("path", "document"), EVERY)
def test_every_service_of_compose_is_confined(path, document):
    for name, service in services(document).items():
        assert service.get("read_only") is True, name
        assert service.get("cap_drop") == ["ALL"] and "cap_add" not in service, name
        assert service.get("security_opt") == ["no-new-privileges:true"], name
        assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", service.get("user", "")), name
        assert not service.get("privileged") and "network_mode" not in service, name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", [])), name
        volumes = service.get("volumes", [])
        assert any(each == "/tmp" for each in [*service.get("tmpfs", []), *(v.split(":")[1] for v in volumes)]), name
        assert all(volume.endswith(":ro") for volume in volumes if volume.startswith((".", "/"))), name


@pytest.mark.parametrize(("path", "document"), EVERY)
def test_every_container_of_a_docker_pool_and_of_ray_is_confined(path, document):
    for job in docker_jobs(document):
        assert job["privileged"] is False
        assert job["container_create_kwargs"] == {
            "user": "10001:10001",
            "read_only": True,
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
        }, "a template in any of these would be for the one who starts a run to fill in"
        assert any(v.endswith(":/tmp") for v in document["variables"]["properties"]["volumes"]["default"])
    for docker in ray_clusters(document):
        options = docker["run_options"]
        assert {"--user=10001:10001", "--read-only", "--cap-drop=ALL"} <= set(options)
        assert "--security-opt=no-new-privileges:true" in options
        assert any(option.startswith("--tmpfs=/tmp") for option in options)
        assert not any("privileged" in o and not o.endswith("no-new-privileges:true") for o in options)
        assert {f"-e {SWITCH}=1", f"-e {AUTHENTICATION}"} <= set(options)


@pytest.mark.parametrize("path", sorted((FOLDER / "pools").glob("*.json")), ids=lambda path: path.stem)
def test_every_pool_forbids_code_that_comes_with_a_model(path):
    pool = json.loads(path.read_text())
    assert pool["variables"]["properties"]["env"]["default"] == {SWITCH: "1"}
    assert pool["job_configuration"]["env"] == "{{ env }}"


def test_every_deployment_worker_and_image_forbids_code_that_comes_with_a_model():
    for deployment in yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]:
        assert deployment["work_pool"]["job_variables"]["env"][SWITCH] == "1", deployment["name"]
    [compose] = documents(FOLDER / "compose.yaml")
    assert compose["services"]["worker"]["environment"][SWITCH] == "1"
    [container] = [c for d in documents(FOLDER / "kubernetes" / "worker.yaml") for pod in pods(d) for c in of_pod(pod)]
    assert {"name": SWITCH, "value": "1"} in container["env"]
    assert f"{SWITCH}=1" in (FOLDER / "Dockerfile").read_text()


def environments() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name -> variables of every server and worker of Prefect, secrets as they are referred to."""
    [compose] = documents(FOLDER / "compose.yaml")
    for name in ("server", "worker"):
        yield f"compose {name}", compose["services"][name]["environment"]
    for name in ("server", "worker"):
        for document in documents(FOLDER / "kubernetes" / f"{name}.yaml"):
            for container in (c for pod in pods(document) for c in of_pod(pod)):
                yield f"kubernetes {name}", {e["name"]: e.get("value", e.get("valueFrom")) for e in container["env"]}


def secret(value: Any) -> bool:
    """Whether a value comes from elsewhere: a key of a secret, or a variable of the shell without a default."""
    return (isinstance(value, dict) and "secretKeyRef" in value) or bool(
        re.fullmatch(r"\$\{\w+(:\?[^}]*)?\}", str(value))
    )


def test_every_server_asks_who_is_there_and_every_worker_says_it():
    seen = dict(environments())
    assert len(seen) == 4
    for name, variables in seen.items():
        assert secret(variables[AUTHENTICATION]), name
        if "server" in name:
            assert secret(variables["PREFECT_SERVER_API_AUTH_STRING"]), name
            assert variables["PREFECT_SERVER_CSRF_PROTECTION_ENABLED"] == "true", name
            assert variables["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].startswith("http://localhost:"), name
    worker = seen["kubernetes worker"]
    assert worker["PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_NAME"] == "foretune-api"
    assert worker["PREFECT_INTEGRATIONS_KUBERNETES_WORKER_API_AUTH_STRING_SECRET_KEY"] == "auth-string"


def test_every_pod_is_met_by_a_policy_that_lets_nobody_in_but_the_servers_clients():
    policies = documents(FOLDER / "kubernetes" / "network.yaml")
    met = {policy["spec"]["podSelector"]["matchLabels"]["app"]: policy["spec"] for policy in policies}
    templates = [each for path in FILES for document in documents(path) for each in mappings(document)]
    labels = {
        t["metadata"]["labels"]["app"]
        for t in templates
        if pods(t.get("spec"))
        and "labels" in t["metadata"]
        and isinstance(t["metadata"]["labels"], dict)
        and "containers" in t["spec"]
    }
    assert labels == set(met) == {"foretune-server", "foretune-worker", "foretune-job"}
    for app, spec in met.items():
        assert spec["policyTypes"] == ["Ingress", "Egress"], app
        assert all(rule.get("from") for rule in spec["ingress"]) and (app == "foretune-server") == bool(spec["ingress"])
