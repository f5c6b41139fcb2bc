"""Runs the tasks of the DAG on threads of this process; `steps_on` chooses between these and a Ray cluster."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

from prefect.exceptions import TerminationSignal
from prefect.task_runners import ThreadPoolTaskRunner

from foretune.flows.engines.progress import Counts, progress_shown
from foretune.flows.engines.ray import OnRay, found_in, replaced
from foretune.flows.request import RuntimeSettings
from foretune.storage.events import EventLog, read_events
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.memory import keep_heap
from foretune.tasks.engine.time_limits import pass_minutes, stop_passes
from foretune.tasks.loading import close_models
from foretune.tasks.loading.witnesses import unwatch, watch, weights_unchanged
from foretune.tasks.samples.table import SampleIndex, read_index


@dataclass(eq=False)
class SubmittedTask:
    """One task of the wiring with its inputs; the runner is given it once these are made."""

    task: Any
    inputs: dict[str, Any]
    unmade: int = 0  # artefacts among the inputs that are not made yet
    future: Any = None
    needed_by: list[SubmittedTask] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.future is not None and self.future.wrapped_future.done()

    @functools.cached_property
    def found(self) -> bool:
        """Whether the artefact was stored before; to be asked of one that has ended."""
        if self.future.wrapped_future.exception():  # the task could not even be told to the server
            return False
        state = self.future.wrapped_future.result()  # `future.state` asks the server
        return bool(state.is_completed() and self.future.result().cached)


@dataclass
class OnThreads:
    """Hands every task to a Prefect task runner as soon as its inputs are made; artefacts are `SubmittedTask`.

    Handed over earlier, a task would wait for its inputs in one of the runner's threads: with as many threads as passes
    may compute at once, two that wait would keep a third from computing.
    """

    run: Run
    runner: Any
    submitted: list[SubmittedTask] = field(default_factory=list)
    _ended: SimpleQueue[SubmittedTask] = field(default_factory=SimpleQueue)  # filled by the runner's threads

    def __call__(self, task: Any, **inputs: Any) -> SubmittedTask:
        new = SubmittedTask(task, inputs)
        self.submitted.append(new)
        for needed in {id(each): each for each in found_in(inputs, SubmittedTask)}.values():
            if not needed.done:
                needed.needed_by.append(new)
                new.unmade += 1
        if not new.unmade:
            self._start(new)
        return new

    def ready(self, artifact: Any) -> ArtifactRef:
        if isinstance(artifact, ArtifactRef):
            return artifact
        self._wait_for(artifact)
        return artifact.future.result()

    def index(self, samples: Any) -> SampleIndex:
        return read_index(self.run, self.ready(samples))

    def counts(self) -> Counts:
        submitted = list(self.submitted)  # another thread may be adding one
        ended = [each for each in submitted if each.done]
        found = Counter(each.task.name for each in ended if each.found)
        return Counts(
            Counter(each.task.name for each in submitted) - found,
            Counter(each.task.name for each in ended) - found,
            found.total(),
        )

    def finish(self) -> None:
        """Wait for everything; the first failed task in the order of the wiring raises its own error."""
        for task in self.submitted:
            self._wait_for(task)
        for task in self.submitted:
            task.future.result()

    def _start(self, ready: SubmittedTask) -> None:
        for made in found_in(ready.inputs, SubmittedTask):
            _settle(made.future)
        given = {name: replaced(value, SubmittedTask, lambda made: made.future) for name, value in ready.inputs.items()}
        ready.future = self.runner.submit(ready.task, parameters={"run": self.run, **given})
        ready.future.wrapped_future.add_done_callback(lambda _: self._ended.put(ready))

    def _wait_for(self, wanted: SubmittedTask) -> None:
        """Until a task has ended, well or not, start whatever has all its inputs then."""
        while not wanted.done:
            for waiting in self._ended.get().needed_by:
                waiting.unmade -= 1
                if not waiting.unmade:
                    self._start(waiting)


def _settle(future: Any) -> None:
    """The future of a task that has ended keeps its state: else each task that takes it asks the server for that,
    which costs a round trip an input, and a minute where a server is gone."""
    with contextlib.suppress(Exception):  # it could not even be told to the server; whoever needs the result says it
        future.wait()


@contextlib.contextmanager
def steps_on(run: Run, settings: RuntimeSettings) -> Iterator[OnThreads | OnRay]:
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
                keep_heap()
                step = OnThreads(run, stack.enter_context(ThreadPoolTaskRunner(max_workers=settings.max_workers)))
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
        check = weights_unchanged(run)
        if check is not None:
            EventLog.of(run).emit("check", **check.model_dump(exclude={"run_id"}))
    except BrokenInvariant:
        close_models()
        EventLog.of(run).flush()
        for event in read_events(run):
            if event["type"] == "pass_finished" and not event.get("cached"):
                run.store.delete(event["task"], event["key"])
        raise
    finally:
        unwatch(run)
