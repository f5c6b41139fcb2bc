"""Progress artifacts: how far a run is, and each of its passes over shards, in Prefect's UI while it goes."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any, Protocol
from uuid import UUID

from prefect.artifacts import ProgressArtifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext

logger = logging.getLogger("foretune")

EVERY_SECONDS = 2.0
WHOLE = "run"


class Counted(Protocol):
    """The tasks of a run, as far as they were submitted."""

    def counts(self) -> tuple[Counter[str], Counter[str]]:
        """Tasks by name: how many were submitted, and how many of them have ended."""
        ...


@contextlib.contextmanager
def progress_shown(step: Counted) -> Iterator[None]:
    """Inside the block a thread moves the artifacts of the flow run around it; without a flow there are none.

    A pass of one task has no artifact of its own, nor has one that is stored already.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    over = threading.Event()
    bars = _Bars(step, context.flow_run.id)

    def follow() -> None:
        while not over.wait(EVERY_SECONDS):
            bars.move()

    thread = threading.Thread(target=copy_context().run, args=(follow,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        bars.move()


class _Bars:
    def __init__(self, step: Counted, flow_run_id: UUID) -> None:
        self.step, self.flow_run_id = step, flow_run_id
        self._ids: dict[str, Any] = {}
        self._shown: dict[str, tuple[int, int]] = {}

    def move(self) -> None:
        """Create or update what has changed. A server that does not answer must not fail the run."""
        submitted, ended = self.step.counts()
        found = {WHOLE: (ended.total(), submitted.total())}
        found |= {name: (ended[name], number) for name, number in submitted.items() if number > 1}
        changed = {
            name: counts
            for name, counts in found.items()
            if self._shown.get(name) != counts and (name in self._ids or name == WHOLE or counts[0] < counts[1])
        }
        if not changed:
            return
        try:
            with get_client(sync_client=True) as client:
                for name, counts in changed.items():
                    self._show(client, name, *counts)
        except Exception as error:
            logger.debug("progress not shown: %s", error)

    def _show(self, client: SyncPrefectClient, name: str, ended: int, submitted: int) -> None:
        share = round(100 * ended / submitted, 1) if submitted else 0.0
        text = f"{name.replace('_', ' ')}: {ended} of {submitted} tasks"
        if name in self._ids:
            client.update_artifact(self._ids[name], ArtifactUpdate(data=share, description=text))
        else:
            made = ArtifactCreate(
                type=ProgressArtifact(progress=share).type,
                key=f"foretune-progress-{name.replace('_', '-')}",
                description=text,
                data=share,
                flow_run_id=self.flow_run_id,
            )
            self._ids[name] = client.create_artifact(made).id
        self._shown[name] = (ended, submitted)
