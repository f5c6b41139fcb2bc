"""Which answers do not belong to their prompts: how much likelier a prompt makes its answer, in nats.

gain = loss(answer | its first token alone) - loss(answer | its prompt), both summed over the answer's labels: the
pointwise mutual information of prompt and answer under the base model. An answer that was swapped with another
row's gains nothing from the prompt it stands under.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.signals import Signal
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import label_caller
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import ShardRows

if TYPE_CHECKING:
    import pyarrow as pa


class PromptGainSettings(BaseModel):
    """When an answer counts as mismatched."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Prompt gain")

    version: Literal[1] = 1
    mismatch: float = Field(
        default=0.0, ge=-1e3, le=1e3, title="Mismatch at", description="nats; an answer that gains no more is flagged"
    )
    share: float = Field(default=0.02, ge=0, le=1, title="Answer mismatch signal", description="share of rows")
    batch_tokens: int = Field(
        default=2048, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )


class AnswerPass(BaseModel):
    """The part of the settings that the pass over all answers reads."""

    batch_tokens: int = Field(json_schema_extra=without_result())


@content_task(version=1)
def prompt_gain_shard(draft: Any, run: Run, rows: ShardRows, model: ModelHandle, settings: AnswerPass) -> None:
    """losses.parquet: the loss of every answer without its prompt; null for a row without one, or without a label."""
    import torch

    from foretune.tasks.numerics.losses import sample_losses

    table = rows.read(run)
    loaded, answers = model.open(run), without_prompts(table)
    call, losses = label_caller(loaded, []), [None] * len(table)
    with device_lock(loaded), torch.no_grad():
        for minibatch in minibatches(answers, settings.batch_tokens, loaded.device):
            found = sample_losses(call({}, minibatch.batch), minibatch.batch.labels).loss_sum
            for row, loss in zip(minibatch.rows, found.tolist(), strict=True):
                losses[row] = loss
    ids = table["sample_id"].to_pylist()
    known = [has_prompt(mask) for mask in table["loss_mask"].to_pylist()]
    draft.write_table(
        "losses.parquet",
        [
            {"sample_id": i, "loss_alone": loss if prompted else None}
            for i, loss, prompted in zip(ids, losses, known, strict=True)
        ],
    )


def has_prompt(loss_mask: list[bool]) -> bool:
    """Whether more than the first token goes before the first label, and a label follows."""
    return any(loss_mask[2:]) and not loss_mask[1]


def without_prompts(table: pa.Table) -> pa.Table:
    """The rows with everything between their first token and their first label cut out; other columns are dropped."""
    import pyarrow as pa

    ids, masks = table["input_ids"].to_pylist(), table["loss_mask"].to_pylist()
    starts = [mask.index(True, 1) if any(mask[1:]) else len(mask) for mask in masks]
    empty = pa.nulls(len(ids), pa.list_(pa.int32()))
    return pa.table(
        {
            "input_ids": pa.array([i[:1] + i[s:] for i, s in zip(ids, starts, strict=True)], pa.list_(pa.int32())),
            "loss_mask": pa.array([m[:1] + m[s:] for m, s in zip(masks, starts, strict=True)], pa.list_(pa.bool_())),
            "rejected_ids": empty,
            "rejected_mask": pa.nulls(len(ids), pa.list_(pa.bool_())),
        }
    )


@content_task(version=1, libraries=())
def prompt_gain(
    draft: Any,
    run: Run,
    shards: list[ArtifactRef],
    landscape: ArtifactRef,
    settings: PromptGainSettings,
) -> None:
    """prompt_gain.parquet, least gain first; summary.json with the counts and the signal.

    `median_gain` is the upper median: of an even number of gains the higher one of the two in the middle.
    """
    parts = [run.store.open(shard).arrow("losses.parquet").to_pylist() for shard in shards]
    alone = {row["sample_id"]: row["loss_alone"] for part in parts for row in part}
    own = run.store.open(landscape).arrow("samples.parquet").to_pylist()
    measured = [row for row in own if row["sample_id"] in alone]  # the others' prompts were not taken away
    rows = sorted((_gain(row, alone[row["sample_id"]], settings) for row in measured), key=_least_gain_first)
    flagged = [row for row in rows if row["mismatched"]]
    gains = [row["gain"] for row in rows if row["gain"] is not None]
    draft.write_table("prompt_gain.parquet", rows)
    summary: dict[str, Any] = {
        "mismatched_rows": len(flagged),
        "rows_with_a_prompt": len(gains),
        "median_gain": gains[len(gains) // 2] if gains else None,
        "threshold": settings.mismatch,
    }
    summary["signals"] = prompt_gain_signals(summary, settings)
    draft.write_json("summary.json", summary)


def _gain(row: dict[str, Any], alone: float | None, settings: PromptGainSettings) -> dict[str, Any]:
    loss = row["loss"] * row["tokens"] if row["tokens"] and alone is not None else None
    gain = None if loss is None or alone is None else alone - loss
    return {
        "sample_id": row["sample_id"],
        "row": row["row"],
        "gain": gain,
        "loss": loss,
        "loss_alone": alone,
        "tokens": row["tokens"],
        "mismatched": gain is not None and gain <= settings.mismatch,
    }


def _least_gain_first(row: dict[str, Any]) -> tuple[bool, float, str]:
    return row["gain"] is None, row["gain"] or 0.0, row["sample_id"]


def prompt_gain_signals(summary: dict[str, Any], settings: PromptGainSettings) -> list[dict[str, Any]]:
    """`answer_mismatch`: a note for any flagged row, a warning from a share of rows on."""
    count, rows = summary["mismatched_rows"], summary["rows_with_a_prompt"]
    if not count:
        return []
    return [
        Signal(
            name="answer_mismatch",
            severity="warn" if count > settings.share * rows else "info",
            value=count,
            threshold=settings.share * rows,
            advice=f"{count} of {rows} answers are no likelier under their prompt than without it; read them first, "
            "they may belong to other rows",
        ).stored()
    ]
