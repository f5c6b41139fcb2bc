"""Whether the gradient field is stored whole or in factors, and what that takes: from the shapes of the model alone."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretune.flows.request import Request
from foretune.tasks.inputs.factors import FactorSettings
from foretune.tasks.loading.footprint import BYTES, Footprint, footprint
from foretune.tasks.prediction.settings import PredictionSettings

ROWS_GB = 16
"""Of the rows' own gradients beside a field in factors: 370 rows of all linear layers of a 7B model at rank 16."""


MEASURED = frozenset({"landscape_shard", "feature_gradient", "margin_gradient"})
REPLAYED = frozenset({"path", "prediction", "variants", "without_rows"})
"""Tasks that sum gradients as the field has them, and those that replay a run over it. `circuits` forms whole ones."""


@dataclass(frozen=True)
class FieldStorage:
    """How gradients are stored; `factors` is None for whole ones."""

    factors: FactorSettings | None = None
    shapes: Footprint | None = None
    dtype: str = "bfloat16"

    def inputs(self) -> dict[str, Any]:
        """What a pass that measures gradients is given; nothing for whole ones, whose keys know of no factors."""
        return {} if self.factors is None else {"factors": self.factors}

    @property
    def most_rows(self) -> int:
        """Rows whose own gradients are kept."""
        if self.factors is None or self.shapes is None:
            return sys.maxsize
        return int(ROWS_GB * 1e9 / (self.shapes.outputs * self.factors.r * BYTES[self.dtype]))

    @property
    def numbers(self) -> int | None:
        """Of one gradient of all weights in factors; None for whole ones."""
        return self.factors.numbers(*self._sizes) if self.factors and self.shapes else None

    @property
    def _sizes(self) -> tuple[int, int]:
        assert self.shapes is not None
        return self.shapes.outputs, self.shapes.inputs

    def told(self, prediction: PredictionSettings) -> dict[str, Any]:
        """How gradients are stored; of those in factors, what lies beside the field at most: means and shifts."""
        if self.factors is None:
            return {"kind": "full"}
        anchors = prediction.max_anchors if prediction.anchors == "auto" else prediction.anchors
        kept = {"rank": self.factors.rank, "exact_rank": self.factors.r}
        return {"kind": "factored", **kept, "beside_bytes": self.beside_bytes(anchors - 1)}

    def held_bytes(self, task: str, shapes: Footprint) -> int:
        """Of gradients that this task sums: in factors the sums in float32, and the means that a path lies between."""
        if self.factors is None or self.shapes is None or task not in MEASURED | REPLAYED:
            return shapes.sum_bytes
        means = 4 * self.factors.mean_numbers(*self._sizes) if task in REPLAYED else 0
        return (self.factors.sketch_numbers(*self._sizes) + means) * BYTES["float32"]

    def beside_bytes(self, anchors: int) -> int | None:
        """Of both roles' means, and the shifts at `anchors`, with those of held-out rows at every second."""
        if self.factors is None or self.shapes is None:
            return None
        shifts = anchors + (anchors + 1) // 2
        means = 2 * self.factors.mean_numbers(*self._sizes) * BYTES["float32"]
        return means + shifts * self.factors.shift_numbers(*self._sizes) * BYTES[self.dtype]


SPARING_GB = 4
"""Of a whole field on a budget: beyond that what is not measured costs more than what is. 1,000 rows, all linear layers
of a 135M model, 375 steps: 20 GB with the shifts along the path, and 1.3 times the real run's seconds."""


def in_words(told: dict[str, Any]) -> str:
    """What `FieldStorage.told` says of gradients in factors."""
    words = f"gradients are stored in factors: {told['exact_rank']} columns exact, the rest of rank {told['rank']}"
    beside = told["beside_bytes"]
    return words if beside is None else f"{words}; means and shifts along the path at most {beside / 1e6:,.0f} MB more"


def footprint_of(request: Request, folder: Path) -> Footprint | None:
    """Of the model in `folder`, where it decides anything."""
    if request.adapter.method != "lora" or request.landscape.storage == "full":
        return None  # nothing is decided by it
    return footprint(folder, request.adapter.targets)


def field_storage(request: Request, shapes: Footprint | None, nodes: int) -> FieldStorage:
    """Of `nodes` gradients, of training and held-out rows. A model whose shapes nobody knows is stored whole, unless
    the request says otherwise."""
    settings, adapter = request.landscape, request.adapter
    whole = FieldStorage(None, shapes, settings.gradient_dtype)
    if adapter.method != "lora" or settings.storage == "full":
        return whole
    size = nodes * shapes.adapted * BYTES[settings.gradient_dtype] if shapes else 0
    sparing = request.effort.share is not None
    largest = min(SPARING_GB, settings.full_gb) if sparing else settings.full_gb
    if settings.storage == "auto" and size <= largest * 1e9:
        return whole
    factors = FactorSettings(r=adapter.r, seed=request.training.seed, rank=settings.storage_rank)
    return FieldStorage(factors, shapes, settings.gradient_dtype)
