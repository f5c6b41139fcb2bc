"""A Ray cluster takes the steps of the DAG: the cache is looked up here, and only what is missing goes to a worker.

A run whose artefacts are all stored starts no cluster and joins none.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from foretune.flows.engines.progress import Counts
from foretune.flows.environment import prepare
from foretune.flows.request import RuntimeSettings
from foretune.storage.errors import BadInput
from foretune.storage.events import EventLog
from foretune.storage.places import Place
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import BrokenInvariant
from foretune.tasks.engine.time_limits import pass_minutes
from foretune.tasks.loading.witnesses import watch, weights_unchanged
from foretune.tasks.samples.table import SampleIndex, read_index

LOST_WORKERS = 3
"""Workers that may die under one batch before the run fails: it may be the batch that kills them."""

BATCH = 16
"""Most passes in one submission, which share what a task of Prefect's costs on a worker: a fifth of a second."""


@dataclass(eq=False)
class Missing:
    """An artefact that a worker is to make: which one it will be, from what, and where its batch brings it."""

    task: Any
    ref: ArtifactRef  # by its key, as it enters the keys of what is made from it
    inputs: dict[str, Any]
    batch: Any = None  # the future of a list of artefacts, once submitted
    place: int = 0  # in that list


@dataclass(frozen=True)
class Upstream:
    """Stands for an artefact of an earlier batch among the inputs that are sent to a worker."""

    batch: int
    place: int


@dataclass
class OnRay:
    """Takes a step by looking its key up, and by submitting its task to Ray's workers where nothing is stored.

    An artefact is a reference when it is stored and `Missing` when it is not. What is missing of one task is
    gathered until another task is submitted, and then sent in batches.
    """

    run: Run
    settings: RuntimeSettings
    stack: contextlib.ExitStack  # closes what the first miss opens
    submitted: list[Any] = field(default_factory=list)
    _missing: dict[tuple[str, str], Missing] = field(default_factory=dict)  # by task and key
    _gathered: list[Missing] = field(default_factory=list)  # of one task, not yet submitted
    _made: dict[Missing, ArtifactRef] = field(default_factory=dict)  # the cluster forgets results in the end
    _runner: Any = None

    def __post_init__(self) -> None:
        self.run = replace(self.run, root=Place(self.run.root).uri)  # a worker has another working directory

    def __call__(self, task: Any, **inputs: Any) -> Any:
        policy = task.cache_policy
        key = policy.key_of({name: _named(value) for name, value in inputs.items()})
        artifact = self._missing.get((policy.task, key)) or self.run.store.find(policy.task, key)
        if artifact is None:
            artifact = Missing(task, ArtifactRef(task=policy.task, key=key, uri="", sha256=""), inputs)
            self._gather(artifact)
        self.submitted.append(artifact)
        return artifact

    def ready(self, artifact: Any) -> ArtifactRef:
        if isinstance(artifact, ArtifactRef):
            return artifact
        if artifact not in self._made:
            self._submit_gathered()
            artifact.batch.wait()  # turns a lost worker into a failed task
            try:
                self._made[artifact] = artifact.batch.result()[artifact.place]
            except Exception as error:
                if not getattr(error, "__notes__", ()):
                    error.add_note(f"{artifact.ref.task} failed")
                raise
        return self._made[artifact]

    def index(self, samples: Any) -> SampleIndex:
        return read_index(self.run, self.ready(samples))

    def counts(self) -> Counts:
        every = list(self.submitted)
        submitted = [artifact for artifact in every if isinstance(artifact, Missing)]
        batches = {a.batch.wrapped_future for a in submitted if a.batch and a not in self._made}
        ended: set[Any] = set()
        if batches:  # else the cluster may not have been joined, nor Ray imported
            import ray

            # Once the cluster is left, `wait` would start one.
            if ray.is_initialized():
                ended.update(ray.wait(list(batches), num_returns=len(batches), timeout=0)[0])

        def over(artifact: Missing) -> bool:
            return artifact in self._made or bool(artifact.batch and artifact.batch.wrapped_future in ended)

        return Counts(
            Counter(each.ref.task for each in submitted),
            Counter(each.ref.task for each in submitted if over(each)),
            len(every) - len(submitted),
        )

    def finish(self) -> None:
        """Wait for everything; the first failed task in the order of submission raises its own error."""
        self._submit_gathered()
        for artifact in self.submitted:
            if isinstance(artifact, Missing):
                artifact.batch.wait()
        for artifact in self.submitted:
            self.ready(artifact)

    def _gather(self, missing: Missing) -> None:
        other = bool(self._gathered) and self._gathered[0].task is not missing.task
        if other or any(needed.batch is None for needed in found_in(missing.inputs, Missing)):
            self._submit_gathered()
        self._gathered.append(missing)
        self._missing[(missing.ref.task, missing.ref.key)] = missing

    def _submit_gathered(self) -> None:
        """Submit in batches that grow smaller towards the end, so that all workers end at about the same time.

        Guided self-scheduling: a batch is the share of one worker in what is left, halved (Polychronopoulos and
        Kuck, IEEE Transactions on Computers C-36, 1987).
        """
        left, self._gathered = self._gathered, []
        if left and self._runner is None:
            self._runner = self._joined()
        workers = self._workers(left[0].inputs) if left else 1
        while left:
            size = min(BATCH, math.ceil(len(left) / (2 * workers)))
            self._submit(left[:size])
            left = left[size:]

    def _workers(self, inputs: dict[str, Any]) -> int:
        """How many passes with such inputs the cluster takes at once, as it is now."""
        import ray

        has, gpus = ray.cluster_resources(), self._gpus(inputs)
        fits = [has.get("CPU", 1) / self.settings.ray_cpus, *([has.get("GPU", 1) / gpus] if gpus else [])]
        return max(1, int(min(fits)))

    def _gpus(self, inputs: dict[str, Any]) -> float:
        return self.settings.ray_gpus if "model" in inputs else 0

    def _submit(self, batch: list[Missing]) -> None:
        from prefect_ray.context import remote_options

        task = batch[0].task
        on_worker = worker_batch.with_options(
            name=task.name,
            task_run_name=task.name if len(batch) == 1 else f"{task.name}, {len(batch)} of them",
            retries=task.retries,
            retry_delay_seconds=task.retry_delay_seconds,
            retry_jitter_factor=task.retry_jitter_factor,
            retry_condition_fn=task.retry_condition_fn,
        )
        needed = list(dict.fromkeys(m.batch for each in batch for m in found_in(each.inputs, Missing)))
        place = {id(future): number for number, future in enumerate(needed)}
        parameters = {
            "module": task.fn.__module__,
            "name": task.fn.__name__,
            "folder": os.getcwd(),
            "run": self.run,
            "upstream": needed,
            "inputs": [
                {
                    name: replaced(value, Missing, lambda m: Upstream(place[id(m.batch)], m.place))
                    for name, value in i.items()
                }
                for i in (each.inputs for each in batch)
            ],
            "minutes": self.settings.pass_minutes,
        }
        # Without max_calls=0 Ray ends a worker after one task on a GPU, and the model with it.
        on = {"num_cpus": self.settings.ray_cpus, "num_gpus": self._gpus(batch[0].inputs)}
        with remote_options(**on, max_calls=0, max_retries=LOST_WORKERS):
            future = self._runner.submit(on_worker, parameters=parameters)
        for number, missing in enumerate(batch):
            missing.batch, missing.place = future, number

    def _joined(self) -> Any:
        """The runner, on the cluster of the settings or on one of this machine."""
        prepare()  # before Ray is imported, which reads whether to send telemetry
        try:
            from prefect_ray.task_runners import RayTaskRunner
        except ImportError:
            raise BadInput("runtime.runner ray: Ray is not installed; pip install 'foretune[ray]'") from None
        address = self.settings.ray_address or os.environ.get("RAY_ADDRESS")
        if address and not PREFECT_API_URL.value():
            raise BadInput(
                f"runtime.ray_address {address}: its workers report to a Prefect server; set PREFECT_API_URL to one "
                "that every machine reaches"
            )
        # Workers without the address of this run's server would each start one of their own.
        with get_client(sync_client=True) as client:
            server = str(client.api_url).rstrip("/")
        self.stack.enter_context(temporary_settings({PREFECT_API_URL: server}))
        quiet = {"log_to_driver": False, "logging_level": "ERROR"}
        own = {} if address else {"num_cpus": self.settings.max_workers, "include_dashboard": False}
        try:
            return self.stack.enter_context(RayTaskRunner(address or "local", init_kwargs=quiet | own))
        except ConnectionError as error:
            message = str(error).split("\n")[0]
            raise BadInput(f"runtime.ray_address {address}: no Ray cluster answers ({message}); check it") from None


