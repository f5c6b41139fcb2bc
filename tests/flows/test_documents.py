"""The README says what is there: every command, every option, every setting, every file of the tree."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import typer
from pydantic import BaseModel

from foretune.flows.cli import app
from foretune.flows.request import Request

PROJECT = Path(__file__).parents[2]
README = (PROJECT / "README.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_command_and_option_is_documented(name):
    assert f"`foretune {name}" in README
    options = [option for p in COMMANDS[name].params for option in p.opts if option.startswith("--")]
    missing = [option for option in options if f"`{option}" not in README]
    assert not missing


def settings(model: type[BaseModel], path: str = "") -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        if name == "version":
            continue
        inner = [t for t in (field.annotation, *getattr(field.annotation, "__args__", ())) if isinstance(t, type)]
        nested = [t for t in inner if issubclass(t, BaseModel)]
        if nested:
            found += settings(nested[0], f"{path}{name}.") if field.annotation in nested or len(inner) > 1 else []
        else:
            found.append(f"{path}{name}")
    return found


def test_every_setting_of_the_request_is_documented():
    missing = [path for path in settings(Request) if f"`{path}`" not in README]
    assert not missing


def test_the_tree_names_every_module():
    asked = ["git", "ls-files", "flows", "tasks", "storage"]
    listed = subprocess.run(asked, cwd=PROJECT, capture_output=True, text=True, check=True)
    files = [line for line in listed.stdout.splitlines() if line.endswith(".py") and "__init__" not in line]
    missing = [file for file in files if f" {Path(file).name} " not in README.replace("\n", " ")]
    assert not missing
