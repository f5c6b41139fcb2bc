"""A dry run: the same wiring, asked for keys instead of results. It loads no model."""

from __future__ import annotations

import inspect
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.request import Request
from flows.wiring import simulation
from storage.artifacts import ArtifactRef, ArtifactStore
from storage.digests import canonical_json
from storage.manifest import Manifest
from storage.runs import Run
from tasks.dataset import preview_index
from tasks.samples import SampleIndex, read_index
from tasks.sources import resolve_sources


@dataclass
class PlannedTask:
    """One task of the wiring: whether its artefact is stored, and what it would cost if not."""

    task: str
    shard: str | None
    key: str
    state: str  # cached | run
    why: str
    seconds: float | None = None  # None: no artefact of this task was ever stored here
    bytes: int | None = None


@dataclass
class Planned:
    """Takes a step of the wiring by computing its key and looking for the manifest."""

    run: Run
    request: Request
    history: History
    tasks: list[PlannedTask] = field(default_factory=list)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)  # key -> arguments, for the samples

    def __call__(self, task: Any, **inputs: Any) -> ArtifactRef:
        policy = task.cache_policy
        declared = policy.inputs_of(_with_defaults(task.fn, inputs))
        key = policy.key_of_inputs(declared)
        hit = self.run.store.find(policy.task, key)
        shard = getattr(getattr(inputs.get("rows"), "shard", None), "prefix", None)
        planned = PlannedTask(policy.task, shard, key, "cached" if hit else "run", "stored" if hit else "")
        if hit is None:
            planned.why = self.history.reason(policy.task, declared)
            planned.seconds, planned.bytes = self.history.cost(policy.task, _rows(inputs))
        self.tasks.append(planned)
        self.asked[key] = inputs
        return hit or ArtifactRef(task=policy.task, key=key, uri="", sha256="")

    def ready(self, artifact: ArtifactRef) -> ArtifactRef:
        return artifact

    def index(self, samples: ArtifactRef) -> SampleIndex:
        if samples.uri:
            return read_index(self.run, samples)
        asked = self.asked[samples.key]
        return preview_index(self.run, asked["source"], asked["tokenizer"], asked["role"], asked["settings"])


class History:
    """What past manifests of a storage root tell: costs per row, and the nearest key of the same task."""

    def __init__(self, store: ArtifactStore) -> None:
        self.manifests: dict[str, list[Manifest]] = defaultdict(list)
        for stored in store.iterate():
            manifest = store.manifest(stored.task, stored.key) if stored.complete else None
            if manifest is not None:
                self.manifests[stored.task].append(manifest)

    def cost(self, task: str, rows: int | None) -> tuple[float | None, int | None]:
        """Median seconds and bytes of the task here; per row where the task works on rows."""
        known = self.manifests.get(task)
        if not known:
            return None, None
        seconds = sorted(manifest.seconds for manifest in known)[len(known) // 2]
        size = sorted(sum(file.bytes for file in manifest.files.values()) for manifest in known)[len(known) // 2]
        return seconds, size

    def reason(self, task: str, inputs: dict[str, Any]) -> str:
        """Which declared inputs differ from those of the most similar stored key."""
        known = self.manifests.get(task)
        if not known:
            return "never run here"

        def changed(manifest: Manifest) -> list[str]:
            names = sorted({*inputs, *manifest.inputs})
            return [n for n in names if canonical_json(inputs.get(n)) != canonical_json(manifest.inputs.get(n))]

        nearest = min((changed(manifest) for manifest in known), key=len)
        return f"changed: {', '.join(nearest)}" if nearest else "the pass's version or a library changed"


def _with_defaults(function: Any, inputs: dict[str, Any]) -> dict[str, Any]:
    bound = inspect.signature(function).bind(run=None, **inputs)
    return dict(bound.arguments)


def _rows(inputs: dict[str, Any]) -> int | None:
    rows = inputs.get("rows")
    return None if rows is None else getattr(rows, "shard", getattr(rows, "subset", None)).rows


def make_plan(request: Request) -> dict[str, Any]:
    """Every task with its state and cost, and the totals."""
    sources = resolve_sources(request.dataset, request.model, request.sae)
    run = Run(request.runtime.root, "plan")
    step = Planned(run, request, History(run.store))
    simulation(step, request, sources)
    tasks = [vars(task) for task in step.tasks]
    waiting = [task for task in tasks if task["state"] == "run"]
    known = [task for task in waiting if task["seconds"] is not None]
    return {
        "tasks": tasks,
        "run": len(waiting),
        "cached": len(tasks) - len(waiting),
        "seconds": sum(task["seconds"] for task in known) if len(known) == len(waiting) else None,
        "bytes": sum(task["bytes"] for task in known) if len(known) == len(waiting) else None,
        "memory_bytes": sources.memory_bytes(request),
    }


def print_plan(console: Console, planned: dict[str, Any]) -> None:
    """One line per task; shards of a task together."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for task in planned["tasks"]:
        groups[task["task"]].append(task)
    table = Table(box=None, header_style="bold")
    for column in ("task", "cached", "run", "seconds", "why"):
        table.add_column(column)
    for name, tasks in groups.items():
        waiting = [task for task in tasks if task["state"] == "run"]
        seconds = [task["seconds"] for task in waiting]
        cost = "" if not waiting else "?" if None in seconds else f"{sum(seconds):.1f}"
        why = "; ".join(dict.fromkeys(task["why"] for task in waiting))
        table.add_row(name, str(len(tasks) - len(waiting)), str(len(waiting)), cost, why)
    console.print(table)
    total = (
        "unknown: nothing like it was run under this root"
        if planned["seconds"] is None
        else (f"about {planned['seconds']:.0f} s and {planned['bytes'] / 1e6:,.0f} MB")
    )
    console.print(
        f"{planned['run']} to run, {planned['cached']} cached; {total}; "
        f"memory about {planned['memory_bytes'] / 1e9:.1f} GB"
    )
