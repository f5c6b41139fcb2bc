"""A dry run: the same wiring, asked for keys instead of results. It loads no model; torch checks a new one once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from foretune.flows.commands.history import Cost, History, Reason
from foretune.flows.commands.nearest import Nearest, nearest_run
from foretune.flows.commands.price import (
    FIELD,
    RealRun,
    priced,
    print_prices,
    print_real_run,
    real_run,
    seconds_per_token,
)
from foretune.flows.commands.terminal import Terminal
from foretune.flows.dag.costs import checked_sources
from foretune.flows.dag.estimate import with_defaults
from foretune.flows.dag.estimates import estimate
from foretune.flows.dag.simulation import simulation
from foretune.flows.dag.sizes import Sizes, sizes_of
from foretune.flows.dag.storage import FieldStorage, in_words
from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import Request
from foretune.storage.errors import BadInput, Damaged
from foretune.storage.refs import ArtifactRef
from foretune.storage.results import artifact_of
from foretune.storage.roots import root_to_read
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import ContentKey, identity, work_of
from foretune.tasks.loading.footprint import BYTES, Footprint
from foretune.tasks.samples.dataset import preview_table
from foretune.tasks.samples.lengths import Lengths, lengths_of, read_lengths
from foretune.tasks.samples.table import SampleIndex, index_of, read_index

ROWS = "other rows"
MOST_CAUSES = 6  # that are printed; all of them are in the JSON


@dataclass
class PlannedTask:
    """One task of the wiring: whether its artefact is stored, and what it would cost if not."""

    task: str
    shard: str | None
    key: str
    state: str  # cached | run
    why: str
    seconds: float | None = None  # None: nothing like it was ever run, under this root or on this machine
    bytes: int | None = None
    basis: str | None = None  # where seconds and bytes come from: this root | this machine | another model
    forward_tokens: float | None = None  # through the model, padding included; None: nothing tells
    backward_tokens: float | None = None
    bound: str | None = None  # exact | at most | about | remembered
    memory_bytes: int | None = None  # held at its peak, by the model's shapes; None: not known, or no model


@dataclass
class Planned:
    """Takes a step of the wiring by computing its key and looking for the manifest."""

    run: Run
    history: History
    tasks: list[PlannedTask] = field(default_factory=list)
    inputs: dict[str, dict[str, Any]] = field(default_factory=dict)  # of every task, by its key
    lengths: dict[str, Lengths] = field(default_factory=dict)  # of every `samples` artefact, by its key
    remembered: dict[str, Cost] = field(default_factory=dict)  # of the tasks to run, by their keys
    missing: dict[str, tuple[ContentKey, dict[str, Any]]] = field(default_factory=dict)  # what to run declares, by key

    def __call__(self, task: Any, **inputs: Any) -> ArtifactRef:
        policy = task.cache_policy
        declared = policy.inputs_of(inputs)
        key = policy.key_of_inputs(declared)
        hit = self.run.store.find(policy.task, key)
        shard = getattr(getattr(inputs.get("rows"), "shard", None), "prefix", None)
        planned = PlannedTask(policy.task, shard, key, "cached" if hit else "run", "stored" if hit else "")
        if hit is None:
            self.missing[key] = policy, declared
            cost = self.history.cost(policy.task, work_of(inputs), declared.get("model"))
            planned.seconds, planned.bytes, planned.basis = cost.seconds, cost.bytes, cost.basis
            self.remembered[key] = cost
        self.tasks.append(planned)
        self.inputs[key] = with_defaults(task.fn, inputs)
        return hit or ArtifactRef(task=policy.task, key=key, uri="", sha256="")

    def ready(self, artifact: ArtifactRef) -> ArtifactRef:
        return artifact

    def index(self, samples: ArtifactRef) -> SampleIndex:
        if samples.uri:
            return read_index(self.run, samples)
        return index_of(self._preview(samples))

    def lengths_of(self, samples: ArtifactRef) -> Lengths:
        """Of a table's rows."""
        if samples.key not in self.lengths:
            if samples.uri:
                self.lengths[samples.key] = read_lengths(self.run, samples)
            else:
                self._preview(samples)
        return self.lengths[samples.key]

    def _preview(self, samples: ArtifactRef) -> Any:
        inputs = self.inputs[samples.key]
        table = preview_table(self.run, inputs["source"], inputs["tokenizer"], inputs["role"], inputs["settings"])
        self.lengths[samples.key] = lengths_of(table)
        return table

    def measure(self, sizes: Sizes, dtype: str, storage: FieldStorage) -> None:
        """Say of every task what it sends through the model, and what it holds at its peak."""
        for task in self.tasks:
            found = estimate(task.task, self.inputs[task.key], sizes)
            if found is not None:
                task.forward_tokens, task.backward_tokens, task.bound = found.forward, found.backward, found.bound
                if sizes.shapes is not None and found.models:
                    sums = storage.held_bytes(task.task, sizes.shapes) if found.gradients else 0
                    held = found.models, found.graph, found.read, sums
                    task.memory_bytes = sizes.shapes.pass_bytes(dtype, *held)
            known = self.remembered.get(task.key, Cost())
            if known.forward_tokens is not None and (found is None or found.bound == "about"):
                task.forward_tokens, task.backward_tokens = known.forward_tokens, known.backward_tokens
                task.bound = "remembered"

    def explain(self, nearest: Nearest | None) -> list[Reason]:
        """Say of every task to run why, against the run that this plan is nearest to."""
        made = nearest.made() if nearest else None
        reasons = {key: self.history.reason(*declared, among=made) for key, declared in self.missing.items()}
        for task in self.tasks:
            if task.key in reasons:
                task.why = reasons[task.key].line
        return list(reasons.values())


