"""The form of a deployment: in the order of the settings, whatever the database does to it, and each one explained."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from foretune.flows.compare import compare
from foretune.flows.request import parse_request
from foretune.flows.simulate import simulate
from foretune.flows.vet import vet

FORMS = {flow.name: flow.parameters.model_dump_for_openapi() for flow in (simulate, vet)}


def sections(form: dict[str, Any], name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every model of a form by its path, as the UI opens them."""

    def opened(schema: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
        for part in (schema, *schema.get("anyOf", []), schema.get("items", {})):
            model = form["definitions"][part["$ref"].rsplit("/", 1)[-1]] if "$ref" in part else part
            if "properties" in model:
                part = f"{path}: {model['title']}" if model is part else path
                yield part, model
                for field, inner in model["properties"].items():
                    yield from opened(inner, f"{part}.{field}")

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
        assert shown(again) == shown(declared), path
        if path != "request":
            assert shown(again) == sorted(declared["properties"], key=lambda name: name == "version"), path


def test_the_request_begins_with_what_one_has_to_give():
    [(_, request), *_] = sections(FORMS["foretune-simulate"], "request")
    assert shown(request)[:7] == ["name", "dataset", "model", "sae", "adapter", "training", "runtime"]
    assert shown(request)[-1] == "version"


def first_part(schema: dict[str, Any], form: dict[str, Any]) -> dict[str, Any]:
    """What the UI shows of a property without a value: the first part of `anyOf`, unless a default fits another."""
    if "$ref" in schema:
        return form["definitions"][schema["$ref"].rsplit("/", 1)[-1]]
    if "default" in schema and schema["default"] is None:
        return {"type": "null"}
    return schema.get("anyOf", [schema])[0]


def test_a_form_shows_the_settings_that_people_change_and_folds_the_rest():
    form = FORMS["foretune-simulate"]
    [(_, request), *_] = sections(form, "request")
    first = {name: first_part(request["properties"][name], form) for name in shown(request)}
    open_sections = {name: shown(part) for name, part in first.items() if "properties" in part}
    assert open_sections == {
        "dataset": ["path", "heldout", "max_length"],
        "model": ["name_or_path"],
        "adapter": ["r", "target_modules"],
        "training": ["learning_rate", "epochs", "batch_size"],
        "runtime": ["root"],
    }
    folded = [name for name, part in first.items() if part.get("type") == "null"]
    assert len(folded) == len(first) - len(open_sections) - 2, "all but these, the version and the list of more SAEs"
    for name in open_sections:
        assert "default" not in request["properties"][name], "else every setting is filled in, and all are shown"


def test_what_a_form_sends_for_folded_sections_is_a_request_with_their_defaults():
    from prefect.utilities.schema_tools import validate

    content = {"dataset": {"path": "rows.jsonl"}, "model": {"name_or_path": "m"}}
    sent = {**content, "landscape": None, "prediction": None, "shards": None, "sae": None}
    validate({"request": sent}, FORMS["foretune-simulate"], raise_on_error=True)
    assert parse_request(sent) == parse_request(content)


def test_every_value_that_a_deployment_has_stored_is_a_value_of_the_form():
    from prefect.utilities.schema_tools import validate

    content = {"dataset": {"path": "rows.jsonl"}, "model": {"name_or_path": "m"}, "sae": {"path": "sae"}}
    complete = parse_request(content).model_dump(mode="json")
    for stored in (content, complete, {**content, "prediction": {"along": "latest"}, "training": {"seed": 3}}):
        validate({"request": stored}, FORMS["foretune-simulate"], raise_on_error=True)


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


@pytest.mark.parametrize(
    "entry",
    [
        {"formatting": "sharegpt", "columns": {"messages": "talk"}, "tags": {"role_tag": "who"}, "file_name": "x.json"},
        {"type": "chat_template", "field_messages": "talk", "message_field_role": "who"},
    ],
)
def test_an_entry_of_another_trainer_means_the_same_through_a_deployment_as_in_a_file(entry):
    from prefect.utilities.schema_tools import ValidationError, validate

    form = FORMS["foretune-simulate"]
    request = {"dataset": {"path": "rows.jsonl", "columns": entry}, "model": {"name_or_path": "m"}}
    validate({"request": request}, form, raise_on_error=True)
    through = simulate.validate_parameters({"request": json.loads(json.dumps(request)), "run_id": None})["request"]
    assert through == parse_request(request) and through.dataset.columns.messages == "talk"
    request["dataset"]["columns"] = {"mesages": "talk"}
    with pytest.raises(ValidationError, match="mesages"):
        validate({"request": request}, form, raise_on_error=True)


def test_what_a_file_may_not_say_a_deployment_may_not_either():
    from prefect.utilities.schema_tools import ValidationError, validate

    content = {"dataset": {"path": "rows.jsonl"}, "model": {"name_or_path": "m"}}
    for wrong, place in (({"warmup_steps": -1}, "request.training"), ({"warm_up_steps": 2}, "'warm_up_steps'"),
                         ({"learning_rate": -1}, "request.training.learning_rate"), ({"r": 0}, "'r'")):  # fmt: skip
        with pytest.raises(ValidationError, match=place):
            validate({"request": {**content, "training": wrong}}, FORMS["foretune-simulate"], raise_on_error=True)


def test_the_form_of_a_comparison_says_how_a_run_is_named():
    from prefect.utilities.schema_tools import ValidationError, validate

    form = compare.parameters.model_dump_for_openapi()
    for name in ("run_a", "run_b"):
        assert "name of a request" in form["properties"]["run_a"]["description"]
        assert "latest" in form["properties"][name]["examples"]
    assert shown(form) == ["run_a", "run_b", "root"]
    validate({"run_a": "helpdesk"}, form, raise_on_error=True)
    with pytest.raises(ValidationError, match="run_a"):
        validate({"run_a": ""}, form, raise_on_error=True)


def test_a_section_is_explained_in_one_line_without_names_of_the_code():
    request = next(model for path, model in sections(FORMS["foretune-simulate"], "request"))
    said = {name: section.get("description", "") for name, section in request["properties"].items()}
    assert {name: words for name, words in said.items() if "\n" in words or "`" in words} == {}
