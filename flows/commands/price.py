"""What a simulation costs against the training it replaces: per task, in all, and of the real run."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from foretune.flows.commands.history import History
from foretune.flows.commands.terminal import Terminal
from foretune.flows.dag.sizes import Sizes
from foretune.flows.request import Request
from foretune.storage.events import read_events
from foretune.storage.rates import remembered_rates
from foretune.storage.runs import Run
from foretune.tasks.report.pace import pace_of
from foretune.tasks.samples.lengths import Lengths

FIELD = "landscape_shard"
"""The task that takes a forward and a backward over every row: what an epoch costs at least."""

HOW_TIMED = "run foretune simulate once: its landscape is a forward and a backward over every row"


@dataclass(frozen=True)
class RealRun:
    """The training that a simulation replaces; seconds and bytes are None where nothing tells them."""

    tokens: int  # of one epoch
    forward_passes: float  # over these tokens: 3 per epoch, 4 for pairs, which a reference reads too
    seconds: float | None
    seconds_from: str | None  # what they rest on
    memory_bytes: int | None  # of one step


def real_run(request: Request, rows: Lengths, sizes: Sizes, seconds: tuple[float, str] | None) -> RealRun:
    """Of a request over these rows; `seconds` per token and forward pass, with what they rest on."""
    forwards = (4 if rows.paired else 3) * request.training.epochs
    rate, basis = seconds or (None, None)
    took = None if rate is None else rate * forwards * rows.epoch
    return RealRun(rows.epoch, forwards, took, basis, step_bytes(request, rows, sizes))


def step_bytes(request: Request, rows: Lengths, sizes: Sizes) -> int | None:
    """Peak of the real run's largest step: its longest rows together, as the trainer may put them."""
    if sizes.shapes is None:
        return None
    longest = sorted((own + other for own, other in zip(rows.answers, rows.rejected, strict=True)), reverse=True)
    step_rows = min(request.training.batch_size, len(longest))
    tokens = step_rows * longest[0] if longest else 0
    rank = request.adapter.r if request.adapter.method == "lora" else None
    moments = 2 if request.training.optimizer == "adamw" else 1 if request.training.momentum else 0
    return sizes.shapes.step_bytes(
        request.model.dtype, tokens, rank, moments, checkpointing=request.model.gradient_checkpointing
    )


def seconds_per_token(root: str, history: History, model: Any) -> tuple[float, str] | None:
    """Of a forward pass with this model (its identity in keys), and what it rests on: a run of this root that took
    gradients, else what such passes took on this machine."""
    runs = [each.run_id for each in history.manifests(FIELD) if each.inputs.get("model") == model and each.run_id]
    for run_id in dict.fromkeys(runs):
        pace = pace_of(read_events(Run(root, run_id)))
        if pace is not None:
            return pace.mean, f"the gradients of run {run_id}"
    known = [took for took in remembered_rates(FIELD, model) if took.cost.get("forward_tokens")]
    if not known:
        return None
    rates = [took.seconds / (took.cost["forward_tokens"] + 2 * took.cost.get("backward_tokens", 0)) for took in known]
    return median(rates), f"{len(rates)} gradient passes on this machine, their waits included"


GROWING = frozenset(
    {
        "preference",
        "margin_gradient",
        "baseline_shard",
        "landscape_shard",
        "loss_shard",
        "prompt_gain_shard",
        "influence_shard",
        "influence_difference",
        "path",
    }
)
"""Passes whose work grows with the training rows: what a budget is of."""


def priced(tasks: list[dict[str, Any]], real: RealRun) -> dict[str, Any]:
    """`cost` of a plan: the simulation's forward passes over the training rows (of what is to run, and as if nothing
    were stored), the real run's, and their ratios."""
    waiting = [task for task in tasks if task["state"] == "run"]
    seconds = [task["seconds"] for task in waiting]
    here, passes = sum(map(equivalents, waiting)), sum(map(equivalents, tasks))
    growing = sum(equivalents(task) for task in tasks if task["task"] in GROWING)
    known = None if None in seconds else sum(seconds)
    return {
        "forward_passes": here / real.tokens if real.tokens else None,
        "forward_passes_whole": passes / real.tokens if real.tokens else None,
        "forward_passes_of_rows": growing / real.tokens if real.tokens else None,
        "bounded": any(task["bound"] == "at most" and equivalents(task) for task in waiting),
        "not_counted": sorted({task["task"] for task in waiting if task["bound"] is None}),
        "real": asdict(real),
        "ratio": here / (real.tokens * real.forward_passes) if real.tokens else None,
        "ratio_seconds": None if known is None or not real.seconds else known / real.seconds,
    }


