"""Pass 2c: margins of preference pairs at the base weights, and the concepts that DPO moves differently from SFT."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS, without_result
from foretune.tasks.engine.passes import content_task
from foretune.tasks.engine.signals import Signal
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.loading import label_caller
from foretune.tasks.loading.hooks import captured_residuals
from foretune.tasks.samples.dataset import read_some, row_numbers
from foretune.tasks.samples.minibatches import Minibatch, minibatches
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa

    from foretune.tasks.saes import LoadedSae


class PreferenceSettings(BaseModel):
    """How preference pairs are measured."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, title="Preference pairs")

    version: Literal[1] = 1
    batch_tokens: int = Field(
        default=1024, ge=1, le=10**8, title="Tokens per micro-batch", json_schema_extra=without_result()
    )


@content_task(version=3, libraries=(*NUMERICS, "sae-lens"))
def preference(
    draft: Any,
    run: Run,
    pairs: ArtifactRef | SubsetRows,
    gradient: ArtifactRef | None,
    baseline: ArtifactRef | None,
    model: ModelHandle,
    sae: SaeHandle | None,
    dpo_beta: float,
    settings: PreferenceSettings,
) -> None:
    """Margins of every pair, and with an SAE the DPO gradient over its features beside SFT's.

    `gradient` is that of the SFT rows; without it SFT means training on the chosen answers. On a budget the pairs are
    some of all, and the summary has the standard errors that this leaves.
    """
    loaded, table = model.open(run), read_some(run, pairs)
    autoencoder = sae.open() if sae is not None else None
    measured: dict[int, dict[str, float | None]] = {}
    sums = PairGradients()
    with device_lock(loaded), captured_residuals(loaded, autoencoder and autoencoder.hook_name) as residuals:
        call = label_caller(loaded, [])
        for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
            measured.update(zip(minibatch.rows, measure_pairs(call, minibatch, dpo_beta, residuals, sums), strict=True))
    draft.write_table("pairs.parquet", _pair_table(table, measured))
    of = len(row_numbers(run, pairs.samples)) if isinstance(pairs, SubsetRows) else len(measured)
    left_out = 1 - len(measured) / of
    cosine = error = None
    if autoencoder is not None and baseline is not None:  # with an SAE there is a baseline
        base_acts = run.store.open(baseline).tensors("baseline.safetensors")["base_acts_mean"]
        stored = run.store.open(gradient).tensors("gradients.safetensors") if gradient else {}
        sft = stored.get("resid_grad_mean")
        compared, cosine = relative_scores(sums, sft, autoencoder, base_acts)
        if left_out:
            compared, error = with_errors(compared, sums, sft, autoencoder, base_acts, left_out)
        draft.write_table("features.parquet", compared)
    summary = preference_summary(list(measured.values()), cosine, gradient is None, of)
    draft.write_json("summary.json", summary | ({"cosine_dpo_sft_error": error} if left_out else {}))


@dataclass
class PairGradients:
    """Sums of gradients in the residual stream [d_model], over pairs and over the chosen answers' tokens, micro-batch
    by micro-batch."""

    dpo: list[Any] = field(default_factory=list)
    sft: list[Any] = field(default_factory=list)
    pairs: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def means(self, without: int | None = None) -> tuple[Any, Any]:
        """Both gradients' means, one micro-batch left out."""
        kept = [part for part in range(len(self.dpo)) if part != without]
        dpo, sft = (sum(parts[part] for part in kept) for parts in (self.dpo, self.sft))
        pairs, tokens = (sum(counts[part] for part in kept) for counts in (self.pairs, self.tokens))
        return dpo / pairs, sft / max(tokens, 1)


def measure_pairs(
    call: Any, minibatch: Minibatch, dpo_beta: float, residuals: Any, sums: PairGradients
) -> list[dict[str, float | None]]:
    """Margins per pair in nats, None where an answer has no label; gradients are added to `sums`."""
    import torch

    from foretune.tasks.numerics.losses import margins, preference_losses, sequence_logprobs

    assert minibatch.rejected is not None  # a table of pairs
    chosen = sequence_logprobs(call({}, minibatch.batch), minibatch.batch.labels)
    rejected = sequence_logprobs(call({}, minibatch.rejected), minibatch.rejected.labels)
    captured = list(residuals())
    if captured:
        loss = preference_losses(chosen, rejected, chosen.detach(), rejected.detach(), dpo_beta).sum()
        dpo = torch.autograd.grad(loss, captured, retain_graph=True)
        sft = torch.autograd.grad(-chosen.sum(), captured[:1])
        sums.dpo.append(sum(part.float().sum(dim=(0, 1)) for part in dpo))
        sums.sft.append(sft[0].float().sum(dim=(0, 1)))
        sums.pairs.append(len(minibatch.rows))
        sums.tokens.append(minibatch.batch.label_tokens)
    lengths = [(batch.labels[:, 1:] != -100).sum(1) for batch in (minibatch.batch, minibatch.rejected)]
    measured = margins(chosen.detach(), rejected.detach(), chosen.detach(), rejected.detach(), *lengths)
    columns = zip(measured.raw.tolist(), measured.per_token.tolist(), measured.reference.tolist(), strict=True)
    names = ("margin_raw", "margin_per_token", "margin_reference")
    return [
        {name: value if math.isfinite(value) else None for name, value in zip(names, row, strict=True)}
        for row in columns
    ]


