"""The real runs of a backtest: what each made of the held-out rows, and how far two results agree."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import permutations
from typing import TYPE_CHECKING, Any

from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.backtest.influence import number
from foretune.tasks.backtest.outcomes import HeldOut, first_step_extrapolated
from foretune.tasks.backtest.signals import dead_modules
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.prediction.evaluation import RowsAtWeights

if TYPE_CHECKING:
    from foretune.tasks.numerics.agreement import Agreement, Outcome


@dataclass(frozen=True)
class Compared:
    """Agreement with the real runs: of the simulation, of their own first steps, and of one run with another."""

    of_prediction: list[Agreement]
    of_first: list[Agreement]
    of_reruns: list[Agreement]


@dataclass(frozen=True)
class RealRuns:
    """One entry per real run, in the order of the seeds."""

    records: list[dict[str, Any]]  # record.json
    dead: list[Any]  # modules without gradient
    outcomes: list[Outcome]  # on the held-out rows
    first_steps: list[Outcome | None]  # the first step extrapolated; None where it has no direction
    path_losses: list[float]  # nats per token on the rows evaluated along the predicted path

    def compared_with(self, predicted: Outcome, base_loss: float) -> Compared:
        from foretune.tasks.numerics.agreement import agreement

        firsts = zip(self.first_steps, self.outcomes, strict=True)
        return Compared(
            of_prediction=[agreement(predicted, truth, base_loss) for truth in self.outcomes],
            of_first=[agreement(first, truth, base_loss) for first, truth in firsts if first is not None],
            of_reruns=[agreement(one, other, base_loss) for one, other in permutations(self.outcomes, 2)],
        )

    def described(self, seeds: list[int], figures: list[Agreement]) -> list[dict[str, Any]]:
        """Per run its seed, size, seconds, held-out loss, and the simulation's agreement with it."""
        runs = zip(seeds, self.records, self.outcomes, figures, strict=True)
        return [
            {"seed": seed, **_size(record), "heldout_loss": truth.loss, **_numbers(figure)}
            for seed, record, truth, figure in runs
        ]


def evaluated_runs(
    run: Run, real: list[ArtifactRef], rows: HeldOut, on_path: RowsAtWeights, training: TrainingSettings
) -> RealRuns:
    """Every real run's weights on the held-out rows, by forward passes."""
    events = EventLog.of(run)
    runs = RealRuns([], [], [], [], [])
    for done, ref in enumerate(real, start=1):
        artifact = run.store.open(ref)
        record, delta = artifact.json("record.json"), artifact.tensors("delta.safetensors")
        straight = first_step_extrapolated(artifact.tensors("first_step.safetensors"), training, record)
        runs.records.append(record)
        runs.dead.append(dead_modules(artifact.arrow("layers.parquet").to_pylist()))
        runs.outcomes.append(rows.outcome(delta))
        runs.path_losses.append(on_path.loss(delta))
        runs.first_steps.append(rows.outcome(straight) if straight else None)
        events.emit("progress", task="agreement", done=done, total=len(real))
    return runs


def _numbers(figures: Agreement) -> dict[str, float | None]:
    return {name: None if value is None else number(value) for name, value in asdict(figures).items()}


def _size(record: dict[str, Any]) -> dict[str, Any]:
    return {name: record[name] for name in ("steps", "rows", "seconds")}