def equivalents(task: dict[str, Any]) -> int:
    """Tokens times their cost in forwards; 0 where they are not known."""
    return (task["forward_tokens"] or 0) + 2 * (task["backward_tokens"] or 0)


def print_prices(terminal: Terminal, planned: dict[str, Any]) -> None:
    """A line per task, in 80 columns: shards of a task together."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for task in planned["tasks"]:
        groups[task["task"]].append(task)
    tokens = planned["cost"]["real"]["tokens"]
    rows: list[tuple[Any, ...]] = []
    for name, tasks in groups.items():
        waiting = [task for task in tasks if task["state"] == "run"]
        known = [task for task in waiting if task["memory_bytes"] is not None]
        rows.append(
            (
                name,
                len(tasks) - len(waiting),
                len(waiting),
                _passes(waiting, tokens) if waiting else _spent(tasks, tokens),
                _sum(waiting, "seconds", 1, ".1f"),
                f"{max(task['memory_bytes'] for task in known) / 1e6:,.0f}" if known else "",
                _sum(waiting, "bytes", 1e6, ",.1f"),
            )
        )
    columns = ("task", "cached", "run", "forwards", "seconds", "peak MB", "MB")
    terminal.table(columns, [(cells, "") for cells in rows])
    terminal.say("forwards over the training rows, a backward is two; (stored), <= bound, ~ about")


def _spent(stored: list[dict[str, Any]], tokens: int) -> str:
    """What is stored would cost so much again."""
    words = _passes(stored, tokens)
    return f"({words})" if words else ""


def _passes(waiting: list[dict[str, Any]], tokens: int) -> str:
    if not tokens:
        return ""
    if any(task["bound"] is None for task in waiting):
        return "?"
    spent = sum(map(equivalents, waiting)) / tokens
    bounds = {task["bound"] for task in waiting if equivalents(task)}
    mark = "<= " if "at most" in bounds else "~ " if bounds - {"exact"} else ""
    return f"{mark}{spent:.2f}" if spent else ""


def _sum(waiting: list[dict[str, Any]], name: str, unit: float, form: str) -> str:
    found = [task[name] for task in waiting]
    if not found:
        return ""
    return "?" if None in found else format(sum(found) / unit, form)


def print_real_run(terminal: Terminal, cost: dict[str, Any]) -> None:
    """The real run's line, and how much of it the simulation is."""
    real = cost["real"]
    memory = f", {real['memory_bytes'] / 1e6:,.0f} MB at most in a step" if real["memory_bytes"] is not None else ""
    timed = f"about {real['seconds']:.0f} s" if real["seconds"] is not None else "seconds not known"
    terminal.say(f"real run: {real['forward_passes']:.3g} forwards, {timed}{memory}", whole=True)
    rests = f"its seconds rest on {real['seconds_from']}"
    terminal.hanging("  ", rests if real["seconds"] is not None else f"for its seconds, {HOW_TIMED}")
    most = "at most " if cost["bounded"] else "about "
    times = "" if cost["ratio_seconds"] is None else f", {cost['ratio_seconds']:.2f} of its seconds"
    here = f"this simulation: {most}{cost['forward_passes']:.3g} forwards, {cost['ratio']:.2f} of the real run's{times}"
    terminal.say(here, whole=True)
    whole, passes = cost["forward_passes_whole"], real["forward_passes"]
    stored = abs(whole - cost["forward_passes"]) >= 0.01
    if stored:
        terminal.say(f"  were nothing stored: {whole:.3g} forwards, {whole / passes:.2f}", whole=True)
    rest = whole - cost["forward_passes_of_rows"]
    parts = f"{cost['forward_passes_of_rows'] / passes:.2f} grow with the rows, {rest / passes:.2f} do not"
    terminal.say(f"  of {'the whole' if stored else 'that'} {parts}", whole=True)
    if cost["not_counted"]:
        terminal.hanging("  ", f"forwards not known of: {', '.join(cost['not_counted'])}")
