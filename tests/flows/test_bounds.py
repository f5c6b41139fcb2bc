"""No number of a request is without a bound, and what would cost beyond measure is refused before it is computed."""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import annotated_types
import pydantic
import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from foretune.flows.commands.plan import make_plan
from foretune.flows.gate import Gate
from foretune.flows.request import Request, load_request
from foretune.storage.errors import BadInput


def models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from models(field.annotation)
    for inner in typing.get_args(annotation):
        yield from models(inner)


def numbers(annotation: Any, metadata: list[Any]) -> Iterator[tuple[type, list[Any]]]:
    """Every int and float that an annotation allows, with the constraints that hold for it."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        own = [m for each in inner[1:] for m in (each.metadata if isinstance(each, FieldInfo) else [each])]
        yield from numbers(inner[0], [*metadata, *own])
    elif annotation in (int, float):
        yield annotation, metadata
    elif origin is not typing.Literal:
        for each in inner:
            yield from numbers(each, metadata)


MODELS = sorted({*models(Request), *models(Gate)}, key=lambda model: model.__qualname__)
NUMBERS = [
    pytest.param(model, name, bounds, id=f"{model.__name__}.{name}")
    for model in MODELS
    for name, field in model.model_fields.items()
    for _, bounds in numbers(field.annotation, field.metadata)
]


def limit(bounds: list[Any], *names: str) -> float:
    return next(getattr(b, n) for b in bounds for n in names if hasattr(b, n))


@pytest.mark.parametrize(("model", "name", "bounds"), NUMBERS)
def test_every_number_has_finite_bounds(model: type[BaseModel], name: str, bounds: list[Any]):
    kept = [b for b in bounds if isinstance(b, annotated_types.BaseMetadata)]
    assert math.isfinite(limit(kept, "ge", "gt")) and math.isfinite(limit(kept, "le", "lt"))
    for value in (math.inf, -math.inf, math.nan, 1e300, -1e300, 10**400):
        with pytest.raises(pydantic.ValidationError) as refused:
            model.model_validate({name: value})
        assert any(error["loc"][0] == name for error in refused.value.errors())


@pytest.mark.parametrize("model", MODELS)
def test_every_list_has_a_longest(model: type[BaseModel]):
    for name, field in model.model_fields.items():
        if list in {typing.get_origin(a) for a in (field.annotation, *typing.get_args(field.annotation))}:
            assert any(isinstance(m, annotated_types.MaxLen) for m in field.metadata), name


@pytest.mark.parametrize(
    "setting",
    [
        "training.epochs=1000",
        "adapter.r=4096",
        "dataset.max_length=1000000",
        "training.max_grad_norm=1e9",
        "influence.replays.runs=1024",
        "training.batch_size=4096",
    ],
)
@pytest.mark.slow
def test_what_people_really_train_is_within_the_bounds(tiny_request: Path, setting: str):
    make_plan(load_request(str(tiny_request), [setting]))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["training.epochs=100000", "runtime.max_steps=1000"], r"epochs 100000 over 18 rows are .* raise that setting"),
        (["influence.replays.runs=1000000"], r"influence.replays are 1,000,000 runs .* more than runtime.max_steps"),
        (
            ["runtime.max_dataset_gb=1e-7"],
            r"train.jsonl: 0.0 GB, more than runtime.max_dataset_gb .* sample of its rows",
        ),
        (["runtime.max_attention_gb=1e-6"], r"the longest row has .* eager attention .* lower dataset.max_length"),
    ],
)
def test_what_costs_beyond_measure_is_refused_with_the_setting_that_allows_it(tiny_request, settings, said):
    with pytest.raises(BadInput, match=said):
        make_plan(load_request(str(tiny_request), settings))


LISTS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 10))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LISTS, "more than 100,000 values once its aliases are written out"),
        (LISTS.replace("[", "{k: [").replace("]", "]}"), "more than 100,000 values"),
        ("dataset: &a {path: x, b: *a}\n", "an alias stands inside of what it names"),
        ("a: " + "[" * 100_000, "more than 50 levels deep"),
        ("training: {epochs: " + "9" * 100_000 + "}", "Exceeds the limit"),
        ("a: [" + "m, " * 10**6 + "]", "a request has 1 MB at most"),
    ],
)
def test_yaml_that_would_not_end_is_one_line(tmp_path: Path, text: str, said: str):
    (tmp_path / "request.yaml").write_text(text)
    with pytest.raises(BadInput, match=said):
        load_request(str(tmp_path / "request.yaml"))