def scores_of(sums: PairGradients, sft: Any, autoencoder: LoadedSae, base_acts: Any, without: int | None = None) -> Any:
    """[2, d_sae] feature scores of both gradients; `sft` in place of the chosen answers' where it is one."""
    import torch

    from foretune.tasks.numerics.features import feature_scores

    dpo, chosen = sums.means(without)
    both = (dpo, chosen if sft is None else sft)
    return torch.stack([feature_scores(g, autoencoder.W_dec, base_acts).score for g in both])


def relative_scores(sums: PairGradients, sft: Any, autoencoder: LoadedSae, base_acts: Any) -> tuple[pa.Table, float]:
    """Feature scores of both gradients, each scaled to length one, their difference and their cosine."""
    import pyarrow as pa

    dpo_scores, sft_scores = scores_of(sums, sft, autoencoder, base_acts)
    relative = _unit(dpo_scores) - _unit(sft_scores)
    columns = {
        "feature": list(range(autoencoder.d_sae)),
        "dpo_score": dpo_scores.numpy(),
        "sft_score": sft_scores.numpy(),
        "relative": relative.numpy(),
        "direction": ["reinforced" if r > 0 else "suppressed" if r < 0 else "unchanged" for r in relative.tolist()],
    }
    return pa.table(columns), float((_unit(dpo_scores) * _unit(sft_scores)).sum())


def with_errors(
    table: pa.Table, sums: PairGradients, sft: Any, autoencoder: LoadedSae, base_acts: Any, left_out: float
) -> tuple[pa.Table, float | None]:
    """`relative_error` beside the scores, and the cosine's standard error: the jackknife over micro-batches (Tukey
    1958), less the share of pairs that were read. Of one micro-batch nothing is known."""
    import pyarrow as pa
    import torch

    groups = len(sums.dpo)
    if groups < 2:
        nothing = pa.nulls(len(table), pa.float32())
        return table.append_column("relative_error", nothing), None
    units = []
    for group in range(groups):
        units.append(torch.stack([_unit(each) for each in scores_of(sums, sft, autoencoder, base_acts, group)]))
    found = torch.stack(units).double()  # [groups, 2, d_sae]
    relative, cosines = found[:, 0] - found[:, 1], (found[:, 0] * found[:, 1]).sum(-1, keepdim=True)
    errors = [(each.var(0, correction=0) * (groups - 1) * left_out).sqrt() for each in (relative, cosines)]
    return table.append_column("relative_error", pa.array(errors[0].float().numpy())), float(errors[1])


def _pair_table(table: Any, margins: dict[int, dict[str, float | None]]) -> list[dict[str, Any]]:
    rows = table.select(["sample_id", "row", "prompt", "completion", "rejected"]).to_pylist()
    return [{**rows[position], **margins[position]} for position in sorted(margins, key=lambda p: rows[p]["row"])]


def _unit(vector: Any) -> Any:
    return vector / vector.norm().clamp_min(1e-30)


def preference_summary(margins: list[dict[str, Any]], cosine: float | None, trained: bool, of: int) -> dict[str, Any]:
    """Mean margins, the share of pairs the base model already ranks right, and a signal where the mean margin per
    token is below zero: a warning when the run is `trained` on the pairs, else a note. Where the margins are those of
    some of `of` pairs, the means' standard errors too."""
    count = len(margins)
    known = {name: [pair[name] for pair in margins if pair[name] is not None] for name in margins[0]}
    means = {name: sum(values) / len(values) if values else None for name, values in known.items()}
    margin = means["margin_per_token"]
    signals = []
    if margin is not None and margin < 0:
        signals.append(
            Signal(
                name="backwards_preference",
                severity="warn" if trained else "info",
                value=margin,
                threshold=0.0,
                advice="the base model prefers the rejected answers on average, per token; check that chosen and "
                "rejected are not swapped" + ("" if trained else " (this run is not trained on the pairs)"),
            ).stored()
        )
    won = [float((pair["margin_raw"] or 0.0) > 0) for pair in margins]
    sampled = {}
    if of > count:
        errors = {name: standard_error(values, of) for name, values in {**known, "win_rate": won}.items()}
        sampled = {"pairs_in_all": of} | {f"{name}_error": error for name, error in errors.items()}
    return {
        "pairs": count,
        **means,
        "win_rate": sum(won) / count,
        "cosine_dpo_sft": cosine,
        **sampled,
        "signals": signals,
    }


def standard_error(values: Sequence[float], of: int) -> float | None:
    """Of the mean of `values`, drawn without replacement from `of` (Cochran, Sampling Techniques, 2.4); None of fewer
    than two."""
    n = len(values)
    if n < 2:
        return None
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    return math.sqrt(variance / n * max(0.0, 1 - n / of))
