"""JSON and YAML that people and other programs wrote, read into typed models; every fault is one line."""

from __future__ import annotations

import json
import re
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from foretune.storage.display import one_line
from foretune.storage.errors import BadInput, parser_line
from foretune.storage.yaml_texts import parse_yaml

Model = TypeVar("Model", bound=BaseModel)

_HALF = re.compile("[\ud800-\udfff]")


def yaml_mapping(data: bytes | str, where: str, remedy: str) -> dict[str, Any]:
    """A YAML file that holds a mapping; BadInput, with `remedy`, for anything else."""
    content = yaml_value(data, where)
    if not isinstance(content, dict):
        raise BadInput(f"{where}: the file holds no mapping; {remedy}")
    return content


def yaml_value(data: bytes | str, where: str) -> Any:
    """The value of a YAML text. BadInput for what is no YAML, nests too deep, repeats itself without end, or holds
    text that is none."""
    try:
        content = parse_yaml(data)
    except yaml.YAMLError as error:
        raise BadInput(f"{where}: not valid YAML ({one_line(parser_line(error), 300)}); mend the file") from None
    except (ValueError, OverflowError, TypeError) as error:  # bytes that are no text
        raise BadInput(f"{where}: not valid YAML ({one_line(parser_line(error), 300)}); mend the file") from None
    fault = _fault_of(content)
    if fault:
        raise BadInput(f"{where}: {fault}; mend the file")
    return content


def _fault_of(content: Any) -> str | None:
    """Why a value is none that a person would write."""
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str) and _HALF.search(value):
            return f"{one_line(value, 60)!r} holds half of a surrogate pair, which is no text"
        if isinstance(value, dict):
            waiting += [part for pair in value.items() for part in pair]
        elif isinstance(value, list | tuple | set):
            waiting += value
    return None


def json_value(data: bytes, where: str, remedy: str) -> Any:
    """The value of a JSON file; BadInput, with `remedy`, for what is none or nests too deep."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: not valid JSON ({one_line(parser_line(error), 300)}); {remedy}") from error


def json_object(data: bytes, where: str, model: type[BaseModel], remedy: str) -> dict[str, Any]:
    """A JSON object as it is stored, once `model` has found every field that is read to be of its type."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{where}: unreadable ({one_line(parser_line(error), 300)}); {remedy}") from error
    if not isinstance(value, dict):
        raise BadInput(f"{where}: not a JSON object; {remedy}")
    try:
        model.model_validate(value, strict=True)
    except ValidationError as error:
        raise BadInput(f"{where}: unreadable ({first_fault(error)}); {remedy}") from error
    except RecursionError as error:
        raise BadInput(f"{where}: unreadable (nested too deep); {remedy}") from error
    return value


def first_fault(error: ValidationError) -> str:
    """The first fault with its place, as in `artifacts.samples.uri: Field required`."""
    fault = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(str(part) for part in fault["loc"]) or "the file"
    return one_line(f"{place}: {fault['msg'].removeprefix('Value error, ')}", 300)
