"""The DAG without Prefect: every task runs at once, here, in the order of the wiring."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.flows.dag.simulation import simulation
from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import load_request
from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.sources import resolve_sources
from foretune.tasks.samples.table import SampleIndex, read_index


@dataclass
class Inline:
    """Takes a step of the wiring by calling the task's function; remembers what each step gave."""

    run: Run
    steps: list[tuple[str, ArtifactRef]] = field(default_factory=list)

    def __call__(self, task: Any, **inputs: Any) -> ArtifactRef:
        ref = task.fn(run=self.run, **inputs)
        self.steps.append((ref.task, ref))
        return ref

    def ready(self, artifact: ArtifactRef) -> ArtifactRef:
        return artifact

    def index(self, samples: ArtifactRef) -> SampleIndex:
        return read_index(self.run, samples)

    @property
    def computed(self) -> list[str]:
        """Names of the tasks that ran, once per time."""
        return [task for task, ref in self.steps if not ref.cached]


def run_inline(request: Path, *overrides: str) -> tuple[Inline, dict[str, ArtifactRef]]:
    """Run a request's whole DAG against its root; the step and the artefacts by name."""
    wanted = load_request(str(request), list(overrides))
    step = Inline(Run(wanted.runtime.root, "inline"))
    made = simulation(Wiring(step, wanted, resolve_sources(wanted.dataset, wanted.model, wanted.sae)))
    EventLog.of(step.run).close()
    return step, made
