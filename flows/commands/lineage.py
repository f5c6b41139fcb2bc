"""Which inputs made which artefact of a run: down to dataset digest, model, code commit and library versions."""

from __future__ import annotations

from typing import Any

from foretune.flows.commands.garbage import referenced
from foretune.flows.commands.terminal import Terminal
from foretune.storage.results import artifact_of, finished_result
from foretune.storage.runs import Run


def lineage_of(run: Run) -> dict[str, Any]:
    """Every artefact behind the run's result, each with its declared inputs and the artefacts it read; and the names
    that the request gave to what lies outside the root, whose digests are among the inputs."""
    result = finished_result(run)
    waiting = [(ref.task, ref.key) for ref in (artifact_of(run, name) for name in result.get("artifacts", {}))]
    nodes: dict[str, dict[str, Any]] = {}
    while waiting:
        task, key = waiting.pop()
        name = f"{task}/{key}"
        manifest = None if name in nodes else run.store.manifest(task, key)
        if manifest is None:
            continue
        parents = referenced(manifest.inputs)
        waiting += parents
        nodes[name] = {
            "task": task,
            "key": key,
            "inputs": manifest.inputs,
            "reads": sorted(f"{t}/{k}" for t, k in parents),
            "libraries": manifest.libraries,
            "git_commit": manifest.git_commit,
            "created": manifest.created,
            "seconds": manifest.seconds,
        }
    named = {name: result.get("request", {}).get(name) for name in ("dataset", "model", "sae")}
    return {"run_id": run.run_id, "sources": named, "artifacts": dict(sorted(nodes.items()))}


def print_lineage(terminal: Terminal, traced: dict[str, Any]) -> None:
    """What the request named, then an artefact a line with what it read."""
    dataset, model = (traced["sources"].get(name) or {} for name in ("dataset", "model"))
    revision = f" at {model['revision']}" if model.get("revision") else ""
    named = model.get("name_or_path", "-")
    terminal.say(f"dataset {dataset.get('path', '-')}  model {named}{revision}", whole=True)
    for name, node in traced["artifacts"].items():
        terminal.say(f"{name}  {node['created']}  {node['seconds']:.1f} s  commit {(node['git_commit'] or '-')[:12]}")
        for parent in node["reads"]:
            terminal.say(f"    reads {parent}")
