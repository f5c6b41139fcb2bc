"""The files of a task of lm-evaluation-harness: its YAML with what it includes, its functions and its local data.

They are read here without the library, whose import takes seconds and opens torch; the pass that asks imports it.
"""

from __future__ import annotations

import functools
import glob
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from foretune.storage.digests import digest_of, file_digest
from foretune.storage.errors import BadInput
from foretune.storage.places import Place
from foretune.tasks.loading.foreign import reading

WHERE = "behaviour.lm_eval"
DEEPEST = 20  # includes of includes
NAME = re.compile(r"^[A-Za-z0-9][\w.+-]{0,199}$")
ELSEWHERE = re.compile(r"^[a-z0-9+]+://")


@dataclass
class TaskFiles:
    """A task's YAML with its includes merged; each file by a name without the machine's folders."""

    path: Path
    config: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)  # name -> sha256

    @property
    def digest(self) -> str:
        return digest_of(sorted(self.files.items()))


class _Function(str):
    """What follows `!function`: a module beside the YAML, and a name in it. Nothing is imported here."""


class _Loader(yaml.SafeLoader):
    """YAML with lm-eval's tag."""


_Loader.add_constructor("!function", lambda loader, node: _Function(loader.construct_scalar(node)))  # pyright: ignore[reportArgumentType]


def installed_tasks() -> Path:
    """The folder of the tasks that come with lm-evaluation-harness. BadInput where it is not installed."""
    found = importlib.util.find_spec("lm_eval")
    if found is None or not found.submodule_search_locations:
        raise BadInput(f"{WHERE}: lm-evaluation-harness is not installed; pip install 'foretune[lm-eval]'")
    return Path(next(iter(found.submodule_search_locations))) / "tasks"


def task_files(task: str) -> TaskFiles:
    """The files of a task that is named, or given by the path of its YAML. BadInput where there is none, where it is a
    group of tasks or Python code, and where its local data is missing."""
    root = installed_tasks()
    path = _path_of(task, root)
    found = TaskFiles(path, {})
    found.config = _merged(path, found, 0)
    _refuse_others(task, found.config)
    for each in _functions(found.config):
        _add_function(found, each)
    for file in _data_files(task, found.config):
        found.files[f"data {len(found.files)} {file.name}"] = file_digest(file)
    return found


def _path_of(task: str, root: Path) -> Path:
    if task.endswith((".yaml", ".yml")):
        path = Path(task).expanduser()
        if not path.is_file():
            raise BadInput(f"{WHERE}: {task}: no such file; check the path")
        return path.resolve()
    if not NAME.match(task):
        raise BadInput(f"{WHERE}: {task[:80]!r} is no name of a task; give a name of lm-eval's, or the path of a .yaml")
    for path in sorted(root.rglob(f"{task}.yaml")):  # most tasks are called like their file
        if _read(path).get("task") == task:
            return path
    return _indexed(task)


def _indexed(task: str) -> Path:
    """By lm-eval's own index, which takes seconds: it reads some fourteen thousand files."""
    entry = _index().get(task)
    if entry is None:
        raise BadInput(f"{WHERE}: lm-evaluation-harness has no task {task}; `lm_eval ls tasks` lists them")
    if entry.yaml_path is None:
        some = ", ".join(sorted(entry.tags)[:5])
        raise BadInput(f"{WHERE}: {task} is a tag of several tasks; name the tasks: {some}")
    return entry.yaml_path


@functools.cache
def _index() -> dict[str, Any]:
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports] - optional

    return TaskManager().task_index


def _read(path: Path) -> dict[str, Any]:
    with reading(f"{WHERE}: {path}", "give a task's YAML"):
        content = yaml.load(Place(path).read_bytes(), Loader=_Loader)
        if not isinstance(content, dict):
            raise ValueError("no mapping")
    return content


def _merged(path: Path, found: TaskFiles, depth: int) -> dict[str, Any]:
    """The YAML over what it includes, as lm-eval merges them; a function is known by the folder of its YAML."""
    if depth > DEEPEST:
        raise BadInput(f"{WHERE}: {path}: its includes go in a circle; mend the file")
    found.files[f"yaml {len(found.files)} {path.name}"] = file_digest(path)
    own = _placed(_read(path), path.parent)
    merged: dict[str, Any] = {}
    includes = own.pop("include", [])
    for each in includes if isinstance(includes, list) else [includes]:
        beside = path.parent / str(each)
        if not beside.is_file():
            raise BadInput(f"{WHERE}: {path}: includes {each}, which is not there; check the path")
        merged |= _merged(beside.resolve(), found, depth + 1)
    return {**merged, **own}


def _placed(value: Any, folder: Path) -> Any:
    if isinstance(value, _Function):
        return _Function(folder / value)
    if isinstance(value, dict):
        return {name: _placed(each, folder) for name, each in value.items()}
    return [_placed(each, folder) for each in value] if isinstance(value, list) else value


def _refuse_others(task: str, config: Mapping[str, Any]) -> None:
    if "class" in config:
        raise BadInput(f"{WHERE}: {task} is written in Python, not in YAML; leave it out")
    if "group" in config or not isinstance(config.get("task"), str):
        members = config.get("task")
        some = [each for each in members if isinstance(each, str)] if isinstance(members, list) else []
        named = f": {', '.join(some[:5])}" if some else ""
        raise BadInput(f"{WHERE}: {task} is no single task; name those that it is made of{named}")
    if config.get("output_type") == "loglikelihood_rolling":
        raise BadInput(f"{WHERE}: {task} scores running text as a whole; give the texts as a suite with scorer loss")


def _functions(value: Any) -> Iterator[_Function]:
    if isinstance(value, _Function):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _functions(each)


def _add_function(found: TaskFiles, function: _Function) -> None:
    """The module beside the YAML, if it is there: else one that can be imported, which is known by its name."""
    where, _, _name = str(function).rpartition(".")
    module = Path(where).parent / f"{Path(where).name.replace('.', '/')}.py"
    if module.is_file():
        found.files[f"module {module.name}"] = file_digest(module)


def _data_files(task: str, config: Mapping[str, Any]) -> list[Path]:
    """Local files of the dataset; a name of the hub has none."""
    options = config.get("dataset_kwargs")
    named = options.get("data_files") if isinstance(options, dict) else None
    parts = named.values() if isinstance(named, dict) else [named]
    given = [str(file) for part in parts if part for file in (part if isinstance(part, list) else [part])]
    found: list[Path] = []
    for each in given:
        if ELSEWHERE.match(each):
            continue
        files = [Path(file) for file in sorted(glob.glob(os.path.expanduser(each), recursive=True))]
        if not files:
            raise BadInput(f"{WHERE}: {task}: its data file {each} is not there; give its whole path in the YAML")
        found += [file for file in files if file.is_file()]
    folder = Path(str(config.get("dataset_path") or ""))
    if config.get("dataset_path") and folder.is_dir() and not given:
        found += sorted(file for file in folder.rglob("*") if file.is_file())
    return found


def is_local(config: Mapping[str, Any]) -> bool:
    """Whether a task's dataset is made of files of this machine."""
    return bool(_data_files(str(config.get("task")), config))
