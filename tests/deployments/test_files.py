"""The files in deployments/ agree with each other, with prefect.yaml and with the package."""

from __future__ import annotations

import importlib
import json
import re

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


def test_the_image_holds_every_package_and_what_compose_and_prefect_read():
    dockerfile = (FOLDER / "Dockerfile").read_text()
    for copied in ("flows", "tasks", "storage", "prefect.yaml", "pyproject.toml", "requirements.lock"):
        assert copied in dockerfile
        assert (PROJECT / copied).exists()