def make_plan(request: Request) -> dict[str, Any]:
    """Every task with its state and cost, and the totals.

    `seconds` and `bytes` are sums over the tasks to run, as if one ran after the other: from past manifests of this
    root, else from what the same task with the same model took on this machine, else with another model under this
    root. No model is loaded to calibrate, so both are None while one of the tasks, named in `unknown`, never ran.
    `field_bytes`, with its terms under `field`, and `memory_bytes` come from the model's shapes; None for a GGUF file
    not yet converted. `field_bytes` is what this run adds; the field of a first run is `field_bytes_whole`.
    `field_storage` says whether gradients are stored whole. `memory_bytes` is one pass's; as many as `workers` run at
    once. `cost` holds the simulation against the real run:
    see `priced`. `compared_with` is the earlier run that reasons
    are given against, and `compared_because` why it is that one.
    """
    run = Run(root_to_read(request.runtime.root).uri, "plan")
    sources = checked_sources(request)
    step = Planned(run, History(run.store))
    wiring = Wiring(step, request, sources)
    simulation(wiring)
    waiting = [task for task in step.tasks if task.state == "run"]
    keys = {(task.task, task.key) for task in step.tasks}
    nearest = nearest_run(run.root, keys, request.model_dump(mode="json")) if waiting else None
    reasons = step.explain(nearest)
    sizes = sizes_of(wiring, step.lengths_of)
    step.measure(sizes, request.model.dtype, wiring.storage)
    storage = wiring.storage
    shapes, tasks = sizes.shapes, [vars(task) for task in step.tasks]
    field = shapes and _field(shapes, [step.inputs[each.key] for each in step.tasks if each.task == FIELD], storage)
    return {
        "tasks": tasks,
        "run": len(waiting),
        "cached": len(step.tasks) - len(waiting),
        "saes": sources.saes_read,
        "sae_line": sources.sae_line,
        **_causes(reasons, _changed_rows(wiring, nearest), nearest),
        "seconds": total([task.seconds for task in waiting]),
        "bytes": total([task.bytes for task in waiting]),
        "unknown": sorted({task.task for task in waiting if task.seconds is None}),
        "basis": sorted({task.basis for task in waiting if task.basis}),
        "field": field,
        "field_bytes_whole": field and field_bytes(**field),
        "field_bytes": shapes
        and field_bytes(**_field(shapes, [step.inputs[task.key] for task in waiting if task.task == FIELD], storage)),
        "field_storage": storage.told(wiring.request.prediction),
        "workers": request.runtime.max_workers,
        "memory_bytes": shapes
        and shapes.peak_bytes(request.model.dtype, _graph_tokens(wiring), storage.held_bytes("path", shapes)),
        "effort": wiring.lines().effort,
        "cost": priced(tasks, _real_run(step, wiring, sizes)),
    }


def _real_run(step: Planned, wiring: Wiring, sizes: Sizes) -> RealRun:
    timed = seconds_per_token(step.run.root, step.history, identity(wiring.model))
    return real_run(wiring.request, step.lengths_of(wiring.tables["train"]), sizes, timed)


def _changed_rows(wiring: Wiring, nearest: Nearest | None) -> str | None:
    """How the training rows differ from those of the nearest run."""
    if nearest is None:
        return None
    now = set(wiring.rows["train"].index.ids)
    try:
        before = set(read_index(nearest.run, artifact_of(nearest.run, "samples")).ids)
    except (BadInput, Damaged, FileNotFoundError):  # cleaned since
        return None
    return f"dataset rows +{len(now - before)} -{len(before - now)}" if now != before else None


def _causes(reasons: Sequence[Reason], rows: str | None, nearest: Nearest | None) -> dict[str, Any]:
    """What starts it all, with the number of tasks that it reaches by itself, and the run that this one is like: the
    nearest finished one, else the one whose artefacts most reasons name.

    `rows` say of the whole dataset what a shard's reason says of its own rows.
    """
    own = [{rows if rows and cause == ROWS else cause for cause in reason.own} for reason in reasons]
    counted = Counter(cause for each in own for cause in sorted(each))
    runs = Counter(reason.run_id for reason in reasons if reason.run_id)
    return {
        "causes": [{"what": cause, "tasks": tasks} for cause, tasks in counted.most_common()],
        "compared_with": nearest.run.run_id if nearest else runs.most_common(1)[0][0] if runs else None,
        "compared_because": nearest and nearest.words,
    }


