"""Progress artifacts: how far a run is, and each of its passes over shards, in Prefect's UI while it goes."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Iterator
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from prefect.artifacts import ProgressArtifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.context import FlowRunContext

from foretune.tasks.engine.announcements import asked_briefly, say_unreachable

logger = logging.getLogger("foretune")

EVERY_SECONDS = 2.0
WHOLE = "run"


@dataclass(frozen=True)
class Counts:
    """The tasks of a run, as far as they were submitted: by name those to compute and those of them that have ended.

    What is stored is known when its task has ended on threads, and is taken out of both then.
    """

    wanted: Counter[str]
    ended: Counter[str]
    found: int = 0  # stored before


class Counted(Protocol):
    def counts(self) -> Counts:
        """What is to be done, and what is done."""
        ...


@contextlib.contextmanager
def progress_shown(step: Counted) -> Iterator[None]:
    """Inside the block a thread moves the artifacts of the flow run around it; without a flow there are none.

    A pass of one task has no artifact of its own, nor has one of which nothing was computed yet.
    """
    context = FlowRunContext.get()
    if context is None or context.flow_run is None:
        yield
        return
    over = threading.Event()
    bars = _Bars(step, context.flow_run.id, context.flow_run.name)

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
    def __init__(self, step: Counted, flow_run_id: UUID, run_id: str) -> None:
        self.step, self.flow_run_id, self.run_id = step, flow_run_id, run_id
        self._ids: dict[str, Any] = {}
        self._shown: dict[str, tuple[int, int, int]] = {}

    def move(self) -> None:
        """Create or update what has changed. A server that does not answer must not fail the run."""
        counts = self.step.counts()
        bars = {name: (counts.ended[name], wanted, 0) for name, wanted in counts.wanted.items() if wanted > 1}
        bars |= {name: (0, 0, 0) for name in self._ids if name not in counts.wanted}  # all of it turned out to be there
        bars[WHOLE] = (counts.ended.total(), counts.wanted.total(), counts.found)
        # Before one of its tasks was computed, a pass may turn out to be stored.
        changed = {
            name: bar
            for name, bar in bars.items()
            if self._shown.get(name) != bar and (name in self._ids or name == WHOLE or bar[0])
        }
        if not changed:
            return
        try:
            with asked_briefly(), get_client(sync_client=True) as client:
                for name, bar in changed.items():
                    self._show(client, name, *bar)
        except Exception as error:
            say_unreachable(self.run_id, error)
            logger.debug("progress not shown: %s", error)

    def _show(self, client: SyncPrefectClient, name: str, ended: int, wanted: int, found: int) -> None:
        share = round(100 * ended / wanted, 1) if wanted else 100.0
        text = f"{name.replace('_', ' ')}: {ended} of {wanted} tasks computed"
        text = f"{text}, {found} more were stored" if found else text
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
        self._shown[name] = (ended, wanted, found)
