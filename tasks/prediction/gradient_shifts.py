"""The gradient shifts of a measured path as it stores them: a file per kind and step, in the field's dtype."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact
from foretune.tasks.inputs.factors import RECORD, GradientFile, write_gradients

if TYPE_CHECKING:
    from foretune.tasks.numerics.factored import Gradient
    from foretune.tasks.numerics.gradient_shift import GradientShift

TRAIN_SHIFT, HELDOUT_SHIFT = "drift", "heldout_drift"
"""Kinds, as stored: of the mean gradient of the training rows, and of that of the held-out rows."""


class ShiftFiles:
    """Writes gradient shifts while a path is being measured, and remembers their steps.

    Those in factors are cut to `rank`; `record` says then of which adapter they are.
    """

    def __init__(self, draft: Any, dtype: Any, record: dict[str, Any] | None = None, rank: int = 0) -> None:
        self.draft, self.dtype, self.steps = draft, dtype, dict[str, list[int]]()
        self.record, self.rank = record, rank

    def write(self, kind: str, step: int, shift: dict[str, Gradient]) -> None:
        """`shift` {name: [out, in]}: the mean gradient at `step` minus that at the base weights."""
        if self.record is not None:
            shift = {name: change.truncated(self.rank) for name, change in shift.items()}  # pyright: ignore[reportAttributeAccessIssue]
        write_gradients(self.draft, shift_file(kind, step), shift, self.dtype)
        self.steps.setdefault(kind, []).append(step)


def stored_shift(path: Artifact, kind: str, device: Any = "cpu") -> GradientShift:
    """A gradient shift along a stored path, read where it is asked for.

    Of every weight the last two points are kept, matrices in the stored dtype: steps between two points ask for the
    same two.
    """
    from foretune.tasks.numerics.gradient_shift import GradientShift

    description = path.json("path.json")
    points, record = description["moved"].get(kind, []), description.get(RECORD)
    modules = record["modules"] if record else []
    files = [GradientFile(path, shift_file(kind, step), record, modules) for step, _ in points]
    elapsed_lr = tuple(elapsed for _, elapsed in points)
    kept: dict[str, dict[int, Gradient]] = {}

    def read(point: int, name: str) -> Gradient:
        found = kept.setdefault(name, {})
        if point in found:
            found[point] = found.pop(point)  # asked for last
        else:
            if len(found) == 2:
                found.pop(next(iter(found)))
            shift = files[point].read(name, device)
            found[point] = shift.float() if record else shift
        return found[point]

    return GradientShift(elapsed_lr, read)


def shift_file(kind: str, step: int) -> str:
    return f"{kind}-{step:06d}.safetensors"
