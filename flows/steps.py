"""Two ways to take a step of the DAG: submit its task to a runner, or ask whether its artefact is stored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from storage.artifacts import ArtifactRef
from storage.runs import Run
from tasks.samples import SampleIndex, read_index


@dataclass
class Submitted:
    """Submits every task to a Prefect task runner; artefacts are futures."""

    run: Run
    runner: Any
    futures: list[Any] = field(default_factory=list)

    def __call__(self, task: Any, **inputs: Any) -> Any:
        future = self.runner.submit(task, parameters={"run": self.run, **inputs})
        self.futures.append(future)
        return future

    def ready(self, artifact: Any) -> ArtifactRef:
        return artifact if isinstance(artifact, ArtifactRef) else artifact.result()

    def index(self, samples: Any) -> SampleIndex:
        return read_index(self.run, self.ready(samples))

    def finish(self) -> None:
        """Wait for everything; the first failed task in the order of submission raises its own error."""
        for future in self.futures:
            future.wait()
        for future in self.futures:
            future.result()
