"""Base model and predicted checkpoint side by side: weights, losses, confidence, preferences."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.loading import label_caller
from foretune.tasks.samples.dataset import read_table
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.comparison import SampleComparison


@content_task(version=2)
def model_diff(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    rows: SubsetRows,
    probes: ArtifactRef | None,
    pairs: ArtifactRef | None,
    settings: DiffSettings,
) -> None:
    """Weight norms per tensor; losses per held-out row; perplexity, token KL and calibration on held-out rows and
    probes; win rate."""
    from foretune.tasks.numerics.comparison import summarise

    models = model.open(run), model.moved_to(checkpoint).open(run)
    draft.write_table("layers.parquet", weight_norms(*models))
    held = rows.read(run)
    sides = compare_rows(*models, held, settings.batch_tokens)
    draft.write_table("heldout.parquet", row_losses(held, sides))
    summary = {f"heldout_{name}": value for name, value in summarise(sides, settings.ece_bins).items()}
    if probes is not None:
        table = read_table(run, probes)
        probed = probe_rows(table, compare_rows(*models, table, settings.batch_tokens), settings.regression)
        draft.write_table("probes.parquet", probed)
        summary |= probe_summary(probed)
    if pairs is not None:
        table = read_table(run, pairs)
        for side, loaded in zip(("base", "new"), models, strict=True):
            summary[f"win_rate_{side}"] = win_rate(loaded, table, settings.batch_tokens)
    draft.write_json("summary.json", summary)


def weight_norms(base: LoadedModel, new: LoadedModel) -> list[dict[str, Any]]:
    """Frobenius norms per tensor under both models, and the norm of the difference."""
    rows = []
    for name, _ in base.model.named_parameters():
        weight, other = base.values(name), new.values(name)
        norm, change = float(weight.norm()), float((other - weight).norm())
        rows.append(
            {
                "module": name,
                "norm_base": norm,
                "norm_new": float(other.norm()),
                "delta_norm": change,
                "relative": change / norm if norm else 0.0,
            }
        )
    return rows


def compare_rows(base: LoadedModel, new: LoadedModel, table: pa.Table, batch_tokens: int) -> SampleComparison:
    """Both models' losses, KL and confidence on every row of `table`, in the table's order."""
    import torch

    from foretune.tasks.numerics.comparison import compare_logits, joined, reordered

    calls = label_caller(base, []), label_caller(new, [])
    parts, order = [], []
    for minibatch in minibatches(table, batch_tokens, base.device):
        with torch.no_grad():
            before, after = (call({}, minibatch.batch) for call in calls)
        parts.append(compare_logits(before, after, minibatch.batch.labels))
        order += minibatch.rows
    return reordered(joined(parts), order, len(table))


def row_losses(table: pa.Table, sides: SampleComparison) -> list[dict[str, Any]]:
    """Per held-out row with a label: its label tokens, and the sum of its loss over them in nats under both models."""
    columns = (values.tolist() for values in (sides.tokens, sides.loss_base, sides.loss_new))
    return [
        {"sample_id": sample_id, "tokens": round(tokens), "loss_base": base, "loss_new": new}
        for sample_id, tokens, base, new in zip(table["sample_id"].to_pylist(), *columns, strict=True)
        if tokens
    ]


def probe_rows(table: pa.Table, sides: SampleComparison, regression: float) -> list[dict[str, Any]]:
    """Per probe: perplexities, token KL in nats, and whether its perplexity rose by more than `regression`."""
    rows = []
    texts = table["completion"].to_pylist()
    for position, (base, new, kl, tokens) in enumerate(
        zip(*(values.tolist() for values in (sides.loss_base, sides.loss_new, sides.kl, sides.tokens)), strict=True)
    ):
        if tokens:
            before, after = math.exp(base / tokens), math.exp(new / tokens)
            rows.append(
                {
                    "text": texts[position],
                    "tokens": tokens,
                    "perplexity_base": before,
                    "perplexity_new": after,
                    "kl": kl / tokens,
                    "regressed": after > before * (1 + regression),
                }
            )
    return rows


def probe_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Token-weighted perplexity over all probes under both models, mean KL, and the number of regressions."""
    tokens = sum(row["tokens"] for row in rows)

    def perplexity(column: str) -> float:
        return math.exp(sum(math.log(row[column]) * row["tokens"] for row in rows) / tokens)

    return {
        "probe_perplexity_base": perplexity("perplexity_base"),
        "probe_perplexity_new": perplexity("perplexity_new"),
        "probe_kl": sum(row["kl"] * row["tokens"] for row in rows) / tokens,
        "regressions": sum(row["regressed"] for row in rows),
    }


def win_rate(loaded: LoadedModel, table: pa.Table, batch_tokens: int) -> float:
    """Share of pairs whose chosen answer the model gives the higher log-probability."""
    import torch

    from foretune.tasks.numerics.losses import sequence_logprobs

    call, wins, count = label_caller(loaded, []), 0, 0
    for minibatch in minibatches(table, batch_tokens, loaded.device):
        assert minibatch.rejected is not None  # a table of pairs
        with torch.no_grad():
            chosen = sequence_logprobs(call({}, minibatch.batch), minibatch.batch.labels)
            rejected = sequence_logprobs(call({}, minibatch.rejected), minibatch.rejected.labels)
        wins += int((chosen > rejected).sum())
        count += len(chosen)
    return wins / count
