"""Two ways to take a step of the DAG by running it: on threads of this process, or on a Ray cluster."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prefect.task_runners import ThreadPoolTaskRunner

from flows.progress import progress_shown
from flows.request import RuntimeSettings
from flows.runners import OnRay
from storage.events import EventLog, read_events
from storage.refs import ArtifactRef
from storage.runs import Run
from tasks.invariants import BrokenInvariant, unwatch, watch, weights_unchanged
from tasks.loading import close_models
from tasks.samples import SampleIndex, read_index
from tasks.time_limits import pass_minutes
from tasks.turns import at_once

WAITING = 64
"""Tasks that may wait for their inputs while others compute: the shards of a pass, and all that comes after them."""


@dataclass
class Submitted:
    """Submits every task to a Prefect task runner; artefacts are futures."""

    run: Run
    runner: Any
    asked: list[Any] = field(default_factory=list)
    _names: list[str] = field(default_factory=list)  # of the tasks, in the order of `asked`

    def __call__(self, task: Any, **inputs: Any) -> Any:
        future = self.runner.submit(task, parameters={"run": self.run, **inputs})
        self._names.append(task.name)
        self.asked.append(future)
        return future

    def ready(self, artifact: Any) -> ArtifactRef:
        return artifact if isinstance(artifact, ArtifactRef) else artifact.result()

    def index(self, samples: Any) -> SampleIndex:
        return read_index(self.run, self.ready(samples))

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Tasks by name: asked for, and ended."""
        pairs = list(zip(self._names, self.asked, strict=False))  # another thread may be adding one
        ended = (name for name, future in pairs if future.wrapped_future.done())
        return Counter(name for name, _ in pairs), Counter(ended)

    def finish(self) -> None:
        """Wait for everything; the first failed task in the order of submission raises its own error."""
        for future in self.asked:
            future.wait()
        for future in self.asked:
            future.result()


@contextlib.contextmanager
def steps_on(run: Run, settings: RuntimeSettings) -> Iterator[Submitted | OnRay]:
    """The steps of a run on the runner that its settings name; what was started for them ends with the block.

    However the block ends, the base weights must then be what they were when the run opened them (BrokenInvariant).
    """
    watch(run)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(pass_minutes(settings.pass_minutes))
            if settings.runner == "ray":
                step = OnRay(run, settings, stack)
            else:
                stack.enter_context(at_once(settings.max_workers))
                threads = settings.max_workers + WAITING
                step = Submitted(run, stack.enter_context(ThreadPoolTaskRunner(max_workers=threads)))
            stack.enter_context(progress_shown(step))
            yield step
    finally:
        _compare_weights(run)


def _compare_weights(run: Run) -> None:
    """BrokenInvariant where a base weight moved. What the run computed is deleted then: the next run would find it
    under the key of other numbers."""
    try:
        weights_unchanged(run)
    except BrokenInvariant:
        close_models()
        EventLog.of(run).flush()
        for event in read_events(run):
            if event["type"] == "pass_finished" and not event.get("cached"):
                run.store.delete(event["task"], event["key"])
        raise
    finally:
        unwatch(run)
