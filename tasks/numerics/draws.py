"""Draws of tokens from logits, each row from a generator of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor


class Draw:
    """A logits processor by which greedy decoding draws at a temperature: the largest of logits plus Gumbel noise.

    Source: Gumbel 1954; -log of an exponential variable is one of Gumbel's. Each row has its generator, so that a draw
    depends neither on the rows beside it nor on other threads.
    """

    def __init__(self, generators: Sequence[Generator], temperature: float) -> None:
        self.generators, self.temperature = generators, temperature

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores [b, V] of which the largest is the draw."""
        drawn = [torch.empty(scores.shape[-1]).exponential_(generator=each) for each in self.generators]
        return scores / self.temperature - torch.stack(drawn).log().to(scores)
