"""A pass that counts how often its process has used one open model; Ray's workers import it from here."""

from __future__ import annotations

import contextlib
import os
import time
from collections import defaultdict
from typing import Any

import prefect

from foretune.flows.engines.ray import OnRay
from foretune.flows.request import RuntimeSettings
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle
from foretune.tasks.loading import ModelSettings

SHARDS = 8


@content_task(version=1)
def counted_use(draft: Any, run: Run, model: ModelHandle, number: int) -> None:
    """use.json: the process, and which use of its open model this was."""
    opened = model.open(run).model
    opened.uses = getattr(opened, "uses", 0) + 1
    time.sleep(0.3)  # long enough for the other worker to take its part
    draft.write_json("use.json", {"process": os.getpid(), "use": opened.uses})


@prefect.flow
def uses_on_ray(root: str, model: str, address: str) -> dict[int, list[int]]:
    """Process -> the uses that it counted, over all shards."""
    handle = ModelHandle(source=Fingerprint(uri=model, digest="0" * 64), settings=ModelSettings(name_or_path=model))
    uses: dict[int, list[int]] = defaultdict(list)
    with contextlib.ExitStack() as stack:
        step = OnRay(Run(root, "uses"), RuntimeSettings(root=root, runner="ray", ray_address=address), stack)
        for number in range(SHARDS):
            step(counted_use, model=handle, number=number)
        step.finish()
        for artifact in step.submitted:
            use = step.run.store.open(step.ready(artifact)).json("use.json")
            uses[use["process"]].append(use["use"])
    return uses
