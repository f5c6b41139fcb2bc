"""A grid of settings over what a run has stored: which of them would do best, and how far that may be trusted."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from foretune.flows.commands.history import History
from foretune.flows.commands.plan import Planned
from foretune.flows.commands.remaining import duration
from foretune.flows.commands.terminal import Terminal
from foretune.flows.dag.costs import check_steps, checked_sources
from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import Request, apply_override, parse_request, stored_request
from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import identity
from foretune.tasks.prediction.outcome import LOWEST, Setting
from foretune.tasks.prediction.stored_gradients import StoredGradients
from foretune.tasks.prediction.whatif import Told, predicted_outcomes
from foretune.tasks.report.whatif_words import mark, setting_in_words, shown_outcomes, standing

VARIABLE_SETTINGS = {
    "training": [
        "learning_rate",
        "epochs",
        "batch_size",
        "gradient_accumulation_steps",
        "lr_scheduler_type",
        "warmup_ratio",
        "warmup_steps",
        "optimizer",
        "weight_decay",
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "momentum",
        "nesterov",
        "max_grad_norm",
    ],
    "adapter": ["r", "lora_alpha", "use_rslora", "target_modules"],
}
"""Settings that stored gradients are enough for; any other needs `simulate`, which measures again."""

MAX_SETTINGS = 500
"""Settings of one grid."""


def whatif(
    run: Run,
    options: list[str],
    evaluate: bool | None = None,
    told: Told = lambda what, done, total, unit: None,
    before: Callable[[dict[str, Any]], None] = lambda planned: None,
) -> dict[str, Any]:
    """Predict every setting of the grid that `options` ("training.epochs=1,3") span, and write whatif.json and
    whatif.html beside the run's report. BadInput for a setting that stored gradients cannot answer for.

    Forward passes are spent on the few settings of the lowest predicted loss; with `evaluate` on all of them or, where
    it is False, on none, and then none is called the best. `told` hears how far it is, `before` what is about to be
    done.
    """
    grid = [parsed(option) for option in options]
    paths = [path for path, _ in grid]
    if len(set(paths)) < len(paths):
        raise BadInput(f"--set {max(paths, key=paths.count)}: given twice; put its values into one list")
    content = content_of(run)
    request = parse_request(content, where=f"run {run.run_id}")
    wiring, stored = stored_gradients(run, request)
    request = wiring.request
    trained = len(wiring.rows["train"].index.trained_ids)
    settings = [_setting(content, dict(zip(paths, values, strict=True)), wiring) for values in _combinations(grid)]
    for setting in settings:
        check_steps(request, setting.training, trained)
    measured = None if evaluate is False else _evaluator(wiring, request)
    before(_planned(wiring, request, len(settings), evaluate))
    table = predicted_outcomes(stored, settings, request.prediction, measured, evaluate is True, told)
    result = {
        "run_id": run.run_id,
        "base_loss": stored.base_loss,
        "trusted_distance": stored.trusted_distance,
        "tolerance": request.prediction.tolerance,
        "evaluated": {None: "lowest", True: "all", False: "none"}[evaluate],
        "own": finite_outcome(asdict(table.own)),
        "settings": [finite_outcome(asdict(outcome)) for outcome in table.outcomes],
    }
    run.write_whatif(result, _page(result, wiring.lines()))
    return result | {"page": (run.place / "whatif.html").uri}


def content_of(run: Run) -> dict[str, Any]:
    """The run's own request, under the root where it lies, along the path that it went along."""
    kept = stored_request(run)
    along = run.run_id if kept.prediction.along else None  # whatever runs came after it
    content = kept.model_dump(mode="json")
    content["runtime"]["root"], content["prediction"]["along"] = run.root, along
    return content


def _planned(wiring: Wiring, request: Request, settings: int, evaluate: bool | None) -> dict[str, Any]:
    """How many settings are replayed, and at most how many times the held-out rows are evaluated."""
    evaluations = {None: min(settings, LOWEST + 1), True: settings * request.prediction.path_points, False: 0}[evaluate]
    rows = wiring.evaluation_rows()
    return {
        "settings": settings,
        "evaluations": evaluations,
        "rows": rows.subset.rows,
        "forward_tokens": evaluations * rows.tokens,
        "seconds": _forward_seconds(wiring, evaluations * rows.tokens),
    }


def _forward_seconds(wiring: Wiring, tokens: int) -> float | None:
    """By what a forward and backward over the same held-out rows took, of which a third is the forward; None where
    that is not known."""
    step = wiring.step
    if not isinstance(step, Planned):
        return None
    cost = step.history.cost("landscape_shard", {"tokens": tokens}, identity(wiring.model))
    return None if cost.seconds is None else cost.seconds / 3


def print_planned(terminal: Terminal, planned: dict[str, Any]) -> None:
    """What a what-if is about to do."""
    if not planned["evaluations"]:
        cost = "no forward pass"
    else:
        times = "once" if planned["evaluations"] == 1 else f"up to {planned['evaluations']} times"
        cost = f"{planned['rows']} held-out rows evaluated {times}"
        cost += "" if planned["seconds"] is None else f", about {duration(planned['seconds'])} of forward passes"
    terminal.say(
        f"{planned['settings']} setting{'s'[: planned['settings'] > 1]} replayed over stored gradients; {cost}"
    )


def finite_outcome(outcome: dict[str, Any]) -> dict[str, Any]:
    """The outcome with no number where one is not finite: a rate of 1e300 has no loss, and JSON no infinity."""
    numbers = ("predicted_loss", "trusted_loss", "evaluated_loss", "largest_movement")
    if all(outcome[name] is None or math.isfinite(outcome[name]) for name in numbers):
        return outcome
    return outcome | dict.fromkeys(numbers)


