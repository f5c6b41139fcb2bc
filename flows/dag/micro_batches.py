"""Micro-batches as large as a step of the training that is predicted, at most: a simulation fits where that fits.

Sizes alone, which no key and, but for rounding, no number depends on.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from foretune.flows.request import Request
from foretune.tasks.inputs.curvature import CurvatureSettings
from foretune.tasks.samples.table import SampleIndex

FEWEST = 256
"""Tokens that a pass may always take at once: with less a processor is hardly busy, and they take half a GB of a 135M
model whose weights, libraries and optimizer take two."""

WITH_GRAPH = ("prediction", "influence.scoring", "preference")
"""Sections whose micro-batches keep what a backward needs, as a training step does."""

CURVED = 4
"""A product with the curvature goes backwards through a backward, and one graph is kept while another is built: a
quarter of a step's tokens (on q and v of SmolLM2-135M half of them took 1.5 times the step's memory). Of many layers
such a backward holds a gradient of them all, and no graph is kept."""

FEW_KINDS = 2
"""Of modules that are adapted, as q and v: more of them are many layers."""


def step_tokens(request: Request, train: SampleIndex) -> int:
    """Tokens of the longest rows as one step of the training takes them, of pairs twice the chosen one's."""
    longest = max(train.tokens, default=0)
    paired = request.training.beta_for(train.form) is not None
    rows = min(request.training.batch_size, max(len(train.trained_ids), 1))
    return max(FEWEST, rows * longest * (2 if paired else 1))


def within_step(request: Request, tokens: int) -> Request:
    """The request with no micro-batch of these sections larger than `tokens`; what it sets lower stays."""
    changed: Request = request
    for section in WITH_GRAPH:
        changed = _at_most(changed, [*section.split("."), "batch_tokens"], tokens)
    if request.landscape.graph_tokens is None:  # its micro-batches are told of one by one, and stay
        changed = changed.model_copy(
            update={"landscape": request.landscape.model_copy(update={"graph_tokens": tokens})}
        )
    return changed


def curved_within_step(request: Request, tokens: int) -> CurvatureSettings:
    """The same of products with the curvature. Labels are drawn by micro-batch: what samples them keeps its own."""
    adapter = request.adapter
    wide = adapter.method == "full" or adapter.target_modules == "all-linear" or len(adapter.target_modules) > FEW_KINDS
    settings = _at_most(request.curvature, ["batch_tokens"], tokens // CURVED)
    return _at_most(settings, ["graph_tokens"], 0 if wide else tokens // CURVED)


def _at_most(model: Any, path: list[str], most: int) -> Any:
    name, *further = path
    value = getattr(model, name)
    new = _at_most(value, further, most) if isinstance(value, BaseModel) else min(value, most)
    return model.model_copy(update={name: new})
