"""The files in deployments/ agree with each other, with prefect.yaml and with the package."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess

import pytest
import yaml

from tests.deployments.team import PROJECT

FOLDER = PROJECT / "deployments"
DEPLOYED = yaml.safe_load((PROJECT / "prefect.yaml").read_text())["deployments"]
POOLS = {path.stem: json.loads(path.read_text()) for path in (FOLDER / "pools").glob("*.json")}
TEMPLATES = {"foretune": "process", "foretune-docker": "docker", "foretune-gpu": "kubernetes-gpu"}


@pytest.mark.parametrize("deployment", DEPLOYED, ids=lambda deployment: deployment["name"])
def test_every_deployment_starts_a_flow_with_parameters_that_it_takes(deployment):
    from prefect.utilities.schema_tools import validate

    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    schema = flow.parameters.model_dump_for_openapi()
    validate(deployment.get("parameters", {}), schema, raise_on_error=True, ignore_required=True)
    flow.validate_parameters(
        {"run_a": "latest", **deployment.get("parameters", {})} if name == "compare" else deployment["parameters"]
    )


@pytest.mark.parametrize("deployment", DEPLOYED, ids=lambda deployment: deployment["name"])
def test_every_job_variable_is_one_of_its_pool(deployment):
    pool = deployment["work_pool"]
    known = POOLS[TEMPLATES[pool["name"]]]["variables"]["properties"]
    assert set(pool.get("job_variables", {})) <= set(known)


@pytest.mark.parametrize("name", sorted(POOLS))
def test_every_variable_of_a_pool_is_used_and_every_used_one_declared(name):
    used = set(re.findall(r"{{ (\w+) }}", json.dumps(POOLS[name]["job_configuration"])))
    assert used == set(POOLS[name]["variables"]["properties"])


def test_a_gpu_job_asks_for_its_gpu_and_carries_no_secret():
    spec = POOLS["kubernetes-gpu"]["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "{{ gpus }}"
    assert "AWS_SECRET" not in json.dumps(POOLS)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("**/*.yaml")), ids=lambda path: path.name)
def test_every_manifest_is_yaml_and_names_our_images(path):
    documents = list(yaml.safe_load_all(path.read_text()))
    assert all(documents)
    images = set(re.findall(r"image: (foretune:\w+)", path.read_text()))
    assert images <= {"foretune:cpu", "foretune:cuda"}


@pytest.mark.optional
def test_every_kubernetes_object_keeps_to_its_schema(rendered_job):
    schemas = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate")
    objects = [rendered_job]
    for path in sorted((FOLDER / "kubernetes").glob("*.yaml")):
        objects += list(yaml.safe_load_all(path.read_text()))
    for each in objects:
        schemas.validate(each, schemas.latest_version(), strict=True)
    assert {each["kind"] for each in objects} >= {
        "Job",
        "Deployment",
        "Service",
        "Role",
        "RoleBinding",
        "NetworkPolicy",
    }


@pytest.fixture
def rendered_job() -> dict:
    """The job that the GPU pool would start for the deployment simulate-gpu, as a worker renders it."""
    from prefect.utilities.templating import apply_values

    pool = POOLS["kubernetes-gpu"]
    values = {name: field.get("default") for name, field in pool["variables"]["properties"].items()}
    deployed = next(each for each in DEPLOYED if each["name"] == "simulate-gpu")
    job = apply_values(pool["job_configuration"]["job_manifest"], values | deployed["work_pool"]["job_variables"])
    container = job["spec"]["template"]["spec"]["containers"][0]
    if isinstance(container.get("env"), dict):  # Prefect's Kubernetes worker makes a list of it
        container["env"] = [{"name": name, "value": value} for name, value in container["env"].items()]
    return job


def test_the_gpu_job_is_rendered_with_the_image_and_the_environment_of_its_deployment(rendered_job):
    container = rendered_job["spec"]["template"]["spec"]["containers"][0]
    assert container["image"] == "foretune:cuda"
    assert {"name": "PREFECT_SERVER_ANALYTICS_ENABLED", "value": "false"} in container["env"]
    assert "{{" not in json.dumps(rendered_job)


@pytest.mark.optional
def test_ray_takes_its_cluster_file():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'foretune[ray]'")
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((FOLDER / "ray-cluster.yaml").read_text())))


@pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs docker-compose, not the engine")
def test_compose_takes_its_file():
    content = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    del content["name"]  # which the version of Debian's packages does not know
    done = subprocess.run(
        ["docker-compose", "-f", "-", "--project-directory", str(FOLDER), "config", "--quiet"],
        input=yaml.safe_dump(content),
        env={**os.environ, "POSTGRES_PASSWORD": "chosen", "PREFECT_API_AUTH_STRING": "user:chosen"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_image_holds_every_package_and_what_compose_and_prefect_read():
    dockerfile = (FOLDER / "Dockerfile").read_text()
    for copied in (
        "flows",
        "tasks",
        "storage",
        "prefect.yaml",
        "pyproject.toml",
        "deployments/locks/image.lock",
        "deployments/pools",
    ):
        assert copied in dockerfile
        assert (PROJECT / copied).exists()