def field_bytes(nodes: int, node_numbers: int, rows: int, row_numbers: int, bytes_per_number: int) -> int:
    """Storage of a gradient field: a whole gradient per block, and the per-row gradients."""
    return (nodes * node_numbers + rows * row_numbers) * bytes_per_number


def _field(shapes: Footprint, blocks: list[dict[str, Any]], storage: FieldStorage) -> dict[str, int]:
    """The terms of `field_bytes` for gradient blocks, of training and held-out rows, with these inputs."""
    per_row = [block for block in blocks if block["coordinates"]]
    return {
        "nodes": len(blocks),
        "node_numbers": storage.numbers or shapes.adapted,
        "rows": sum(block["rows"].shard.rows for block in per_row),
        "row_numbers": shapes.outputs * per_row[0]["coordinates"].r if per_row else 0,
        "bytes_per_number": BYTES[blocks[0]["settings"].gradient_dtype] if blocks else 0,
    }


def _graph_tokens(wiring: Wiring) -> int:
    """Tokens whose activations the widest pass keeps at once."""
    request, products = wiring.request, wiring.curvature_products()
    landscape = request.landscape.most_at_once
    return max(landscape, products.graph_tokens + products.batch_tokens, request.prediction.batch_tokens)


def total(parts: list[Any]) -> Any:
    """The sum; None while one of the parts is not known."""
    return None if None in parts else sum(parts)


def print_plan(terminal: Terminal, planned: dict[str, Any]) -> None:
    """One line per task, shards of a task together; then the sums, the real run, and why tasks run."""
    print_prices(terminal, planned)
    terminal.gap()
    terminal.hanging("", f"{planned['run']} to run, {planned['cached']} cached; {_costs(planned)}")
    if planned["effort"]:
        terminal.hanging("", planned["effort"])
    print_real_run(terminal, planned["cost"])
    if planned["sae_line"]:
        terminal.hanging("", planned["sae_line"])
    if planned["causes"]:
        against = f" since run {planned['compared_with']}" if planned["compared_with"] else ""
        against += f" ({planned['compared_because']})" if planned["compared_because"] else ""
        causes = "; ".join(
            f"{each['what']} ({each['tasks']} task{'s'[: each['tasks'] > 1]})"
            for each in planned["causes"][:MOST_CAUSES]
        )
        terminal.hanging("", f"what changed{against}: {causes}")
    if planned["field"] is not None:
        terminal.hanging("", f"gradient field {_formula(planned)}")
        if planned["field_storage"]["kind"] == "factored":
            terminal.hanging("", in_words(planned["field_storage"]))
    _print_reasons(terminal, planned["tasks"])


def _print_reasons(terminal: Terminal, tasks: list[dict[str, Any]]) -> None:
    """Every reason with the tasks that it is of."""
    reasons: dict[str, dict[str, None]] = defaultdict(dict)
    for task in tasks:
        if task["state"] == "run":
            reasons[task["why"]][task["task"]] = None
    if reasons:
        terminal.gap()
        terminal.say("why")
    for why, names in reasons.items():
        terminal.hanging("  ", f"{', '.join(names)}: {why}")


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _costs(planned: dict[str, Any]) -> str:
    words = [_estimate(planned)]
    if planned["memory_bytes"] is not None:
        words.append(f"memory about {planned['memory_bytes'] / 1e9:.1f} GB for one pass, {_at_once(planned)}")
    return "; ".join(words)


def _at_once(planned: dict[str, Any]) -> str:
    return "one at a time" if planned["workers"] == 1 else f"up to {planned['workers']} at once"


def _estimate(planned: dict[str, Any]) -> str:
    """The sums, and what they rest on."""
    known = [task for task in planned["tasks"] if task["seconds"] is not None]
    if not known and planned["run"]:
        return "time not known until something like it has run on this machine"
    seconds, size = sum(task["seconds"] for task in known), sum(task["bytes"] for task in known)
    basis = f" (measured on {' and '.join(planned['basis'])})" if planned["basis"] else ""
    about = f"about {seconds:.0f} s of passes, {size / 1e6:,.0f} MB{basis}"
    return f"{about}; not known: {', '.join(planned['unknown'])}" if planned["unknown"] else about


def _formula(planned: dict[str, Any]) -> str:
    """As in `8 nodes x 13.27 M numbers x 2 bytes + 96 rows x 0.1843 M numbers x 2 bytes`."""
    field = planned["field"]
    parts = [
        f"{field[count]:,} {count} x {field[numbers] / 1e6:,.4g} M numbers x {field['bytes_per_number']} bytes"
        for count, numbers in (("nodes", "node_numbers"), ("rows", "row_numbers"))
        if field[count]
    ]
    whole, new = (planned[name] / 1e6 for name in ("field_bytes_whole", "field_bytes"))
    return f"{' + '.join(parts)} = {whole:,.0f} MB, {new:,.0f} MB of it to be written"