def parsed(option: str) -> tuple[str, list[str]]:
    """`a.b=x,y` as its path and values; commas inside brackets stay."""
    path, separator, text = option.partition("=")
    section, _, name = path.partition(".")
    if not separator or not text:
        raise BadInput(f"--set {option}: not of the form a.b=x,y; for example training.learning_rate=1e-4,2e-4")
    if name not in VARIABLE_SETTINGS.get(section, []):
        known = ", ".join(f"{part}.{each}" for part, names in VARIABLE_SETTINGS.items() for each in names)
        raise BadInput(f"--set {path}: needs a simulation of its own; stored gradients answer for {known}")
    values, depth = [""], 0
    for character in text:
        depth += (character == "[") - (character == "]")
        if character == "," and not depth:
            values.append("")
        else:
            values[-1] += character
    if "" in values:
        raise BadInput(f"--set {option}: a value is empty; for example {path}=1,2")
    if len(set(values)) < len(values):
        raise BadInput(f"--set {option}: {max(values, key=values.count)} is there twice; give different values")
    return path, values


def _combinations(grid: list[tuple[str, list[str]]]) -> list[tuple[str, ...]]:
    count = 1
    for _, values in grid:
        count *= len(values)
    if count > MAX_SETTINGS:
        raise BadInput(f"--set: the lists span {count} settings; {MAX_SETTINGS} are the most, leave some values out")
    return list(itertools.product(*(values for _, values in grid)))


def _setting(content: dict[str, Any], chosen: dict[str, str], wiring: Wiring) -> Setting:
    changed = copy.deepcopy(content)
    for path, value in chosen.items():
        apply_override(changed, f"{path}={value}")
    request = parse_request(changed, where="--set")
    return Setting(chosen, request.adapter, wiring.whole_run(request.training))


def stored_gradients(run: Run, request: Request) -> tuple[Wiring, StoredGradients]:
    """The run's wiring and what it has stored; BadInput where its inputs have changed or its artefacts are gone."""
    step = Planned(run, History(run.store))
    wiring = Wiring(step, request, checked_sources(request))
    train, heldout = wiring.landscape("train"), wiring.landscape("heldout")
    predicted = wiring.prediction(train, heldout, wiring.curvature(train))
    prediction, path = predicted["prediction"], predicted.get("path")
    needed: list[ArtifactRef] = [*train.blocks, heldout.gradient, prediction, *([path] if path else [])]
    gone = [each.task for each in needed if not each.uri]
    if gone:
        raise BadInput(
            f"run {run.run_id}: its {gone[0]} is not stored under {run.root}, or its dataset, model or code have "
            "changed since; simulate the request again"
        )
    stored = StoredGradients.of(
        run,
        train.blocks,
        heldout.gradient,
        prediction,
        path,
        request.adapter,
        wiring.request.training,
        request.prediction.tolerance,
        request.model.dtype,
        wiring.dpo_beta is not None,
    )
    return wiring, stored


def _evaluator(wiring: Wiring, request: Request) -> Callable[[Setting, Any], float]:
    """Held-out loss of a delta by forward passes, on the rows that the prediction evaluates. The model is opened when
    the first of them is wanted."""
    from foretune.tasks.prediction.evaluation import rows_at_weights

    @functools.cache
    def heldout() -> Any:
        return rows_at_weights(
            wiring.step.run,
            wiring.model,
            wiring.evaluation_rows(),
            request.adapter,
            request.training.seed,
            wiring.dpo_beta,
            request.prediction.batch_tokens,
        )

    return lambda setting, delta: heldout().loss(delta)


def _page(result: dict[str, Any], lines: Any) -> str:
    from foretune.tasks.report.whatif_page import whatif_page

    return whatif_page(result, lines)


def print_whatif(terminal: Terminal, result: dict[str, Any]) -> None:
    """One line per setting, the best and the lowest predicted marked, the run's own as the reference."""
    changed = result["settings"][0]["changed"]
    outcomes = shown_outcomes(result)
    rows: list[tuple[Any, str]] = []
    for outcome in outcomes:
        losses = [outcome["predicted_loss"], outcome["evaluated_loss"]]
        cells = (
            mark(outcome),
            *(
                f"{value:g}" if isinstance(value, float) else "-" if value is None else value
                for value in outcome["changed"].values()
            ),
            outcome["steps"],
            *(f"{loss:.3f}" if loss is not None else "-" for loss in losses),
            outcome["status"],
            outcome["predicted_from"],
            _movement(outcome),
        )
        rows.append((cells, "bold" if outcome["best"] else ""))
    names = [path.rsplit(".", 1)[-1] for path in changed]
    headings = ("", *names, "steps", "predicted", "evaluated", "trusted", "from", "largest move")
    terminal.table(headings, rows, whole=1 + len(names))
    for outcome in outcomes:
        if outcome["why"]:
            terminal.say(f"{setting_in_words(outcome)}: {outcome['predicted_from']}, {outcome['why']}")
    terminal.say(standing(result))
    terminal.say(f"held-out loss at the base weights {result['base_loss']:.3f}; {result['page']}", whole=True)


def _movement(outcome: dict[str, Any]) -> str:
    if outcome["largest_movement"] is None:
        return "-"
    return f"{100 * outcome['largest_movement']:.1f} % {outcome['largest_module'] or ''}"
