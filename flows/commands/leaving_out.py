"""A run without some of its rows: replayed over its stored gradients, its suites asked there and its held-out loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from foretune.flows.commands.cleaned_rows import causes_of
from foretune.flows.commands.counted import Counted
from foretune.flows.commands.terminal import Terminal
from foretune.flows.commands.whatif import content_of, stored_gradients
from foretune.flows.dag.causes import replays_rows
from foretune.flows.dag.watched import watched_suites
from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import Request, parse_request
from foretune.storage.errors import BadInput
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run
from foretune.tasks.behaviour.suite_files import chosen_suites

Told = Callable[[str, int, int, str], None]
KINDS = ("predicted", "without", "control")


def leave_out(terminal: Terminal, run: Run, rows: list[int] | None, suites: list[str]) -> dict[str, Any]:
    """`predicted_without`, heard and printed in the terminal."""
    with Counted(terminal) as counted:
        result = predicted_without(run, rows, suites, counted)
    print_without(terminal, result)
    return result


def predicted_without(run: Run, rows: list[int] | None, suites: list[str], told: Told) -> dict[str, Any]:
    """What the run would end as without these rows, and without those that erode these suites: held-out loss and
    scores, beside those with all rows and those without as many others. BadInput where it cannot be replayed."""
    request = parse_request(content_of(run), where=f"run {run.run_id}")
    causing = [causes_of(run, name, "--without-causes") for name in suites]
    numbers: list[int] = sorted({*(rows or []), *(int(row["row"]) for each in causing for row in each)})
    if not numbers:
        raise BadInput(f"--without-causes: no row of run {run.run_id} stands out on {', '.join(suites)}")
    ids = _ids(run, numbers)
    if not replays_rows(request):
        raise BadInput(
            f"run {run.run_id}: only a LoRA run along a measured path, whose rows were kept one by one "
            "(landscape.row_gradients), can be replayed without some"
        )
    wiring, stored = stored_gradients(run, request)
    request = wiring.request
    if stored.row_gradients is None:
        raise BadInput(f"run {run.run_id}: its rows were not kept one by one; raise landscape.row_gradients, simulate")
    _check_measured(wiring, dict(zip(numbers, ids, strict=True)))
    endings, loss = _endings(run, wiring, request, ids)
    scored = _scored(run, wiring, request, endings, told)
    return {
        "run_id": run.run_id,
        "rows": numbers,
        "steps": {kind: each.steps for kind, each in endings.items()},
        "loss": {kind: loss(each.delta) for kind, each in endings.items()},
        "suites": scored,
    }


def _check_measured(wiring: Wiring, ids: dict[int, str]) -> None:
    """BadInput for a row whose gradient the run's budget did not pay for: it would look as if it did nothing."""
    rows = wiring.rows["train"]
    played = set(rows.index.trained_ids) - set(rows.trained_ids)
    unknown = next((number for number, sample_id in ids.items() if sample_id in played), None)
    if unknown is not None:
        raise BadInput(
            f"--without {unknown}: the gradient of this row was not measured (effort); raise effort.budget and simulate"
        )


def _ids(run: Run, numbers: list[int]) -> list[str]:
    table = run.store.open(artifact_of(run, "samples")).arrow("samples.parquet", columns=["row", "sample_id"])
    known = {row["row"]: row["sample_id"] for row in table.to_pylist()}
    unknown = [number for number in numbers if number not in known]
    if unknown:
        raise BadInput(f"--without {unknown[0]}: run {run.run_id} has no such training row; the report lists them")
    if len(numbers) >= len(known) - 1:
        raise BadInput(f"--without: {len(numbers)} of {len(known)} rows leave nothing to train on; name fewer")
    return [known[number] for number in numbers]


def _endings(
    run: Run, wiring: Wiring, request: Request, ids: list[str]
) -> tuple[dict[str, Any], Callable[[Any], float]]:
    """Where the run ends with all rows, without these, and without as many others; and the held-out loss there."""
    from foretune.tasks.prediction.evaluation import rows_at_weights
    from foretune.tasks.prediction.without_rows import replays_without

    train, heldout = wiring.landscape("train"), wiring.landscape("heldout")
    path = wiring.prediction(train, heldout, wiring.curvature(train))["path"]
    replays = replays_without(
        run,
        train.blocks,
        path,
        wiring.model,
        request.adapter,
        request.training,
        paired=wiring.dpo_beta is not None,
        max_relative_change=request.prediction.max_relative_change,
    )
    left_out = {"predicted": [], "without": ids, "control": replays.others(ids, request.training.seed)}
    rows = rows_at_weights(
        run,
        wiring.model,
        wiring.evaluation_rows(),
        request.adapter,
        request.training.seed,
        wiring.dpo_beta,
        request.prediction.batch_tokens,
    )
    return {kind: replays.ending(gone) for kind, gone in left_out.items()}, rows.loss


def _scored(run: Run, wiring: Wiring, request: Request, endings: dict[str, Any], told: Told) -> list[dict[str, Any]]:
    """Every suite at every end: a watched one on all its items, others on as many as along the path."""
    from foretune.tasks.behaviour.cause_effects import effect_of
    from foretune.tasks.behaviour.scores_at import scores_at

    settings, watched = request.behaviour, {suite.name for suite, _ in watched_suites(wiring)}
    chosen, effects = chosen_suites(settings), []
    for done, (suite, items) in enumerate(chosen):
        told("asking", done, len(chosen), "suites")
        if suite.name not in watched:
            items = items.model_copy(update={"items": items.items[: settings.path.items]})
        sides = {
            kind: scores_at(run, wiring.model, wiring.tokenizer, items, settings.scoring, each.delta)
            for kind, each in endings.items()
        }
        effects.append(effect_of(suite, sides, settings.comparison))
    return effects


def print_without(terminal: Terminal, result: dict[str, Any]) -> None:
    """Held-out loss and each suite: with all rows, without these, and without as many others."""
    count = len(result["rows"])
    named = ", ".join(map(str, result["rows"][:20])) + (f" and {count - 20:,} more" if count > 20 else "")
    terminal.say(f"without row{'s'[: count != 1]} {named}, replayed over stored gradients; no gradient is measured")
    losses = [result["loss"][kind] for kind in KINDS]
    lines: list[tuple[Any, str]] = [(("held-out loss", "", *(f"{loss:.3f}" for loss in losses), ""), "")]
    for suite in result["suites"]:
        change = f"{suite['change']:+.3g} ({suite['low']:+.3g} to {suite['high']:+.3g})"
        cells = (suite["suite"].replace("_", " "), suite["n"], *(f"{suite[kind]:.3g}" for kind in KINDS), change)
        lines.append((cells, "bold" if suite["measured"] else ""))
    terminal.table(("", "items", "all rows", "without", f"without {count} others", "change by leaving out"), lines)
