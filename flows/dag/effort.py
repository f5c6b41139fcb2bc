"""The budget spent: which rows are measured and how far each pass goes, so that a simulation keeps to its share.

Everything is counted in tokens through the model, a backward twice, and told from the lengths of the rows alone: the
plan of a request and its run are the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from foretune.flows.request import Request
from foretune.tasks.inputs.training import SampledTraining, TrainingSettings
from foretune.tasks.samples.table import SampleIndex

FEWEST_ROWS = 128
"""Measured at least: of fewer the mean gradient is mostly noise."""
GRADIENT = 3.0  # forwards per measured row: one, and a backward
BESIDE = 0.7  # per measured row: its answer without its prompt, and its activations up to the SAE
AGAIN = 1.0  # passes over the measured rows along the path, for each pass at the base weights
HELD_OUT = 0.08  # of the budget: gradients of held-out rows, each GRADIENT
FIXED = 0.25  # of the budget: what does not grow with the rows, behaviour and curvature among it
READ = 0.5  # of the budget at most: one forward over the rows that are not measured


@dataclass(frozen=True)
class Effort:
    """What a request's budget pays for; without a budget nothing is bounded."""

    budget: float | None = None  # tokens, a backward counted twice
    train_rows: int | None = None  # whose gradients are measured; None: all
    heldout_rows: int | None = None
    reads_others: bool = True  # whether rows that are not measured are read once
    gradient_passes: float | None = None  # over the measured rows, along the path; None: as the request says

    def of(self, request: Request) -> Request:
        """The request as it is spent."""
        if self.gradient_passes is None:
            return request
        prediction = request.prediction.model_copy(
            update={"gradient_passes": self.gradient_passes, "gradient_budget": 1e6}
        )
        return request.model_copy(update={"prediction": prediction})


def effort_of(request: Request, train: SampleIndex, heldout: SampleIndex) -> Effort:
    """From the request's share and the rows' lengths.

    The rows whose gradients are measured get what is left when the held-out rows, the passes that do not grow with
    the rows, and one forward over all other rows are paid; that forward is left out where it costs more than half.
    """
    share = request.effort.share
    if share is None:
        return Effort()
    real = 3.0 * request.training.epochs * sum(train.tokens)
    budget = share * real
    mean, held_mean = _mean(train), _mean(heldout)
    rows, held = len(train.trained_ids), len(heldout.trained_ids)
    per_row = (GRADIENT * (1 + AGAIN) + BESIDE) * mean
    left = (1 - HELD_OUT - FIXED) * budget
    reads = rows * mean <= READ * budget
    if reads:
        left, per_row = left - rows * mean, per_row - mean
    measured = max(FEWEST_ROWS, int(left / per_row))
    if measured >= rows:
        spare = left + (rows * mean if reads else 0.0) - (GRADIENT + BESIDE) * rows * mean
        return Effort(budget, None, _few(HELD_OUT * budget, held_mean, held), True, _passes(spare, rows * mean))
    return Effort(budget, measured, _few(HELD_OUT * budget, held_mean, held), reads, AGAIN)


def trained_on_all(training: TrainingSettings, rows: int) -> TrainingSettings:
    """A run over `rows` of which fewer are measured."""
    return SampledTraining(**training.model_dump(), rows=rows)


def _mean(index: SampleIndex) -> float:
    return sum(index.tokens) / max(len(index.tokens), 1)


def _few(budget: float, mean: float, rows: int) -> int | None:
    """Held-out rows that this pays for, at least as many as a loss needs; None for all."""
    paid = max(FEWEST_ROWS // 2, int(budget / (GRADIENT * mean)))
    return None if paid >= rows else paid


def _passes(spare: float, tokens: float) -> float:
    """Passes over the rows along the path, when every row is measured."""
    return round(min(2.0, max(AGAIN / 2, spare / (GRADIENT * tokens))), 3)
