"""The measured path of a run as other settings go along it: how far it leads, and whom it serves.

The rules are those of `prediction.along`, by which another run would go along the same path.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import identity
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.prediction.earlier_path import MAX_LR_RATIO, mismatch
from foretune.tasks.prediction.gradient_shifts import HELDOUT_SHIFT, TRAIN_SHIFT, stored_shift
from foretune.tasks.prediction.horizon import trusted_steps
from foretune.tasks.prediction.virtual_run import VirtualRun

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.gradient_shift import GradientShift


@dataclass(frozen=True)
class MeasuredPath:
    """Gradient shifts along the path that a run was predicted along."""

    inputs: dict[str, Any]  # that the path declared
    description: dict[str, Any]  # its path.json
    train: GradientShift
    heldout: GradientShift
    trusted_lr: float  # cumulative learning rate up to which the run's own prediction along it was trusted
    heldout_gradient: dict[str, Tensor] = dataclasses.field(repr=False)  # at the base weights

    @classmethod
    def of(
        cls, run: Run, path: ArtifactRef, points: list[dict[str, Any]], own: VirtualRun, heldout: Any, tolerance: float
    ) -> MeasuredPath | None:
        """The path of `run`, whose own prediction `own` along it was evaluated at `points`; None where nothing but
        the base gradients was measured."""
        stored, manifest = run.store.open(path), run.store.manifest(path.task, path.key)
        train = stored_shift(stored, TRAIN_SHIFT)
        if not train.elapsed_lr or manifest is None:
            return None
        reached = own.elapsed_lr[min(trusted_steps(points, tolerance), own.steps)]
        found = stored.json("path.json")
        return cls(manifest.inputs, found, train, stored_shift(stored, HELDOUT_SHIFT), reached, heldout)

    @property
    def end(self) -> float:
        """Cumulative learning rate up to which the path leads."""
        return self.description["travel"]

    def refusal(self, adapter: AdapterSettings, training: TrainingSettings) -> str:
        """Why the path does not serve a setting; empty where it does, if only for its beginning."""
        wanted = {**self.inputs, "adapter": identity(adapter), "training": identity(training)}
        return mismatch(self.inputs, self.description, wanted, self.description["rows"], 0.0)

    def reach(self, virtual: VirtualRun) -> int:
        """The last step of a run along this path that may be trusted before any of it is evaluated."""
        trusted = min(self.trusted_lr, self.end) * MAX_LR_RATIO
        return max(step for step, elapsed in enumerate(virtual.elapsed_lr) if elapsed <= trusted)

    def ended(self, virtual: VirtualRun) -> str:
        """That the run goes on where the path has ended, in words; empty where it does not."""
        if virtual.elapsed_lr[-1] <= self.end * MAX_LR_RATIO:
            return ""
        last = max(step for step, elapsed in enumerate(virtual.elapsed_lr) if elapsed <= self.end * MAX_LR_RATIO)
        return f"the path ends after step {last} of {virtual.steps}"

    def cuts(self, virtual: VirtualRun) -> set[int]:
        """The steps of a run between which the loss is integrated: those nearest to the measured points."""
        from foretune.tasks.numerics.integrator import nearest_steps

        elapsed = virtual.elapsed_lr
        points = [each for each in (*self.train.elapsed_lr, *self.heldout.elapsed_lr) if each < elapsed[-1]]
        return {*nearest_steps(elapsed, points)} - {0}

    def shifts(self, virtual: VirtualRun) -> list[dict[int, float]]:
        """The weights of the measured points at every step of a run."""
        return [self.train.weights(elapsed) for elapsed in virtual.elapsed_lr[:-1]]
