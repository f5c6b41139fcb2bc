"""Events of a real training run, written as a simulation writes its own: `foretune watch` follows both.

Trainer(..., callbacks=[TrainingEvents(".foretune", "tickets")])
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foretune.storage.events import EventLog
from foretune.storage.runs import Run, new_run_id
from foretune.tasks.landscape.signals import SignalThresholds, count_dead, landscape_signals, layer_table


class TrainingEvents(TrainerCallback):
    """Writes `pass_started`, the number of steps as `progress`, a `step` per logged optimizer step, `signal`s and
    `run_finished` of one training.

    Gradient norms are per trainable parameter, averaged over the micro-batches of a step and taken back to what
    they were before clipping. With `logging_steps` above 1 a step's loss is the mean since the last one.
    With `within`, the training is a pass of that run, called `task`: it writes its steps and signals there, and
    leaves the run's beginning and end to the run.
    """

    def __init__(
        self,
        root: str,
        name: str = "training",
        thresholds: SignalThresholds | None = None,
        *,
        within: Run | None = None,
        task: str = "training",
    ) -> None:
        self.run = within or Run(root, new_run_id(datetime.now(UTC), name))
        self.whole, self.task = within is None, task
        self.layers: list[dict[str, Any]] = []
        self.signals: list[dict[str, Any]] = []
        self.thresholds = thresholds or SignalThresholds()
        self.modules: list[str] = []
        self.norms: list[float] = []
        self.steps: list[dict[str, Any]] = []
        self.events = EventLog(self.run, source="training")
        self.started = time.perf_counter()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.modules = [name for name, p in kwargs["model"].named_parameters() if p.requires_grad]
        self.started = time.perf_counter()
        if self.whole:
            self.events.emit("pass_started", task=self.task, label=self.task, modules=self.modules)
        self.events.emit("progress", task=self.task, done=state.global_step, total=state.max_steps)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.requires_grad]
        self.norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in gradients]

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs or not self.norms:
            return
        norms = _before_clipping(self.norms, logs.get("grad_norm"))
        step = {
            "loss": logs["loss"],
            "mean_grad_norm": sum(norms) / len(norms),
            "max_grad_norm": max(norms),
            "layer_grad_norms": norms,
        }
        self.steps.append(step)
        self.events.emit(
            "step",
            task=self.task,
            step=state.global_step,
            epoch=state.epoch or 0.0,
            learning_rate=logs.get("learning_rate", 0.0),
            dead_layers=count_dead(norms, self.thresholds),
            **step,
        )

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.steps:
            self.layers = layer_table(self.modules, self.steps, self.norms, self.thresholds.dead_layer_norm)
            self.signals = landscape_signals("train", self.layers, self.steps, args.max_grad_norm, self.thresholds)
        for signal in self.signals:
            self.events.emit("signal", **signal)
        if self.whole:
            seconds = round(time.perf_counter() - self.started, 3)
            self.events.emit("pass_finished", task=self.task, label=self.task, cached=False, seconds=seconds)
            self.events.emit("run_finished", status="completed")
        self.events.close()


def _before_clipping(norms: list[float], logged: float | None) -> list[float]:
    """The norms scaled so that together they have the global norm that the trainer logged before it clipped."""
    total = sum(norm**2 for norm in norms) ** 0.5
    return [norm * float(logged) / total for norm in norms] if logged and total else norms
