"""Two ways to take a step of the DAG by running it: on threads of this process, or on a Ray cluster."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from prefect.exceptions import TerminationSignal
from prefect.task_runners import ThreadPoolTaskRunner

from foretune.flows.engines.progress import progress_shown
from foretune.flows.engines.ray import OnRay, found_in, replaced
from foretune.flows.request import RuntimeSettings
from foretune.storage.events import EventLog, read_events
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.time_limits import pass_minutes, stop_passes
from foretune.tasks.loading import close_models
from foretune.tasks.loading.witnesses import unwatch, watch, weights_unchanged
from foretune.tasks.samples.table import SampleIndex, read_index


@dataclass(eq=False)
class Asked:
    """One task of the wiring, and what it is to be given; submitted once its inputs are made."""

    task: Any
    inputs: dict[str, Any]
    unmade: int = 0  # artefacts among the inputs that are not made yet
    future: Any = None
    needed_by: list[Asked] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.future is not None and self.future.wrapped_future.done()


@dataclass
class Submitted:
    """Submits every task to a Prefect task runner as soon as its inputs are made; artefacts are `Asked`.

    Submitted earlier, a task would wait for its inputs in one of the runner's threads: with as many threads as passes
    may compute at once, two that wait would keep a third from computing.
    """

    run: Run
    runner: Any
    asked: list[Asked] = field(default_factory=list)
    _ended: SimpleQueue[Asked] = field(default_factory=SimpleQueue)  # filled by the runner's threads

    def __call__(self, task: Any, **inputs: Any) -> Asked:
        asked = Asked(task, inputs)
        self.asked.append(asked)
        for needed in {id(each): each for each in found_in(inputs, Asked)}.values():
            if not needed.done:
                needed.needed_by.append(asked)
                asked.unmade += 1
        if not asked.unmade:
            self._submit(asked)
        return asked

    def ready(self, artifact: Any) -> ArtifactRef:
        if isinstance(artifact, ArtifactRef):
            return artifact
        self._wait_for(artifact)
        return artifact.future.result()

    def index(self, samples: Any) -> SampleIndex:
        return read_index(self.run, self.ready(samples))

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Tasks by name: asked for, and ended."""
        asked = list(self.asked)  # another thread may be adding one
        return Counter(a.task.name for a in asked), Counter(a.task.name for a in asked if a.done)

    def finish(self) -> None:
        """Wait for everything; the first failed task in the order of the wiring raises its own error."""
        for asked in self.asked:
            self._wait_for(asked)
        for asked in self.asked:
            asked.future.result()

    def _submit(self, asked: Asked) -> None:
        given = {name: replaced(value, Asked, lambda made: made.future) for name, value in asked.inputs.items()}
        asked.future = self.runner.submit(asked.task, parameters={"run": self.run, **given})
        asked.future.wrapped_future.add_done_callback(lambda _: self._ended.put(asked))

    def _wait_for(self, wanted: Asked) -> None:
        """Until a task has ended, well or not, submit whatever has all its inputs then."""
        while not wanted.done:
            for waiting in self._ended.get().needed_by:
                waiting.unmade -= 1
                if not waiting.unmade:
                    self._submit(waiting)


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
                step = Submitted(run, stack.enter_context(ThreadPoolTaskRunner(max_workers=settings.max_workers)))
            stack.enter_context(progress_shown(step))
            try:
                yield step
            except (KeyboardInterrupt, TerminationSignal):
                stop_passes()  # the runner ends when its threads do
                raise
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
