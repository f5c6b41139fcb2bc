"""The numbers of every pass on the tiny model, beside the pass's version: they may not move without a new version.

`GOLDEN=write pytest tests/orchestration/test_golden.py` stores what is computed now. Do that after raising the
`version` of the passes whose numbers were meant to move, and of no others.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from foretune.storage.artifacts import ArtifactStore
from foretune.storage.contents import Artifact
from foretune.tasks.engine.keys import ContentKey

GOLDEN = Path(__file__).with_name("golden.json")
RELATIVE, ABSOLUTE = 2e-3, 1e-5  # of a column's absolute sum: float32 on other machines and thread counts


def columns_of(artifact: Artifact) -> dict[str, list[float]]:
    """Every number of an artefact: by file and column, tensor, or path inside a JSON file."""
    found: dict[str, list[float]] = {}
    for name in artifact.names():
        if name.endswith(".parquet"):
            table = artifact.arrow(name)
            for column in table.column_names:
                found[f"{name} {column}"] = flat(table[column].to_pylist())
        elif name.endswith(".safetensors"):
            for tensor, values in artifact.tensors(name).items():
                found[f"{name} {tensor}"] = values.double().flatten().tolist()
        elif name.endswith(".json") and "tokenizer" not in name:
            content = artifact.json(name)
            items = content.items() if isinstance(content, dict) else enumerate(content)
            found |= {f"{name} {key}": flat([value]) for key, value in items}
    return {name: values for name, values in found.items() if values}


def flat(values: Any) -> list[float]:
    """The numbers in nested lists; nothing for texts and for None."""
    if isinstance(values, list):
        return [number for value in values for number in flat(value)]
    return [float(values)] if isinstance(values, bool | int | float) else []


def numbers_of(store: ArtifactStore) -> dict[str, dict[str, Any]]:
    """Per task its version and, over all its artefacts, the sum and the absolute sum of every column."""
    tasks: dict[str, dict[str, Any]] = {}
    for stored in store.iterate():
        manifest = store.manifest(stored.task, stored.key)
        task = tasks.setdefault(stored.task, {"version": manifest.version, "numbers": {}})
        for name, values in columns_of(Artifact(store.place(stored.task, stored.key), manifest)).items():
            total, size = task["numbers"].get(name, (0.0, 0.0))
            task["numbers"][name] = (total + sum(values), size + sum(map(abs, values)))
    return tasks


def _one_line_a_number(text: str) -> str:
    short = re.sub(r"-?\d+\.\d+(e[+-]?\d+)?", lambda found: f"{float(found[0]):.7g}", text)
    return re.sub(r"\[\s+([^\s,]+),\s+([^\s\]]+)\s+\]", r"[\1, \2]", short)


@pytest.fixture(scope="module")
def computed(first_run: Path) -> dict[str, dict[str, Any]]:
    found = numbers_of(ArtifactStore(first_run.parent / "root"))
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(_one_line_a_number(json.dumps(found, indent=1, sort_keys=True)) + "\n")
    return found


def test_every_pass_has_its_numbers_stored(computed):
    assert set(json.loads(GOLDEN.read_text())) == set(computed)


@pytest.mark.parametrize("task", json.loads(GOLDEN.read_text()) if GOLDEN.exists() else [])
def test_no_number_moves_without_a_new_version(computed, task):
    stored, now = json.loads(GOLDEN.read_text())[task], computed[task]
    if now["version"] != stored["version"]:
        pytest.fail(f"{task} is now version {now['version']}: store its numbers (see this file's first lines)")
    moved = {
        name: (before, after)
        for name, before in stored["numbers"].items()
        if (after := now["numbers"].get(name)) is None
        or max(abs(after[0] - before[0]), abs(after[1] - before[1])) > RELATIVE * before[1] + ABSOLUTE
    }
    assert not moved, f"{task}: numbers moved; raise its version, then store the new ones"
    assert set(now["numbers"]) == set(stored["numbers"])


def test_the_recipe_of_a_key_is_what_it_was():
    key = ContentKey(task="t", version=3).key_of({"b": [1, 2.5, None], "a": "x"})
    assert key == "fd4e98ae5aef67987c54dbf0248284a8a4b0ed6c"
