"""Each training row's gradient on its own, in the coordinates in which a LoRA adapter starts to move."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from storage.artifacts import ArtifactRef
from storage.runs import Run
from tasks.adapted import AdaptedModel
from tasks.loading import AdapterSettings, lora_init

if TYPE_CHECKING:
    from torch import Tensor

    from tasks.loading import LoadedModel
    from tasks.numerics.row_gradients import RowGradients, RowTaps

FILE = "rows.safetensors"


class RowCoordinates(BaseModel, frozen=True):
    """The part of an adapter that decides its A0, as peft draws it."""

    r: int
    seed: int


class RowsApart:
    """{name: [rows, out, r]} of one shard; keeps nothing where no coordinates are asked for."""

    def __init__(
        self, loaded: LoadedModel, weights: dict[str, Tensor], coordinates: RowCoordinates | None, rows: int, dtype: Any
    ) -> None:
        import torch

        from tasks.numerics.row_gradients import RowTaps

        self.kept: dict[str, Tensor] = {}
        self.taps: contextlib.AbstractContextManager[RowTaps | None] = contextlib.nullcontext()
        if coordinates is None:
            return
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        initial = lora_init(shapes, AdapterSettings(r=coordinates.r), coordinates.seed, loaded.dtype)
        modules = {name: loaded.model.get_submodule(name.removesuffix(".weight")) for name in weights}
        self.taps = RowTaps(modules, {name: a.to(loaded.device) for name, a in initial.items()})
        self.kept = {name: torch.zeros(rows, shape[0], coordinates.r, dtype=dtype) for name, shape in shapes.items()}

    def keep(self, rows: tuple[int, ...], projected: dict[str, Tensor]) -> None:
        """Put the rows of one micro-batch in their places."""
        for name, parts in projected.items():
            self.kept[name][list(rows)] = parts.to(self.kept[name])


def row_gradients(run: Run, nodes: list[ArtifactRef], adapted: AdaptedModel) -> RowGradients | None:
    """Every row with a label, in the order of its id; None for a full fine-tune, or where nothing is stored."""
    from tasks.numerics.spaces import LoraSpace

    if not isinstance(adapted.space, LoraSpace):
        return None
    return stored_rows(run, nodes, adapted.space.A, adapted.loaded.device)


def stored_rows(
    run: Run, nodes: list[ArtifactRef], factors: dict[str, Tensor], device: Any = "cpu"
) -> RowGradients | None:
    """`row_gradients` without a model at hand; `factors` are the A0 [r, in] in whose coordinates rows were kept."""
    from tasks.numerics.row_gradients import RowGradients

    opened = [run.store.open(node) for node in nodes]
    if not all(FILE in node.names() for node in opened):
        return None
    rows, tokens = [], []
    for node in opened:
        file = node.tensor_file(FILE)
        counts = node.arrow("samples.parquet", columns=["tokens"])["tokens"].to_pylist()
        rows += [(file, position) for position, count in enumerate(counts) if count]
        tokens += [count for count in counts if count]
    return RowGradients(
        factors=factors,
        tokens=tuple(tokens),
        read=lambda row, name: rows[row][0].get_slice(name)[rows[row][1]].to(device),
    )
