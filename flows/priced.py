"""What a run is said to cost: noted as its tasks are submitted, kept in its folder, held against what it then spent."""

from __future__ import annotations

from typing import Any

from foretune.flows.commands.history import remembered
from foretune.flows.dag.estimate import with_defaults
from foretune.flows.dag.estimates import estimate
from foretune.flows.dag.sizes import Sizes, sizes_of
from foretune.flows.dag.wiring import Step, Wiring
from foretune.storage.refs import ArtifactRef
from foretune.tasks.engine.keys import identity, work_of
from foretune.tasks.engine.passes import pass_label
from foretune.tasks.samples.lengths import Lengths, read_lengths


class Priced:
    """Hands every task on to a step, and remembers what it was."""

    def __init__(self, step: Step) -> None:
        self.step, self.run = step, step.run
        self.noted: list[tuple[Any, dict[str, Any]]] = []

    def __call__(self, task: Any, **inputs: Any) -> Any:
        self.noted.append((task, inputs))
        return self.step(task, **inputs)

    def ready(self, artifact: Any) -> ArtifactRef:
        return self.step.ready(artifact)

    def index(self, samples: Any) -> Any:
        return self.step.index(samples)

    def write(self, wiring: Wiring) -> None:
        """planned.json: of every task of the wiring its tokens through the model, and the seconds that such tasks took
        on this machine."""
        read: dict[str, Lengths] = {}

        def lengths(samples: ArtifactRef) -> Lengths:
            if samples.key not in read:
                read[samples.key] = read_lengths(self.run, samples)
            return read[samples.key]

        sizes = sizes_of(wiring, lengths)
        self.run.write_planned({"tasks": [_told(task, inputs, sizes) for task, inputs in self.noted]})


def _told(task: Any, inputs: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    given = with_defaults(task.fn, inputs)
    found, model = estimate(task.name, given, sizes), inputs.get("model")
    known = remembered(task.name, work_of(inputs), None if model is None else identity(model))
    return {
        "task": task.name,
        "label": pass_label(task.name, given),
        "forward_tokens": found and found.forward,
        "backward_tokens": found and found.backward,
        "bound": found and found.bound,
        "seconds": known.seconds,
    }
