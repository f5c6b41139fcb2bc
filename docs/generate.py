"""Writes the parts of the documentation that follow from the code.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`. `python docs/generate.py` writes every part;
with `--check` nothing is written: each part that differs is named, and the exit status is 1 where one does.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo

DOCS = Path(__file__).resolve().parent
PROJECT = DOCS.parent

MARK = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)

ROOMS = {
    "flows": "what a person or a deployment starts; no tensor, no file system",
    "flows/api": "what one imports from `foretune`",
    "flows/commands": "what reads stored runs, and what the terminal shows",
    "flows/dag": "the DAG, wired once, for running and for planning",
    "flows/engines": "who takes a step: threads of this process, or a Ray cluster",
    "tasks": "one room per stage; stages do not know each other",
    "tasks/backtest": "the truth: real runs, and the scores of a simulation against them",
    "tasks/behaviour": "what the base and the predicted model answer, and what suites of items say of it",
    "tasks/checkpoint": "the predicted model, written and verified",
    "tasks/circuits": "which layers, heads and MLPs carry a predicted change, and whether they really do",
    "tasks/concepts": "SAE features at the base weights, and what pairs say about them",
    "tasks/engine": "how a pass runs: keys, invariants, announcements, memory, time limits",
    "tasks/influence": "which samples help and which harm",
    "tasks/inputs": "what stages take: sources, handles, training, the stored gradient field",
    "tasks/inspection": "what differs in the predicted model: SAE diff, model diff",
    "tasks/landscape": "gradients and curvature at the base weights, prompt gain",
    "tasks/loading": "the only room that knows transformers and peft",
    "tasks/numerics": "torch and nothing else: plain functions, frozen results",
    "tasks/prediction": "the path of the weights, the delta at its end, what-if",
    "tasks/quality": "pass 0: what is wrong with the rows, without a model",
    "tasks/report": "the report: one page of one file, and what a run publishes",
    "tasks/report/charts": "the report's figures",
    "tasks/saes": "the only room that knows sae-lens and sparsify",
    "tasks/samples": "rows to ids, tokens, labels and shards",
    "storage": "bytes, digests, places: the only room that opens file systems",
}
"""One line per package; a folder without a line is an error, so that a new room says what it is for."""

AROUND = {
    "deployments": "work pools, requests and images per environment",
    "docs": "these pages, and the command that writes their generated parts",
    "examples/demo": "the demo's request, dataset (with a key of what was planted), SAE and scripts",
    "tests": "a folder per room, tests/flows for the whole, tests/benchmarks for the figures",
}


def main(arguments: list[str] | None = None) -> int:
    """0, or 1 where `--check` found a part that differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; name the parts that differ")
    check = parser.parse_args(arguments).check
    differing = [name for page, parts in PAGES.items() for name in written(PROJECT / page, parts, check)]
    for name in differing:
        print(f"{name} {'differs: run python docs/generate.py' if check else 'written'}")
    return int(check and bool(differing))


def written(page: Path, parts: dict[str, Callable[[], str]], check: bool) -> list[str]:
    """Bring the parts of one page up to date, or with `check` only compare; "PAGE: PART" of each that differed."""
    old = page.read_text(encoding="utf-8")
    found = {match["name"] for match in MARK.finditer(old)}
    if found != set(parts):
        raise SystemExit(f"{page}: marks of {sorted(found)}, parts {sorted(parts)}")
    differing = []

    def renewed(match: re.Match[str]) -> str:
        body = parts[match["name"]]().strip("\n") + "\n"
        if body != match["body"]:
            differing.append(f"{page.relative_to(PROJECT)}: {match['name']}")
        return f"{match[1]}{body}{match[4]}"

    new = MARK.sub(renewed, old)
    if new != old and not check:
        page.write_text(new, encoding="utf-8")
    return differing


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; a pipe inside a cell would end it."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


# The tree


def packages() -> list[str]:
    """Every package's folder, in the order of a walk."""
    found = [file.parent for room in ("flows", "tasks", "storage") for file in (PROJECT / room).rglob("__init__.py")]
    names = sorted(str(folder.relative_to(PROJECT)) for folder in found)
    if missing := [name for name in names if name not in ROOMS]:
        raise SystemExit(f"docs/generate.py: say in ROOMS what {', '.join(missing)} is for")
    return sorted(names, key=lambda name: list(ROOMS).index(name))


def tree() -> str:
    """The map: a line per room."""
    lines = [(f"{'  ' * name.count('/')}{name.rsplit('/', 1)[-1]}/", ROOMS[name]) for name in packages()]
    lines += [(f"{name}/", what) for name, what in AROUND.items()]
    return "```text\n" + "\n".join(f"{name:<18}{what.replace('`', '')}" for name, what in lines) + "\n```"


def modules() -> str:
    """Every module with the first line of its docstring, room by room."""
    parts = []
    for name in packages():
        files = sorted(f for f in (PROJECT / name).glob("*.py") if f.name != "__init__.py")
        rows = [(f"`{file.name}`", first_line(file)) for file in files]
        if rows:
            parts += [f"### {name}/", f"{ROOMS[name][0].upper()}{ROOMS[name][1:]}.", table(("file", "what"), rows)]
    return "\n\n".join(parts)


def first_line(file: Path) -> str:
    """The first paragraph of a module's docstring, in one line."""
    said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return " ".join(said.split("\n\n")[0].split())


# The request


