"""Pass 2c: what preference pairs say at the base weights, and which concepts DPO would move other than SFT."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from storage.artifacts import ArtifactRef
from storage.runs import Run
from tasks.dataset import read_table
from tasks.hooks import captured_residuals
from tasks.keys import NUMERICS, content_task, without_result
from tasks.loading import functional_caller
from tasks.minibatches import Minibatch, minibatches
from tasks.model import ModelHandle, SaeHandle, exclusive


class PreferenceSettings(BaseModel):
    """How preference pairs are measured."""

    model_config = ConfigDict(extra="forbid", title="Preference pairs")

    version: Literal[1] = 1
    batch_tokens: int = Field(1024, ge=1, title="Tokens per micro-batch", json_schema_extra=without_result())


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def preference(
    draft: Any,
    run: Run,
    pairs: ArtifactRef,
    landscape: ArtifactRef,
    baseline: ArtifactRef,
    model: ModelHandle,
    sae: SaeHandle,
    dpo_beta: float,
    settings: PreferenceSettings,
) -> None:
    """Margins of every pair, and the DPO gradient over SAE features beside SFT's."""
    import pyarrow as pa

    from tasks.numerics.features import feature_scores

    loaded, autoencoder = model.open(run), sae.open()
    table = read_table(run, pairs)
    measured: dict[int, dict[str, float]] = {}
    gradient, count = 0.0, 0
    with exclusive(loaded), captured_residuals(loaded, autoencoder.hook_name) as residuals:
        call = functional_caller(loaded, [])
        for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
            rows, part = pair_gradients(call, minibatch, dpo_beta, residuals)
            measured.update(zip(minibatch.rows, rows, strict=True))
            gradient, count = gradient + part, count + len(rows)
    draft.write_table("pairs.parquet", _pair_table(table, measured))
    base_acts = run.store.open(baseline).tensors("baseline.safetensors")["base_acts_mean"]
    sft = run.store.open(landscape).tensors("gradients.safetensors")["resid_grad_mean"]
    dpo_scores = feature_scores(gradient / count, autoencoder.W_dec, base_acts).score
    sft_scores = feature_scores(sft, autoencoder.W_dec, base_acts).score
    relative = _unit(dpo_scores) - _unit(sft_scores)
    draft.write_table(
        "features.parquet",
        pa.table(
            {
                "feature": list(range(autoencoder.d_sae)),
                "dpo_score": dpo_scores.numpy(),
                "sft_score": sft_scores.numpy(),
                "relative": relative.numpy(),
                "direction": [
                    "reinforced" if r > 0 else "suppressed" if r < 0 else "unchanged" for r in relative.tolist()
                ],
            }
        ),
    )
    cosine = float((_unit(dpo_scores) * _unit(sft_scores)).sum())
    draft.write_json("summary.json", preference_summary(list(measured.values()), cosine))


def pair_gradients(call: Any, minibatch: Minibatch, dpo_beta: float, residuals: Any) -> tuple[list[dict], Any]:
    """Margins per pair in nats, and the sum over pairs of d DPO loss / d resid summed over tokens [d_model]."""
    import torch

    from tasks.numerics.losses import margins, preference_losses, sequence_logprobs

    chosen = sequence_logprobs(call({}, minibatch.batch), minibatch.batch.labels)
    rejected = sequence_logprobs(call({}, minibatch.rejected), minibatch.rejected.labels)
    lengths = [(batch.labels[:, 1:] != -100).sum(1) for batch in (minibatch.batch, minibatch.rejected)]
    measured = margins(chosen.detach(), rejected.detach(), chosen.detach(), rejected.detach(), *lengths)
    loss = preference_losses(chosen, rejected, chosen.detach(), rejected.detach(), dpo_beta).sum()
    gradients = torch.autograd.grad(loss, list(residuals()))
    summed = sum(gradient.float().sum(dim=(0, 1)) for gradient in gradients)
    columns = zip(measured.raw.tolist(), measured.per_token.tolist(), measured.reference.tolist(), strict=True)
    names = ("margin_raw", "margin_per_token", "margin_reference")
    return [dict(zip(names, row, strict=True)) for row in columns], summed


def _pair_table(table: Any, margins: dict[int, dict[str, float]]) -> list[dict[str, Any]]:
    rows = table.select(["sample_id", "row", "prompt", "completion", "rejected"]).to_pylist()
    return [{**rows[position], **margins[position]} for position in sorted(margins, key=lambda p: rows[p]["row"])]


def _unit(vector: Any) -> Any:
    return vector / vector.norm().clamp_min(1e-30)


def preference_summary(margins: list[dict[str, float]], cosine: float) -> dict[str, Any]:
    """Mean margins, the share of pairs the base model already ranks right, and a warning when it does not."""
    count = len(margins)
    means = {name: sum(pair[name] for pair in margins) / count for name in margins[0]}
    raw = means["margin_raw"]
    signals = []
    if raw < 0:
        signals.append(
            {
                "name": "backwards_preference",
                "severity": "warn",
                "value": raw,
                "threshold": 0.0,
                "advice": "the base model prefers the rejected answers on average; check that chosen and rejected "
                "are not swapped, and that chosen answers are not just longer",
            }
        )
    return {
        "pairs": count,
        **means,
        "win_rate": sum(pair["margin_raw"] > 0 for pair in margins) / count,
        "cosine_dpo_sft": cosine,
        "signals": signals,
    }
