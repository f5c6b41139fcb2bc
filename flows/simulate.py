"""What would fine-tuning this model on this dataset do? The flow that a deployment and the command line run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import prefect
from prefect.exceptions import TerminationSignal

from foretune.flows.dag.costs import checked_sources
from foretune.flows.dag.simulation import simulation
from foretune.flows.dag.wiring import Wiring
from foretune.flows.engines.threads import steps_on
from foretune.flows.failures import ending_in_one_line
from foretune.flows.interruption import heard_beside_the_engine, when_stopped
from foretune.flows.priced import Priced
from foretune.flows.request import Request, to_yaml
from foretune.storage.errors import BadInput, Damaged, StorageFault, failure_line
from foretune.storage.events import EventLog
from foretune.storage.ownership import delete_run
from foretune.storage.runs import REQUEST, RESULT, Run, checked_run_id, new_run_id
from foretune.tasks.engine.announcements import announce, name_flow_run
from foretune.tasks.engine.lineage import run_started
from foretune.tasks.inputs.sources import Sources
from foretune.tasks.report.publish import publish

logger = logging.getLogger(__name__)

BY_THE_USER = "stopped by the user"

MAX_DAMAGED = 8
"""Damaged artefacts that one run recomputes before it gives up: more of them are a sick disk."""


@prefect.flow(name="foretune-simulate", validate_parameters=True, log_prints=False)
@ending_in_one_line("foretune.simulation.failed")
def simulate(request: Request, run_id: str | None = None) -> dict[str, Any]:
    """Simulate a fine-tune.

    1. Fingerprint what the request points at; every fault here is bad input.
    2. Run or look up every pass (`simulation`).
    3. Check that the base weights are what they were.
    4. Publish: result.json, report, events, Prefect artifacts. Never cached.
    """
    sources = checked_sources(request)
    run_id = run_id or new_run_id(datetime.now(UTC), request.run_name)
    run = Run(request.runtime.root, run_id, request.runtime.verify)
    return recorded(run, request, lambda: run_passes(run, request, sources))


def recorded(run: Run, request: Request, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`attempt()` in a run folder with the request; bad input deletes the folder, another fault is its last event."""
    checked_run_id(run.run_id)
    name_flow_run(run.run_id)
    begun = (run.place / REQUEST).exists()  # by an earlier attempt, whose events are there
    if (run.place / RESULT).exists():
        raise BadInput(f"run {run.run_id}: is already there, with its result; give another run_id, or none")
    run.write_request(to_yaml(request))
    try:
        with when_stopped(lambda: _marked_stopped(run)), heard_beside_the_engine():
            return healing(run, attempt)
    except BadInput:
        EventLog.of(run).close()
        if not begun:
            delete_run(run)
        raise
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | TerminationSignal)  # the latter: cancelled
        with contextlib.suppress(StorageFault):  # a full disk must not hide the fault
            _ended(run, "stopped" if stopped else "failed", BY_THE_USER if stopped else failure_line(error))
        raise


def _marked_stopped(run: Run) -> None:
    EventLog.of(run).emit_last("run_finished", status="stopped", error=BY_THE_USER)


def _ended(run: Run, status: str, said: str) -> None:
    with EventLog.of(run):
        announce(run, "run_finished", status=status, error=said)


def run_passes(run: Run, request: Request, sources: Sources) -> dict[str, Any]:
    """Every pass, run or looked up, on base weights that stay; the published result."""
    run_started(run, sources.named())
    with steps_on(run, request.runtime) as step:
        priced = Priced(step)
        wiring = Wiring(priced, request, sources)
        made = simulation(wiring)
        priced.write(wiring)
        step.finish()
    return publish(
        run=run,
        request=request.model_dump(mode="json"),
        made={name: step.ready(artifact) for name, artifact in made.items()},
        submitted=len(step.submitted),
        saes=sources.saes_read,
    )


def healing(run: Run, attempt: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """`attempt()`, again where a stored file turns out to be damaged: its artefact is recomputed then."""
    for _ in range(MAX_DAMAGED):
        try:
            return attempt()
        except Damaged as damage:
            logger.warning("%s", damage)
            EventLog.of(run).emit("artifact_damaged", error=str(damage))
    return attempt()
