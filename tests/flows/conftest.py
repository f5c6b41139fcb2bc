"""The DAG without an engine: the same wiring, every task called as the plain function that it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from foretune.flows.dag.simulation import simulation
from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import Request, load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.sources import resolve_sources
from foretune.tasks.report.findings import Findings, collect
from foretune.tasks.samples.table import SampleIndex, read_index


@dataclass
class Called:
    """Takes a step of the wiring at once, in this thread; remembers which artefacts were computed."""

    run: Run
    computed: list[str] = field(default_factory=list)

    def __call__(self, task: Any, **inputs: Any) -> ArtifactRef:
        made = task.fn(run=self.run, **inputs)
        if not made.cached:
            self.computed.append(made.task)
        return made

    def ready(self, artifact: ArtifactRef) -> ArtifactRef:
        return artifact

    def index(self, samples: ArtifactRef) -> SampleIndex:
        return read_index(self.run, samples)


@dataclass(frozen=True)
class Simulated:
    """One simulation's artefacts, readable by the name of their pass."""

    store: ArtifactStore
    made: dict[str, ArtifactRef]
    computed: list[str]
    found: Findings

    def table(self, name: str, file: str) -> list[dict[str, Any]]:
        return self.store.open(self.made[name]).arrow(f"{file}.parquet").to_pylist()

    def tensors(self, name: str, file: str) -> dict[str, Any]:
        return self.store.open(self.made[name]).tensors(f"{file}.safetensors")

    def summary(self, name: str) -> dict[str, Any]:
        return self.store.open(self.made[name]).json("summary.json")

    def signals(self) -> set[str]:
        return {signal["name"] for signal in self.found.signals}


def run_dag(request: Request) -> Simulated:
    step = Called(Run(request.runtime.root, "called"))
    made = simulation(Wiring(step, request, resolve_sources(request.dataset, request.model, request.sae)))
    return Simulated(step.run.store, made, step.computed, collect(step.run, made))


@pytest.fixture
def simulated(tiny_request: Path) -> Callable[..., Simulated]:
    """`simulated("a.b=c", ...)` runs the whole DAG of the tiny request with these settings changed."""
    return lambda *overrides: run_dag(load_request(str(tiny_request), list(overrides)))


@pytest.fixture
def reference(tiny_llama: Path) -> Any:
    """The tiny model, opened by transformers alone."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_llama, attn_implementation="eager").requires_grad_(False)