def replaced(value: Any, kind: type, stand_in: Callable[[Any], Any]) -> Any:
    """An input with another thing in the place of what is of this kind; an artefact is given alone or in a list."""
    if isinstance(value, list):
        return [replaced(item, kind, stand_in) for item in value]
    return stand_in(value) if isinstance(value, kind) else value


def _named(value: Any) -> Any:
    return replaced(value, Missing, lambda missing: missing.ref)


def found_in(value: Any, kind: type) -> Iterator[Any]:
    """What is of this kind among the inputs of a task."""
    if isinstance(value, kind):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from found_in(item, kind)


@prefect.task(cache_policy=NO_CACHE, persist_result=False, log_prints=False)
def worker_batch(
    module: str,
    name: str,
    folder: str,
    run: Run,
    upstream: list[list[ArtifactRef]],
    inputs: list[dict[str, Any]],
    minutes: float | None,
) -> list[ArtifactRef]:
    """Passes in a worker of Ray's: `module.name` is imported there, so that it and its open models are shared.

    The worker may be gone by the end of the run. So its events are sent, and its models compared with what they
    were when they were opened, after every batch. A batch that is done again finds what was done of it stored.
    """
    prepare()
    watch(run)
    with contextlib.suppress(OSError):
        os.chdir(folder)  # the request's relative paths, where machines share a file system
    one_pass = getattr(import_module(module), name)
    try:
        with pass_minutes(minutes):
            made = [one_pass.fn(run=run, **_received(each, upstream)) for each in inputs]
        if "model" in inputs[0]:
            try:
                check = weights_unchanged(run)
                if check is not None:
                    EventLog.of(run).emit("check", **check.model_dump(exclude={"run_id"}))
            except BrokenInvariant:
                for each in made:
                    if not each.cached:
                        run.store.delete(each.task, each.key)
                raise
        return made
    finally:
        EventLog.of(run).flush()


def _received(value: Any, upstream: list[list[ArtifactRef]]) -> Any:
    if isinstance(value, Upstream):
        return upstream[value.batch][value.place]
    if isinstance(value, list):
        return [_received(item, upstream) for item in value]
    return {name: _received(item, upstream) for name, item in value.items()} if isinstance(value, dict) else value
