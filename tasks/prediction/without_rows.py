"""What the run would end as without some of its rows: the recursion replayed over the stored gradients of the others.

No gradient is measured. The rows left out are in no batch, the batches are drawn again as the trainer would draw them,
and the gradients' shift along the path stays the measured one, to which the rows left out have contributed.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import asdict
from typing import Any, Literal

from pydantic import BaseModel, Field

from foretune.storage.contents import Artifact
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import AdaptedModel, adapt
from foretune.tasks.inputs.adapter_factors import write_factors
from foretune.tasks.inputs.field import per_row_gradients
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inputs.training import TrainingSettings
from foretune.tasks.inputs.variants import Kind, Variant
from foretune.tasks.loading import AdapterSettings, lora_scale
from foretune.tasks.prediction.applied import Applied, applied_at
from foretune.tasks.prediction.evaluation import RowsAtWeights
from foretune.tasks.prediction.gradient_shifts import TRAIN_SHIFT, stored_shift
from foretune.tasks.prediction.virtual_run import VirtualRun, virtual_run
from foretune.tasks.samples.rows import SubsetRows


class EndSettings(BaseModel, frozen=True):
    """How the end of a replay is bounded, and its held-out loss taken."""

    version: Literal[1] = 1
    max_relative_change: float
    batch_tokens: int = Field(json_schema_extra=without_result())


class WithoutRows:
    """The requested run over its stored gradients, and the same run without any of its rows."""

    def __init__(
        self,
        run: Run,
        nodes: list[ArtifactRef],
        path: ArtifactRef,
        adapted: AdaptedModel,
        adapter: AdapterSettings,
        training: TrainingSettings,
        *,
        paired: bool,
        max_relative_change: float,
    ) -> None:
        self.adapted, self.most = adapted, max_relative_change
        self.virtual: VirtualRun = virtual_run(run, nodes, adapted, training, paired=paired)
        kept = per_row_gradients(run, nodes, lora_scale(adapter))
        assert kept is not None  # the wiring asks for them
        self.ids = kept.ids
        self.shift = stored_shift(run.store.open(path), TRAIN_SHIFT, adapted.loaded.device)

    def ending(self, left_out: Collection[str]) -> Applied:
        """Without the samples of these ids; of a row without a label nothing changes."""
        numbers = [number for number, sample_id in enumerate(self.ids) if sample_id in left_out]
        virtual = self.virtual.without(numbers) if numbers else self.virtual
        replay = virtual.replayed([virtual.steps], self.shift)
        return applied_at(replay, virtual.steps, self.adapted.weights, self.most)

    def others(self, left_out: Collection[str], seed: int) -> list[str]:
        """As many other samples, drawn: what leaving out any rows does."""
        rest = sorted(set(self.ids) - set(left_out))
        wanted = sum(sample_id in left_out for sample_id in self.ids)
        return random.Random(seed).sample(rest, min(wanted, len(rest) - 1))


def replays_without(
    run: Run,
    nodes: list[ArtifactRef],
    path: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    *,
    paired: bool,
    max_relative_change: float,
) -> WithoutRows:
    """A run's replays over what it has stored; the model is opened for the shapes and sizes of its weights."""
    adapted = adapt(model.open(run), adapter, training.seed)
    return WithoutRows(
        run, nodes, path, adapted, adapter, training, paired=paired, max_relative_change=max_relative_change
    )


@content_task(version=1)
def without_rows(
    draft: Any,
    run: Run,
    causes: ArtifactRef,
    nodes: list[ArtifactRef],
    path: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    training: TrainingSettings,
    dpo_beta: float | None,
    evaluation: SubsetRows,
    settings: EndSettings,
) -> None:
    """The end without the rows that `causes` names, and without as many others: variants.json with their held-out
    loss, and a file of factors each. Nothing is computed where no row is named, or where all are."""
    named = left_out(run.store.open(causes))
    kept: list[Variant] = []
    if not named:  # no model is opened
        draft.write_json("variants.json", {"variants": [], "end": 0})
        return
    others = replays_without(
        run,
        nodes,
        path,
        model,
        adapter,
        training,
        paired=dpo_beta is not None,
        max_relative_change=settings.max_relative_change,
    )
    adapted = others.adapted
    if len(set(others.ids) - set(named)) > 1:
        heldout = RowsAtWeights(adapted, evaluation.read(run), dpo_beta, settings.batch_tokens)
        left: dict[Kind, Sequence[str]] = {"without": named, "control": others.others(named, training.seed)}
        for kind, ids in left.items():
            end = others.ending(ids)
            with device_lock(adapted.loaded):
                loss = heldout.loss(end.delta)
            variant = Variant(kind, end.steps, training.seed, loss)
            write_factors(draft, end.factors, variant.file)
            kept.append(variant)
    draft.write_json("variants.json", {"variants": [asdict(each) for each in kept], "end": others.virtual.steps})


def left_out(causes: Artifact) -> Sequence[str]:
    """The samples that a `causes` artefact names, each once."""
    rows = [row for suite in causes.json("summary.json")["suites"] for row in suite["rows"]]
    return list(dict.fromkeys(row["sample_id"] for row in rows))
