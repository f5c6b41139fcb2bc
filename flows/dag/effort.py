"""The budget spent: which rows are measured and how far each pass goes, so that a simulation keeps to its share.

Everything is counted in tokens through the model, a backward twice, and told from the lengths of the rows alone: the
plan of a request and its run are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from foretune.flows.dag.fixed import asked_tokens, other_tokens, within
from foretune.flows.request import Request
from foretune.tasks.inputs.training import SampledTraining, TrainingSettings
from foretune.tasks.loading.autocast import AUTOCAST, fast_bfloat16
from foretune.tasks.prediction.settings import PathSettings
from foretune.tasks.samples.table import SampleIndex

FEWEST_ROWS = 128
"""Measured at least: of fewer the mean gradient is mostly noise. Cosine of the mean gradient of some of 1,000
conversations with that of all: 185 rows 0.90, 300 0.94, 400 0.965, 600 0.98."""
GRADIENT = 3  # forwards: one, and a backward
BESIDE_ROWS, BESIDE = 128, 0.7  # rows whose prompts are taken away and whose features are counted; forwards of each
PAIRED, FEWEST_PAIRS = 6, 8
"""Forwards of a preference pair that is read: with gradients at the base weights, and by both models compared."""
OF_PAIRS = 0.1  # of the budget, for the pairs that are read: at most BESIDE_ROWS of them
FIXED = 0.3  # of the budget at most: what does not grow with the rows, behaviour and curvature among it
BESIDE_BUDGET = 0.07  # of the real run: so much of that comes on top of the budget, the rest out of it
PADDED = 1.12  # tokens of a micro-batch with its padding, for one of its rows'
ASKED, DEARER = 0.1, 3.3
"""Suites and answers cost so much of the real run at most, whatever the budget; each of their tokens, told from texts
without a template's marks, read in small batches and written one by one, as many of a training's (13 ms and 3.8)."""
MARKED = 2.4  # tokens of theirs through the model, with a template's marks and padding, for one of their texts'
HELD_OUT = 0.04  # of the budget: gradients of held-out rows
ALONG, MOST_ALONG = 0.36, 8192
"""Of what is left: gradients along the path, of so many rows at most (128 rows at each of 64 anchors). Over the same
1,000 conversations the square of what the direction misses was about 70 (1/measured - 1/1,000) + 140/along; means
that are steadied need fewer along the path. Cosine at a budget of 0.33: 0.45 0.846, 0.36 0.864, 0.28 0.822."""
MOST_PASSES = 4.0  # over the measured rows, along the path
EVALUATIONS, FEWEST_EVALUATIONS, EVALUATED = 4, 2, 0.06
"""Of the held-out rows along the path, gradients too: with 17 anchors nine cost as much as a third of the rows there.
As many as this part of the budget pays for: of a small one four cost more than its rows along the path."""
ANCHORS = 65  # at most: over 1,000 rows and 375 steps few rows at many steps are nearer than many at few
LONG_RUN, LONG_BUDGET, LONG_EVALUATIONS = 224, 5 / 6, 8
"""Without a budget, steps beyond which the settings' own 17 anchors leave segments of more than fourteen; a longer run
of LoRA is measured at more of them, with so much of its gradient samples. 1,000 conversations, 375 steps: cosine 0.921
by 512 rows at 16 anchors, 0.925 by as many at 27, 0.963 by 1,500."""
READ = 0.25  # of what is left: rows without gradients, once, and where all are read, once more beside the base weights


@dataclass(frozen=True)
class Effort:
    """What a request's budget pays for; without a budget nothing is bounded, and a long run's path is measured more
    closely."""

    train_rows: int | None = None  # whose gradients are measured; None: all
    heldout_rows: int | None = None
    beside_rows: int | None = None  # whose prompts are taken away, and whose features are counted; None: all measured
    pair_rows: int | None = None  # preference pairs whose margins are taken; None: all
    read_rows: int = 0  # of the others, which are read once
    differences: bool = False  # whether these are read once more, beside the base weights
    gradient_passes: float | None = None  # over the measured rows, along the path; None: as the request says
    evaluations: int = EVALUATIONS  # of the held-out rows, along the path
    fixed: float = 1.0  # share of what does not grow with the rows
    asked: float = 1.0  # the same of suites and answers
    paired: bool = False
    autocast: bool = False  # of what is measured on training rows
    long: bool = False  # without a budget, whether the run is longer than the path's own settings are made for

    def line(self, measured: int, rows: int) -> str | None:
        """What was looked at of the training rows, in words; None without a budget."""
        if self.gradient_passes is None:
            return None
        again = round(self.gradient_passes * measured)
        words = [f"gradients of {measured:,} of {rows:,} rows", f"of at most {again:,} again along the path"]
        if measured < rows:
            words.append(
                f"{min(self.read_rows, rows - measured):,} others {'read twice' if self.differences else 'read'}"
            )
        if self.beside_rows:
            words.append(f"{self.beside_rows} without their prompts")
        if self.pair_rows:
            words.append(f"the margins of at most {self.pair_rows} pairs")
        in_bfloat16 = "; training rows under autocast to bfloat16" if self.autocast else ""
        return "on a budget: " + ", ".join(words) + in_bfloat16

    def of(self, request: Request) -> Request:
        """The request as it is spent."""
        path = request.prediction
        if self.gradient_passes is None:
            closer = {"max_anchors": ANCHORS, "gradient_budget": LONG_BUDGET, "evaluations": LONG_EVALUATIONS}
            return _with_path(request, closer) if self.long else request
        spent = {"gradient_passes": self.gradient_passes, "gradient_budget": 1e6}
        if path.max_anchors == PathSettings().max_anchors:
            spent["max_anchors"] = ANCHORS
        if path.evaluations is None:
            spent["evaluations"] = self.evaluations
        return within(_with_path(request, spent), self.fixed, self.asked, self.paired)


def _with_path(request: Request, changed: dict[str, Any]) -> Request:
    return request.model_copy(update={"prediction": request.prediction.model_copy(update=changed)})


def effort_of(
    request: Request, train: SampleIndex, heldout: SampleIndex, preferences: SampleIndex | None = None
) -> Effort:
    """From the request's share and the rows' lengths, in rows of mean length. Every part grows with the share, so that
    a larger one keeps what a smaller one measured."""
    share = request.effort.share
    if not sum(train.tokens) or not sum(heldout.tokens):
        return Effort()
    if share is None:
        return Effort(long=_is_long(request, len(train.trained_ids)))
    mean, held_mean = _mean(train), _mean(heldout)
    rows, real = len(train.trained_ids), GRADIENT * request.training.epochs * sum(train.tokens)
    held = _few(HELD_OUT * share * real / held_mean, len(heldout.trained_ids))
    paired, price = request.training.beta_for(train.form) is not None, _Price.of(request)
    all_asked, others = asked_tokens(request, held_mean), other_tokens(request, held_mean)
    fixed = min(1.0, FIXED * share * real / (all_asked + others))
    asked = min(fixed, ASKED * real / (DEARER * all_asked)) if all_asked else fixed
    cut = within(request, fixed, asked, paired)
    spent = other_tokens(cut, held_mean) + MARKED * asked_tokens(cut, held_mean)
    out_of_it = max(0.0, spent - BESIDE_BUDGET * real)
    evaluations = cut.prediction.evaluations or _evaluations(cut, EVALUATED * share * real / held_mean)
    looks = cut.prediction.evaluation_rows * (GRADIENT * evaluations + cut.prediction.path_points)
    looked_at = GRADIENT * (held or len(heldout.trained_ids)) + looks
    beside = BESIDE * min(BESIDE_ROWS, rows) + looked_at * held_mean / mean
    pair_rows, of_pairs = _pairs(preferences or (train if paired else None), share * real, 1 if paired else 2)
    beside += of_pairs / mean
    left = ((share * real - out_of_it) / (PADDED * mean) - beside) / price.forward
    along = max(min(FEWEST_ROWS, rows) // 2, min(MOST_ALONG, int(ALONG * left / GRADIENT)))
    measured = max(FEWEST_ROWS, price.rows((1 - READ) * left - GRADIENT * along, rows))
    if measured >= rows:  # what is left over goes along the path
        measured, along = rows, max(along, int((left - price.forwards(rows)) / GRADIENT))
    else:
        spare = int(((1 - READ) * left - price.forwards(measured)) / GRADIENT)
        along = max(along, min(MOST_ALONG, spare))
    read = max(0, int(left - price.forwards(measured) - GRADIENT * along))
    return Effort(
        train_rows=None if measured == rows else measured,
        heldout_rows=held,
        beside_rows=BESIDE_ROWS if rows > BESIDE_ROWS else None,
        pair_rows=pair_rows,
        read_rows=min(read, rows - measured),
        differences=read * price.forward >= 2 * (rows - measured),
        gradient_passes=round(min(MOST_PASSES, along / measured), 3),
        evaluations=evaluations,
        fixed=round(fixed, 3),
        asked=round(asked, 3),
        paired=paired,
        autocast=price.forward < 1,
    )


def _pairs(pairs: SampleIndex | None, budget: float, sides: int) -> tuple[int | None, float]:
    """How many preference pairs are read, and their tokens through the model; a pair's length is that of its chosen
    answer, of a run on pairs so is every other count, else both of its `sides` are counted."""
    if pairs is None or not sum(pairs.tokens):
        return None, 0.0
    price = PAIRED * sides * _mean(pairs)
    paid = min(BESIDE_ROWS, max(FEWEST_PAIRS, int(OF_PAIRS * budget / price)))
    few = min(paid, len(pairs.trained_ids))
    return paid, few * price


@dataclass(frozen=True)
class _Price:
    """Forwards of measured rows, in those that a row takes. Beyond the rows whose own gradients are kept each is scored
    by another forward and backward, and batches are no longer those of its rows."""

    kept: int
    forward: float  # of a training row, in forwards in float32

    @classmethod
    def of(cls, request: Request) -> _Price:
        kept = request.landscape.row_gradients if request.adapter.method == "lora" else 0
        return cls(kept, AUTOCAST if autocast(request) else 1.0)

    def forwards(self, rows: int) -> int:
        return rows * GRADIENT * (1 if rows <= self.kept else 2)

    def rows(self, forwards: float, of: int) -> int:
        """As many of the `of` rows as so many forwards pay for; no more than are kept one by one, where these are
        enough."""
        once = int(forwards / GRADIENT)
        if of <= self.kept:
            return once
        most = self.kept - self.kept // 16  # whole blocks are measured, a few rows more than are asked for
        return min(once, most) if most >= FEWEST_ROWS else max(min(once, most), int(forwards / (2 * GRADIENT)))


def autocast(request: Request) -> bool:
    """Whether training rows are measured in bfloat16 under float32 weights, on a budget."""
    if request.model.dtype != "float32" or request.effort.autocast == "never":
        return False
    return request.effort.autocast == "always" or fast_bfloat16(request.model.device)


def _is_long(request: Request, rows: int) -> bool:
    """Whether LoRA is trained over more steps than the path's own settings are made for, and these are the defaults."""
    asked, usual = request.prediction, PathSettings()
    own = any(
        getattr(asked, name) != getattr(usual, name)
        for name in ("anchors", "max_anchors", "gradient_budget", "gradient_passes")
    )
    if own or asked.evaluations is not None or request.adapter.method != "lora":
        return False
    return request.training.steps(rows) > LONG_RUN


def _evaluations(request: Request, paid: float) -> int:
    """As many as so many forwards of held-out rows pay for."""
    return max(FEWEST_EVALUATIONS, min(EVALUATIONS, int(paid / (GRADIENT * request.prediction.evaluation_rows))))


def trained_on_all(training: TrainingSettings, rows: int) -> TrainingSettings:
    """A run over `rows` of which fewer are measured."""
    return SampledTraining(**training.model_dump(), rows=rows)


def _mean(index: SampleIndex) -> float:
    return sum(index.tokens) / max(len(index.tokens), 1)


def _few(paid: float, rows: int) -> int | None:
    """Held-out rows whose gradients are paid for, at least as many as a loss needs; None for all."""
    few = max(FEWEST_ROWS // 2, int(paid / GRADIENT))
    return None if few >= rows else few
