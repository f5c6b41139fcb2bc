"""The stored gradients: summed over the rows of each block, and of each row on its own in LoRA coordinates."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.storage.tensor_files import TensorFile
from foretune.tasks.inputs.adapted import AdaptedModel
from foretune.tasks.inputs.factors import GRADIENTS, RECORD, GradientFile
from foretune.tasks.loading import AdapterSettings, lora_init

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.field import GradientField
    from foretune.tasks.numerics.row_gradients import RowGradients, RowTaps

FILE = "rows.safetensors"


def gradient_field(run: Run, nodes: list[ArtifactRef], adapted: AdaptedModel) -> GradientField:
    """The stored gradient sums of all blocks with a trained token, read when they are asked for."""
    return stored_field(run, nodes, tuple(adapted.weights), adapted.loaded.device)


def stored_field(run: Run, nodes: list[ArtifactRef], names: tuple[str, ...], device: Any = "cpu") -> GradientField:
    """`gradient_field` without a loaded model."""
    from foretune.tasks.numerics.field import GradientField

    opened = [run.store.open(node) for node in nodes]
    kept = [(node, node.json("shard.json")) for node in opened]
    kept = [(node, counts) for node, counts in kept if counts["tokens"]]
    files = [GradientFile(node, GRADIENTS, counts.get(RECORD), counts["modules"]) for node, counts in kept]
    return GradientField(
        names=names,
        tokens=tuple(counts["tokens"] for _, counts in kept),
        rows=tuple(counts["rows"] for _, counts in kept),
        read=lambda node, name: files[node].read(name, device),
    )


class RowCoordinates(BaseModel, frozen=True):
    """The part of an adapter that decides its A0, as peft draws it."""

    r: int
    seed: int


class PerRowGradients:
    """Per-row gradients {name: [rows, out, r]} of one shard while it is measured; empty without coordinates.

    `tapped` says whether they are recorded here, or fall out of a sum in factors.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        weights: dict[str, Tensor],
        coordinates: RowCoordinates | None,
        rows: int,
        dtype: Any,
        *,
        tapped: bool = True,
    ) -> None:
        import torch

        from foretune.tasks.numerics.row_gradients import RowTaps

        self.kept: dict[str, Tensor] = {}
        self.taps: contextlib.AbstractContextManager[RowTaps | None] = contextlib.nullcontext()
        if coordinates is None:
            return
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        if tapped:
            initial = lora_init(shapes, AdapterSettings(r=coordinates.r), coordinates.seed, loaded.dtype)
            modules = {name: loaded.model.get_submodule(name.removesuffix(".weight")) for name in weights}
            self.taps = RowTaps(modules, {name: a.to(loaded.device) for name, a in initial.items()})
        self.kept = {name: torch.zeros(rows, shape[0], coordinates.r, dtype=dtype) for name, shape in shapes.items()}

    def keep(self, rows: tuple[int, ...], projected: dict[str, Tensor]) -> None:
        """Store the gradients of one micro-batch at the positions of its rows."""
        for name, parts in projected.items() if self.kept else ():
            self.kept[name][list(rows)] = parts.to(self.kept[name])


def row_gradients(run: Run, nodes: list[ArtifactRef], adapted: AdaptedModel) -> RowGradients | None:
    """Every row with a label, in the order of its id; None for a full fine-tune, or where nothing is stored."""
    from foretune.tasks.numerics.spaces import LoraSpace

    if not isinstance(adapted.space, LoraSpace):
        return None
    return stored_rows(run, nodes, adapted.space.A, adapted.loaded.device)


def stored_rows(
    run: Run, nodes: list[ArtifactRef], factors: dict[str, Tensor], device: Any = "cpu"
) -> RowGradients | None:
    """`row_gradients` without a loaded model; `factors` are the A0 [r, in] in whose coordinates they are stored."""
    from foretune.tasks.numerics.row_gradients import RowGradients

    opened = [run.store.open(node) for node in nodes]
    if not all(FILE in node.names() for node in opened):
        return None
    rows, tokens, files = [], [], [node.read_tensors(FILE) for node in opened]
    for number, node in enumerate(opened):
        counts = node.arrow("samples.parquet", columns=["tokens"])["tokens"].to_pylist()
        rows += [(number, position) for position, count in enumerate(counts) if count]
        tokens += [count for count in counts if count]

    def read(numbers: Sequence[int], name: str) -> Tensor:
        return TensorFile.stacked([(files[rows[number][0]], rows[number][1]) for number in numbers], name).to(device)

    return RowGradients(factors=factors, tokens=tuple(tokens), read=read)


@dataclass(frozen=True)
class StoredRows:
    """Per-row gradients of every row with a label, in the order of the ids, read one module at a time.

    `block(name)` is [n, out * r] fp32, scale x G_i A0^T: the row's summed loss in the coordinates B of LoRA.
    """

    ids: list[str]
    tokens: list[float]  # label tokens per row (1 per pair for DPO)
    names: list[str]
    scale: float  # alpha / r, or alpha / sqrt(r)
    _files: list[tuple[Any, list[int]]]  # rows.safetensors of a block, and its rows with a label

    def block(self, name: str) -> Tensor:
        import torch

        parts = [file.tensor(name)[kept].flatten(1).float() for file, kept in self._files]
        return torch.cat(parts).mul_(self.scale)


def per_row_gradients(run: Run, nodes: list[ArtifactRef], scale: float) -> StoredRows | None:
    """The per-row gradients that the landscape stored beside these gradient blocks; None where it stored none."""
    opened = [run.store.open(node) for node in nodes]
    if not all(FILE in node.names() for node in opened):
        return None
    ids, tokens, files = [], [], []
    for node in opened:
        rows = node.arrow("samples.parquet", columns=["sample_id", "tokens"]).to_pylist()
        kept = [position for position, row in enumerate(rows) if row["tokens"]]
        ids += [rows[position]["sample_id"] for position in kept]
        tokens += [rows[position]["tokens"] for position in kept]
        files.append((node.read_tensors(FILE), kept))
    return StoredRows(ids, tokens, files[0][0].names(), scale, files)