def settings() -> str:
    """Every setting of the request: a table per section."""
    from foretune.flows.request import Request

    parts = []
    for name, field in Request.model_fields.items():
        if name == "version":
            continue
        inner = model_of(field.annotation)
        rows = list(rows_of(inner, f"{name}.")) if inner else [row_of(name, field)]
        said = (inner.__doc__ or "").strip().splitlines()[0] if inner else ""
        parts += [f"### {name}", *([said] if said else []), table(("setting", "type", "default", "what"), rows)]
    return "\n\n".join(parts)


def rows_of(model: type[BaseModel], path: str) -> Iterator[tuple[str, ...]]:
    for name, field in model.model_fields.items():
        if name == "version":
            continue
        inner = model_of(field.annotation)
        if inner:
            yield from rows_of(inner, f"{path}{name}.")
        else:
            yield row_of(f"{path}{name}", field)


def row_of(path: str, field: FieldInfo) -> tuple[str, ...]:
    said = "; ".join(part for part in (field.title, field.description) if part)
    default = "required" if field.is_required() else shown(field.get_default(call_default_factory=True))
    return f"`{path}`", type_of(field), default, said


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings model that a field holds, if it holds one."""
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return each
    return None


def type_of(field: FieldInfo) -> str:
    """A field's type and bounds in words."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    bounds = [f"{s} {shown(getattr(m, b))}" for m in field.metadata for b, s in signs.items() if hasattr(m, b)]
    return f"{named(field.annotation)} {' and '.join(bounds)}".strip()


def named(annotation: Any) -> str:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(named(each) for each in inner if each is not type(None))
    if origin in (list, tuple, set, frozenset):
        return f"list of {named(inner[0])}" if inner else "list"
    if hasattr(annotation, "__metadata__"):
        return named(inner[0])
    words = {str: "text", float: "number", int: "whole number", bool: "`true`, `false`"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)))


def shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value)


# The commands


def commands() -> str:
    """The help of every command."""
    from foretune.flows.cli import app

    parts = []
    for name, command in typer.main.get_command(app).commands.items():
        arguments = [p for p in command.params if p.param_type_name == "argument"]
        options = [p for p in command.params if p.param_type_name == "option"]
        usage = " ".join([f"foretune {name}", *(p.metavar or p.name.upper() for p in arguments), "[OPTIONS]"])
        parts += [f"### `foretune {name}`", (command.help or "").strip(), f"```text\n{usage}\n```"]
        rows = [(f"`{p.metavar or p.name.upper()}`", p.help or "") for p in arguments]
        rows += [(option_of(p), p.help or "") for p in options]
        parts.append(table(("takes", "means"), rows))
    return "\n\n".join(parts)


def option_of(option: Any) -> str:
    word = "" if option.is_flag else f" {option.metavar or ('ROOT' if option.name == 'root' else 'N')}"
    return ", ".join(f"`{name}{word}`" for name in option.opts)


# What is stored


def tasks() -> str:
    """Name and version of every task, and the libraries whose versions are in its key; read off the source."""
    rows = []
    for file in sorted((PROJECT / "tasks").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            for call in getattr(node, "decorator_list", []):
                if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "content_task":
                    given = {keyword.arg: keyword.value for keyword in call.keywords}
                    rows.append((node.name, str(ast.literal_eval(given["version"])), str(file.relative_to(PROJECT))))
    return table(("task", "version", "module"), [(f"`{n}`", v, f"`{f}`") for n, v, f in sorted(rows)])


def events() -> str:
    """The schema of a line of events.jsonl: what every event has, then each type."""
    schema = json.loads((PROJECT / "storage" / "event_schema.json").read_text(encoding="utf-8"))
    every = [(f"`{name}`", kind_of(part), part.get("description", "")) for name, part in schema["properties"].items()]
    parts = ["Every event has", table(("field", "type", "what"), every)]
    rows = []
    for reference in schema["oneOf"]:
        name = reference["$ref"].rsplit("/", 1)[-1]
        part = schema["$defs"][name]
        for field, kind in part["properties"].items():
            if field != "type":
                optional = "" if field in part["required"] else "optional"
                what = "; ".join(said for said in (kind.get("description", ""), optional) if said)
                rows.append((f"`{name}`", f"`{field}`", kind_of(kind), what))
    parts += ["and by its type", table(("type", "field", "value", "what"), rows)]
    return "\n\n".join(parts)


def kind_of(part: dict[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "$ref" in part:
        return "number ≥ 0 or null"
    kinds = part.get("type", "")
    kind = " or ".join(kinds) if isinstance(kinds, list) else kinds
    if "items" in part:
        kind += f" of {kind_of(part['items'])}"
    return kind + (f" ≥ {part['minimum']}" if "minimum" in part else "")


def rules() -> str:
    """Every rule of the quality pass, with what it was measured to find."""
    from foretune.tasks.quality.measured import measured_line
    from foretune.tasks.quality.rules import builtin_rules

    rows = [
        (f"`{rule.id}`", rule.category, rule.severity, rule.language, plainly(rule.says), measured_line(rule.id) or "")
        for rule in builtin_rules().values()
    ]
    return table(("rule", "category", "severity", "language", "what it looks for", "measured"), rows)


def plainly(text: str) -> str:
    """Text whose signs mean nothing to Markdown."""
    return re.sub(r"([<>*_\\`])", r"\\\1", text)


PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"tree": tree},
    "docs/architecture.md": {"modules": modules},
    "docs/artefacts.md": {"tasks": tasks, "events": events},
    "docs/commands.md": {"commands": commands},
    "docs/quality.md": {"rules": rules},
    "docs/request.md": {"settings": settings},
}

if __name__ == "__main__":
    sys.exit(main())
