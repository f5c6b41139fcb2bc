"""Whether a concept that moved carries the change of the held-out loss: its activation alone is put back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.circuits.cause_settings import ConceptCauseSettings
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.loading import LoadedModel, label_caller
from foretune.tasks.loading.hooks import captured_residuals, replaced_residuals
from foretune.tasks.samples.minibatches import minibatches, token_masks
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from foretune.tasks.saes import LoadedSae

NOISE = 3.0
"""Standard errors that a feature's change must exceed to have moved."""


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def concept_causes(
    draft: Any,
    run: Run,
    model: ModelHandle,
    checkpoint: ArtifactRef,
    sae: SaeHandle,
    sae_diff: ArtifactRef,
    rows: SubsetRows,
    settings: ConceptCauseSettings,
) -> None:
    """causes.parquet: per feature that moved most the held-out loss without its move, the share of the loss's change,
    what controls do, and a verdict; summary.json."""
    moved = run.store.open(sae_diff).arrow("features.parquet", columns=["feature", "change", "z"])
    chosen = most_moved(moved.to_pylist(), settings.features)
    told: list[dict[str, Any]] = []
    summary: dict[str, Any] = {"features": len(chosen), "to": settings.to, "rows": 0, "carrying": 0}
    if chosen:
        models = model.open(run), model.moved_to(checkpoint).open(run)
        with device_lock(models[0]):
            told, losses = effects_of(models, sae.open(), rows.read(run), chosen, settings)
        summary |= losses | {"carrying": sum(row["verdict"] != "nothing" for row in told)}
    draft.write_table("causes.parquet", _table(told))
    draft.write_json("summary.json", summary)


def most_moved(rows: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """Features whose change exceeds its noise, the largest first."""
    sure = [row for row in rows if abs(row["z"]) > NOISE]
    return sorted(sure, key=lambda row: (-abs(row["change"]), row["feature"]))[:count]


def effects_of(
    models: tuple[LoadedModel, LoadedModel],
    autoencoder: LoadedSae,
    table: pa.Table,
    chosen: Sequence[Mapping[str, Any]],
    settings: ConceptCauseSettings,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """A row per feature, and the losses without any intervention."""
    import torch

    from foretune.tasks.numerics.interventions import cause_effect, drawn_features

    features = [int(row["feature"]) for row in chosen]
    drawn = drawn_features(autoencoder.d_sae, features, len(features) * settings.controls, settings.seed)
    pairs = [(at, feature) for at, feature in enumerate(features)]
    pairs += [(at % len(features), other) for at, other in enumerate(drawn)]
    sums = torch.zeros(2 + len(pairs), len(table), dtype=torch.float64)  # base, predicted, then each intervention
    tokens = torch.zeros(len(table), dtype=torch.float64)
    for minibatch in minibatches(table, settings.batch_tokens, models[0].device):
        where = list(minibatch.rows)
        sums[:, where] = _losses(models, autoencoder, minibatch.batch, features, pairs, settings)
        tokens[where] = (minibatch.batch.labels[:, 1:] != -100).sum(-1).double().cpu()
    base, predicted, *moved = sums
    plain, controls = moved[: len(features)], moved[len(features) :]
    told = [
        {
            **{name: row[name] for name in ("feature", "change", "z")},
            **asdict(cause_effect(base, predicted, without, tokens, controls, settings.bootstrap)),
        }
        for row, without in zip(chosen, plain, strict=True)
    ]
    total = float(tokens.sum())
    figures = {"loss_base": float(base.sum()) / total, "loss_predicted": float(predicted.sum()) / total}
    return told, {"rows": int((tokens > 0).sum()), "tokens": total, "controls": len(controls), **figures}


def _losses(
    models: tuple[LoadedModel, LoadedModel],
    autoencoder: LoadedSae,
    batch: Any,
    features: Sequence[int],
    pairs: Sequence[tuple[int, int]],
    settings: ConceptCauseSettings,
) -> Tensor:
    """[2 + pairs, b] sums of nats of one batch."""
    import torch

    from foretune.tasks.numerics.interventions import of_equal_size, taken_back
    from foretune.tasks.numerics.losses import sample_losses

    callers = [label_caller(each, []) for each in models]
    found, active = [], []
    with torch.no_grad():
        for loaded, call in zip(models, callers, strict=True):
            with captured_residuals(loaded, autoencoder.hook_name) as taken:
                found.append(sample_losses(call({}, batch), batch.labels).loss_sum)
            (hidden,) = taken()
            # A row at a time: all features of all rows are many.
            active.append(torch.stack([autoencoder.encode(row)[:, list(features)] for row in hidden.detach()]))
        seen, _ = token_masks(batch)
        excess = (active[1] - (active[0] if settings.to == "base" else 0)) * seen.to(active[1].device)[..., None]
        for at, direction in pairs:
            own = autoencoder.W_dec[features[at]]
            along = of_equal_size(own, autoencoder.W_dec[direction]).to(models[1].device)
            less = excess[..., at].to(models[1].device)

            def change(hidden: Tensor, less: Tensor = less, along: Tensor = along) -> Tensor:
                return taken_back(hidden, less, along)

            with replaced_residuals(models[1], autoencoder.hook_name, change):
                found.append(sample_losses(callers[1]({}, batch), batch.labels).loss_sum)
    return torch.stack([each.double().cpu() for each in found])


def _table(rows: Sequence[Mapping[str, Any]]) -> pa.Table:
    import pyarrow as pa

    figures = ("change", "z", "effect", "low", "high", "share", "random")
    schema = {"feature": pa.int64(), **dict.fromkeys(figures, pa.float64()), "verdict": pa.string()}
    return pa.Table.from_pylist(list(rows), schema=pa.schema(schema))
