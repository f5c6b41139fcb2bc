"""The DAG without an engine: the same wiring, every task called as the plain function that it is."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from foretune.flows.dag.simulation import simulation
from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import Request, load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.events import EventLog
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.sources import prompt_file, resolve_sources
from foretune.tasks.report.findings import Findings, collect
from foretune.tasks.samples.table import SampleIndex, read_index


@dataclass
class Called:
    """Takes a step of the wiring at once, in this thread; remembers what each step gave."""

    run: Run
    steps: list[tuple[str, ArtifactRef]] = field(default_factory=list)

    def __call__(self, task: Any, **inputs: Any) -> ArtifactRef:
        made = task.fn(run=self.run, **inputs)
        self.steps.append((made.task, made))
        return made

    def ready(self, artifact: ArtifactRef) -> ArtifactRef:
        return artifact

    def index(self, samples: ArtifactRef) -> SampleIndex:
        return read_index(self.run, samples)

    @property
    def computed(self) -> list[str]:
        """Names of the tasks that ran, once per time."""
        return [task for task, made in self.steps if not made.cached]


class Simulated(NamedTuple):
    """One simulation: its steps, and its artefacts, readable by the name of their pass."""

    step: Called
    made: dict[str, ArtifactRef]

    @property
    def store(self) -> ArtifactStore:
        return self.step.run.store

    @property
    def computed(self) -> list[str]:
        return self.step.computed

    @property
    def found(self) -> Findings:
        return collect(self.step.run, self.made)

    def table(self, name: str, file: str) -> list[dict[str, Any]]:
        return self.store.open(self.made[name]).arrow(f"{file}.parquet").to_pylist()

    def tensors(self, name: str, file: str) -> dict[str, Any]:
        return self.store.open(self.made[name]).tensors(f"{file}.safetensors")

    def summary(self, name: str) -> dict[str, Any]:
        return self.store.open(self.made[name]).json("summary.json")

    def signals(self) -> set[str]:
        return {signal["name"] for signal in self.found.signals}


def called(request: Request) -> Wiring:
    """A request's wiring, whose steps are called."""
    sources = resolve_sources(request.dataset, request.model, request.sae, saes=request.saes)
    sources = replace(sources, prompts=prompt_file(request.answers.prompts))
    return Wiring(Called(Run(request.runtime.root, "called")), request, sources)


def run_dag(request: Path | Request, *overrides: str) -> Simulated:
    """Run a request's whole DAG against its root."""
    wanted = request if isinstance(request, Request) else load_request(str(request), list(overrides))
    wiring = called(wanted)
    made = simulation(wiring)
    EventLog.of(wiring.step.run).close()
    return Simulated(wiring.step, made)
