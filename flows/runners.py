"""A Ray cluster takes the steps of the DAG: the cache is asked here, and only what is missing goes to a worker.

A run whose artefacts are all stored starts no cluster and joins none.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import prefect
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.environment import prepare
from flows.request import RuntimeSettings
from storage.artifacts import ArtifactRef
from storage.errors import BadInput
from storage.events import EventLog
from storage.places import Place
from storage.runs import Run
from tasks.invariants import BrokenInvariant, watch, weights_unchanged
from tasks.samples import SampleIndex, read_index

LOST_WORKERS = 3
"""Workers that may die under one pass before the run fails: it may be the pass that kills them."""


@dataclass
class OnRay:
    """Takes a step by looking its key up, and by submitting its task to Ray's workers where nothing is stored.

    An artefact is a reference when it is stored and a future when it is not; either enters the keys of what is
    made from it, because an artefact stands for itself by its own key.
    """

    run: Run
    settings: RuntimeSettings
    stack: contextlib.ExitStack  # closes what the first miss opens
    asked: list[Any] = field(default_factory=list)
    _keys: dict[int, ArtifactRef] = field(default_factory=dict)  # id of a future -> what it will be
    _made: dict[int, ArtifactRef] = field(default_factory=dict)  # what it became: the cluster forgets it in the end
    _runner: Any = None

    def __post_init__(self) -> None:
        self.run = replace(self.run, root=Place(self.run.root).uri)  # a worker has another working directory

    def __call__(self, task: Any, **inputs: Any) -> Any:
        policy = task.cache_policy
        key = policy.key_of({name: self._named(value) for name, value in inputs.items()})
        artifact = self.run.store.find(policy.task, key)
        if artifact is None:
            artifact = self._submitted(task, inputs)
            self._keys[id(artifact)] = ArtifactRef(task=policy.task, key=key, uri="", sha256="")
        self.asked.append(artifact)
        return artifact

    def ready(self, artifact: Any) -> ArtifactRef:
        if isinstance(artifact, ArtifactRef):
            return artifact
        if id(artifact) not in self._made:
            artifact.wait()  # turns a lost worker into a failed task
            try:
                self._made[id(artifact)] = artifact.result()
            except Exception as error:
                if not getattr(error, "__notes__", ()):
                    error.add_note(f"{self._keys[id(artifact)].task} failed")
                raise
        return self._made[id(artifact)]

    def index(self, samples: Any) -> SampleIndex:
        return read_index(self.run, self.ready(samples))

    def finish(self) -> None:
        """Wait for everything; the first failed task in the order of submission raises its own error."""
        for artifact in self.asked:
            if not isinstance(artifact, ArtifactRef):
                artifact.wait()
        for artifact in self.asked:
            self.ready(artifact)

    def _named(self, value: Any) -> Any:
        return [self._named(item) for item in value] if isinstance(value, list) else self._keys.get(id(value), value)

    def _submitted(self, task: Any, inputs: dict[str, Any]) -> Any:
        if self._runner is None:
            self._runner = self._joined()
        from prefect_ray.context import remote_options

        on_worker = worker_pass.with_options(
            name=task.name,
            retries=task.retries,
            retry_delay_seconds=task.retry_delay_seconds,
            retry_condition_fn=task.retry_condition_fn,
        )
        where = {"module": task.fn.__module__, "name": task.fn.__name__, "folder": os.getcwd()}
        gpus = self.settings.ray_gpus if "model" in inputs else 0
        # Without max_calls=0 Ray ends a worker after one task on a GPU, and the model with it.
        with remote_options(num_cpus=self.settings.ray_cpus, num_gpus=gpus, max_calls=0, max_retries=LOST_WORKERS):
            return self._runner.submit(on_worker, parameters={**where, "run": self.run, "inputs": inputs})

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
            said = str(error).split("\n")[0]
            raise BadInput(f"runtime.ray_address {address}: no Ray cluster answers ({said}); check it") from None


@prefect.task(cache_policy=NO_CACHE, persist_result=False, log_prints=False)
def worker_pass(module: str, name: str, folder: str, run: Run, inputs: dict[str, Any]) -> ArtifactRef:
    """A pass in a worker of Ray's: `module.name` is imported there, so that it and its open models are shared.

    The worker may be gone by the end of the run. So its events are sent, and its models compared with what they
    were when they were opened, after every pass.
    """
    prepare()
    watch(run)
    with contextlib.suppress(OSError):
        os.chdir(folder)  # the request's relative paths, where machines share a file system
    try:
        made = getattr(import_module(module), name).fn(run=run, **inputs)
        if "model" in inputs:
            try:
                weights_unchanged(run)
            except BrokenInvariant:
                run.store.delete(made.task, made.key)
                raise
        return made
    finally:
        EventLog.of(run).flush()
