"""How good was the simulation? The same request simulated, then really trained, and both compared."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import prefect

from foretune.flows.commands.history import History
from foretune.flows.commands.plan import Planned, PlannedTask, total
from foretune.flows.dag.answers import real_answers
from foretune.flows.dag.costs import checked_sources
from foretune.flows.dag.simulation import simulation
from foretune.flows.dag.suites import scores_of, suites_of
from foretune.flows.dag.wiring import Wiring
from foretune.flows.engines.threads import steps_on
from foretune.flows.failures import ending_in_one_line
from foretune.flows.request import Request
from foretune.flows.simulate import recorded
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run, new_run_id
from foretune.tasks.backtest.answers import answer_agreement
from foretune.tasks.backtest.axes import MIN_HALVES
from foretune.tasks.backtest.passes import agreement, real_run, trainer_of
from foretune.tasks.backtest.suites import suite_agreement
from foretune.tasks.engine.keys import identity, work_of
from foretune.tasks.engine.lineage import run_started
from foretune.tasks.inputs.sources import Sources
from foretune.tasks.report.backtest_page import backtest_report
from foretune.tasks.report.publish import publish


@prefect.flow(name="foretune-backtest", validate_parameters=True, log_prints=False)
@ending_in_one_line("foretune.backtest.failed")
def backtest(
    request: Request, seeds: list[int] | None = None, retrain: int = 0, run_id: str | None = None
) -> dict[str, Any]:
    """Test a simulation against real training.

    1. Simulate: the same passes as `simulate`, looked up where they are stored.
    2. Train for real, once per seed of the rows' order (default: the request's own), and on `retrain` random halves.
    3. Score the simulation, the real first step and re-runs on six axes; see which signals came true.
    4. Check that the base weights are what they were.
    5. Publish as `simulate` does, with the backtest as the run's page.
    """
    seeds = checked_seeds(seeds or [request.training.seed], retrain)
    sources = checked_sources(request)
    run_id = run_id or new_run_id(datetime.now(UTC), f"{request.run_name}-backtest")
    run = Run(request.runtime.root, run_id, request.runtime.verify)
    return recorded(run, request, lambda: run_backtest(run, request, sources, seeds, retrain))


def checked_seeds(seeds: list[int], retrain: int) -> list[int]:
    """The seeds; BadInput for one that is negative or there twice, or for a negative number of halves."""
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise BadInput(f"seeds {', '.join(map(str, seeds))}: give different whole numbers, none below 0; as in 1,2,3")
    if retrain < 0:
        raise BadInput(f"retrain {retrain}: give 0, or at least {MIN_HALVES} halves")
    return seeds


def training_plan(run: Run, request: Request, seeds: list[int], retrain: int) -> dict[str, Any]:
    """How many real runs there are, how many of them are to be trained, and the seconds that these would take; under
    `tasks` every pass and every real run with its own, of which `workers` go at once.

    From real runs of the past where there are any, else from the landscape's forward and backward pass over the same
    rows, once per epoch; None where neither ever ran on this machine. Nothing is run, and no torch imported.
    BadInput where the trainer's library is missing.
    """
    step, sources = Planned(run, History(run.store)), checked_sources(request)
    wiring = Wiring(step, request, sources)
    trainer = trainer_of(wiring.dpo_beta)
    against_training(wiring, simulation(wiring), trainer, seeds, retrain)
    real_runs = [planned for planned in step.tasks if planned.task == "real_run"]
    waiting = [planned for planned in real_runs if planned.state == "run"]
    for planned in waiting:
        planned.seconds = planned.seconds or _by_landscape(step, planned, request.training.epochs)
    return {
        "real_runs": len(real_runs),
        "to_train": len(waiting),
        "seconds": total([planned.seconds for planned in waiting]),
        "tasks": [vars(planned) for planned in step.tasks],
        "workers": request.runtime.max_workers,
    }


def _by_landscape(step: Planned, planned: PlannedTask, epochs: float) -> float | None:
    inputs = step.inputs[planned.key]
    pass_over_rows = step.history.cost("landscape_shard", work_of(inputs), identity(inputs["model"]))
    return None if pass_over_rows.seconds is None else epochs * pass_over_rows.seconds


def run_backtest(run: Run, request: Request, sources: Sources, seeds: list[int], retrain: int) -> dict[str, Any]:
    """Every pass and every real run, run or looked up; the published result."""
    run_started(run, sources.named())
    with steps_on(run, request.runtime) as step:
        wiring = Wiring(step, request, sources)
        trainer = trainer_of(wiring.dpo_beta)
        made = simulation(wiring)
        step.finish()  # while a pass of the simulation runs, no optimizer may step
        made |= against_training(wiring, made, trainer, seeds, retrain)
        step.finish()
    return publish(
        run=run,
        request=request.model_dump(mode="json"),
        made={name: step.ready(artifact) for name, artifact in made.items()},
        submitted=len(step.submitted),
        saes=wiring.sources.saes_read,
    )


def against_training(
    wiring: Wiring, made: dict[str, Any], trainer: str, seeds: list[int], retrain: int
) -> dict[str, Any]:
    """The real runs, the agreement with them, and its page."""
    step, request, train = wiring.step, wiring.request, wiring.rows["train"]
    rows = len(train.index.trained_ids)
    halves = range(retrain if retrain >= MIN_HALVES else 0)
    half_rows = [train.of_all(max(1, rows // 2), f"half {half}") for half in halves]
    lines = wiring.lines()

    def trained(role: str, rows: Any, order: int) -> Any:
        return step(
            real_run,
            role=role,
            rows=rows,
            model=wiring.model,
            adapter=request.adapter,
            training=wiring.asked.training,
            dpo_beta=wiring.dpo_beta,
            order=order,
            trainer=trainer,
            thresholds=request.thresholds,
        )

    real = {f"seed {seed}": trained(f"seed {seed}", train.whole(), seed) for seed in seeds}
    scored = step(
        agreement,
        prediction=made["prediction"],
        landscape=made["landscape"],
        influence=made["influence"],
        seeds=seeds,
        real=list(real.values()),
        halves=[trained(f"half {half}", half_rows[half], seeds[0]) for half in halves],
        half_rows=half_rows,
        retrain=retrain,
        heldout=wiring.rows["heldout"].whole(),
        evaluation=wiring.evaluation_rows(),
        compared=wiring.compared_rows(),
        model=wiring.model,
        sae=wiring.sources.sae,
        adapter=request.adapter,
        training=request.training,
        dpo_beta=wiring.dpo_beta,
        settings=request.diff,
    )
    found = {"agreement": scored}
    step.ready(scored)  # every real run has ended: while another pass runs, no optimizer may step
    if "prompts" in made:
        found["answer_agreement"] = asked_alike(wiring, made, real, seeds)
    if "behaviour" in made:
        found["suite_agreement"] = behaving_alike(wiring, made, real, seeds)
    found["backtest_report"] = step(
        backtest_report,
        agreement=scored,
        answers=found.get("answer_agreement"),
        suites=found.get("suite_agreement"),
        lines=lines,
    )
    return found


def behaving_alike(wiring: Wiring, made: dict[str, Any], real: dict[str, Any], seeds: list[int]) -> Any:
    """The real models on the same suites, and how far the predicted changes are the real ones."""
    settings = wiring.request.behaviour
    return wiring.step(
        suite_agreement,
        suites=[suite for suite, _ in suites_of(settings)],
        base=scores_of(wiring, None),
        predicted=scores_of(wiring, made["checkpoint"]),
        real=[scores_of(wiring, weights) for weights in real.values()],
        seeds=seeds,
        settings=settings.comparison,
    )


def asked_alike(wiring: Wiring, made: dict[str, Any], real: dict[str, Any], seeds: list[int]) -> Any:
    """The real models asked what the predicted one is, and how far they answer alike."""
    return wiring.step(
        answer_agreement,
        base=made["base_answers"],
        predicted=made["predicted_answers"],
        answered=real_answers(wiring, made, real),
        prediction=made["prediction"],
        real=list(real.values()),
        seeds=seeds,
        model=wiring.model,
        rows=wiring.compared_rows(),
        batch_tokens=wiring.request.diff.batch_tokens,
    )
