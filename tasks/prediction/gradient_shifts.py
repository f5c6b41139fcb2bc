"""The gradient shifts of a measured path as it stores them: a file per kind and step, in the field's dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.gradient_shift import GradientShift

TRAIN_SHIFT, HELDOUT_SHIFT = "drift", "heldout_drift"
"""Kinds, as stored: of the mean gradient of the training rows, and of that of the held-out rows."""


class ShiftFiles:
    """Writes gradient shifts while a path is being measured, and remembers their steps."""

    def __init__(self, draft: Any, dtype: Any) -> None:
        self.draft, self.dtype, self.steps = draft, dtype, dict[str, list[int]]()

    def write(self, kind: str, step: int, shift: dict[str, Tensor]) -> None:
        """`shift` {name: [out, in]}: the mean gradient at `step` minus that at the base weights."""
        stored = {name: change.to(self.dtype) for name, change in shift.items()}
        self.draft.write_tensors(shift_file(kind, step), stored)
        self.steps.setdefault(kind, []).append(step)


def stored_shift(path: Artifact, kind: str, device: Any = "cpu") -> GradientShift:
    """A gradient shift along a stored path, memory-mapped."""
    from foretune.tasks.numerics.gradient_shift import GradientShift

    points = path.json("path.json")["moved"].get(kind, [])
    files = [path.tensor_file(shift_file(kind, step)) for step, _ in points]
    elapsed_lr = tuple(elapsed for _, elapsed in points)
    return GradientShift(elapsed_lr, lambda point, name: files[point].get_tensor(name).to(device))


def shift_file(kind: str, step: int) -> str:
    return f"{kind}-{step:06d}.safetensors"
