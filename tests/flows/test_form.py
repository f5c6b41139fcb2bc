"""The form of a deployment: in the order of the settings, whatever the database does to it, and each one explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from foretune.flows.request import parse_request
from foretune.flows.simulate import simulate
from foretune.flows.vet import vet

FORMS = {flow.name: flow.parameters.model_dump_for_openapi() for flow in (simulate, vet)}


def sections(form: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every model of a form by its path, as the UI opens them."""

    def opened(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for part in (schema, *schema.get("anyOf", []), schema.get("items", {})):
            if "$ref" in part:
                model = form["definitions"][part["$ref"].rsplit("/", 1)[-1]]
                yield path, model
                for field, inner in model.get("properties", {}).items():
                    yield from opened(inner, f"{path}.{field}")

    yield from opened(form["properties"][name], name)


def as_postgres_keeps_it(value: Any) -> Any:
    """Keys by length, then by bytes: what `jsonb` does to an object."""
    if isinstance(value, list):
        return [as_postgres_keeps_it(item) for item in value]
    if isinstance(value, dict):
        return {key: as_postgres_keeps_it(value[key]) for key in sorted(value, key=lambda key: (len(key), key))}
    return value


def shown(model: dict[str, Any]) -> list[str]:
    """Names in the order in which the UI shows them."""
    properties = model["properties"]
    return sorted(properties, key=lambda name: properties[name].get("position", float("inf")))


@pytest.mark.parametrize("flow", sorted(FORMS))
def test_a_form_keeps_its_order_on_postgres(flow):
    kept = as_postgres_keeps_it(FORMS[flow])
    assert json.dumps(kept) != json.dumps(FORMS[flow])
    for path, declared in sections(FORMS[flow], "request"):
        again = next(model for other, model in sections(kept, "request") if other == path)
        assert shown(again) == sorted(declared["properties"], key=lambda name: name == "version"), path


def test_the_request_begins_with_what_one_has_to_give():
    [(_, request), *_] = sections(FORMS["foretune-simulate"], "request")
    assert shown(request)[:6] == ["name", "dataset", "model", "sae", "adapter", "training"]
    assert shown(request)[-1] == "version"


@pytest.mark.parametrize("flow", sorted(FORMS))
def test_every_setting_has_a_title_of_its_own(flow):
    for name in {"request", "gate"} & set(FORMS[flow]["properties"]):
        for path, model in sections(FORMS[flow], name):
            for field, shown_as in model["properties"].items():
                assert shown_as.get("title") or "$ref" in shown_as, f"{path}.{field}"


@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({"warmup_steps": 2}, 2),
        ({"warmup_steps": 2, "warmup_ratio": 0.5}, 2),
        ({"warmup_steps": 0.1}, 2),
        ({"warmup_steps": None, "warmup_ratio": 0.25}, 5),
        ({"warmup_ratio": 3}, 3),
    ],
)
def test_a_warm_up_means_the_same_through_a_deployment_as_in_a_file(training, steps):
    from prefect.utilities.schema_tools import validate

    content = {"dataset": {"path": "rows.jsonl"}, "model": {"name_or_path": "m"}}
    request = {**content, "training": {"epochs": 1, "batch_size": 1, **training}}
    validate({"request": request}, FORMS["foretune-simulate"], raise_on_error=True)
    through = simulate.validate_parameters({"request": json.loads(json.dumps(request)), "run_id": None})["request"]
    assert through == parse_request(request)
    assert through.training.warmup_steps(rows=20) == steps


def test_what_a_file_may_not_say_a_deployment_may_not_either():
    from prefect.utilities.schema_tools import ValidationError, validate

    content = {"dataset": {"path": "rows.jsonl"}, "model": {"name_or_path": "m"}}
    for wrong in ({"warmup_steps": -1}, {"warm_up_steps": 2}):
        with pytest.raises(ValidationError):
            validate({"request": {**content, "training": wrong}}, FORMS["foretune-simulate"], raise_on_error=True)
