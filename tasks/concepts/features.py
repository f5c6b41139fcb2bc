"""Two estimates of how features change, made before anything is measured, and a name for every feature.

`score` is first order in an infinitesimal descent step and needs no model pass. `predicted_change` follows the
predicted weight delta: the residual stream's derivative along it, read by the SAE's own encoder, so that a
feature that is silent in the base model can appear ("dormant but moving").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.concepts.settings import FeatureSettings
from foretune.tasks.engine.keys import NUMERICS, Fingerprint
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapter_factors import stored_delta
from foretune.tasks.inputs.concepts import NamingSettings
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, SaeHandles, device_lock, opened_saes
from foretune.tasks.loading.hooks import run_to_hooks
from foretune.tasks.loading.logit_lens import every_token
from foretune.tasks.saes import clearly_promoted, given_labels
from foretune.tasks.samples.minibatches import minibatches, token_masks
from foretune.tasks.samples.rows import SubsetRows


@content_task(version=2, libraries=(*NUMERICS, "sae-lens"))
def feature_scores(
    draft: Any,
    run: Run,
    gradient: ArtifactRef | None,
    baseline: ArtifactRef | None,
    prediction: ArtifactRef,
    rows: SubsetRows,
    model: ModelHandle,
    sae: SaeHandle | SaeHandles,
    settings: FeatureSettings,
    base: ArtifactRef | None = None,
) -> None:
    """The seed's score with descent's sign and the tangent along the predicted delta, of features by number.

    Without a gradient at this SAE's hook there is no score; `base` then tells what its features do at the base weights.
    Of several SAEs each in the folder of its place; the gradient is at the first one's hook, the others have `base`.
    """
    import pyarrow as pa

    loaded, autoencoders = model.open(run), opened_saes(sae)
    delta = stored_delta(run.store.open(prediction))
    table = rows.read(run)
    with device_lock(loaded):
        tangents = tangent_changes(loaded, autoencoders, delta, table, settings)
    for folder, autoencoder, predicted in zip(sae.folders, autoencoders, tangents, strict=True):
        known = (gradient, baseline) if folder == sae.folders[0] else (None, None)
        base_acts, score, dormant = estimates(run, autoencoder, *known, base, folder)
        draft.write_table(
            f"{folder}features.parquet",
            pa.table(
                {
                    "feature": list(range(autoencoder.d_sae)),
                    "base_act": base_acts.numpy(),
                    "score": pa.array(score.numpy(), from_pandas=True),  # not a number: not known
                    "predicted_change": predicted.numpy(),
                    "dormant": dormant.numpy(),
                    "agrees": ((score * predicted) >= 0).numpy(),
                }
            ),
        )


def estimates(
    run: Run,
    autoencoder: Any,
    gradient: ArtifactRef | None,
    baseline: ArtifactRef | None,
    base: ArtifactRef | None,
    folder: str = "",
) -> tuple[Any, Any, Any]:
    """Mean activation at the base weights, score and whether it never fires, [d_sae] each; no score is NaN.

    `folder` is where `base` has what is of this SAE."""
    import torch

    from foretune.tasks.numerics import features as numerics

    if gradient is None or baseline is None:
        sums = run.store.open(base).tensors(f"{folder}sums.safetensors")  # pyright: ignore[reportArgumentType]
        acts = (sums["sums"].sum(0) / sums["tokens"].sum()).float()
        return acts, torch.full_like(acts, torch.nan), acts <= 0
    acts = run.store.open(baseline).tensors("baseline.safetensors")["base_acts_mean"]
    residual = run.store.open(gradient).tensors("gradients.safetensors")["resid_grad_mean"]
    scores = numerics.feature_scores(residual, autoencoder.W_dec, acts)
    return acts, scores.score, scores.dormant


@content_task(version=3, libraries=(*NUMERICS, "sae-lens"))
def features(
    draft: Any,
    run: Run,
    scores: ArtifactRef,
    firings: ArtifactRef,
    model: ModelHandle,
    sae: SaeHandle,
    labels: Fingerprint | None,
    settings: NamingSettings,
    diff: ArtifactRef | None = None,
) -> None:
    """The scores with a name for every feature, its source and how well it tells the feature's contexts from others;
    other names change no number. With an endpoint the features of `diff` that moved most are asked about there, and
    summary.json tells how that went."""
    import pyarrow as pa

    from foretune.tasks.concepts.detector import Detector
    from foretune.tasks.concepts.evidence import Evidence
    from foretune.tasks.concepts.naming import asked_names, name_of

    loaded, autoencoder, stored = model.open(run), sae.open(), run.store.open(firings)
    evidence = Evidence(stored.arrow("tokens.parquet"), stored.arrow("firings.parquet"), loaded.tokenizer)
    detector = Detector(evidence, every_token(loaded))
    given = given_labels(sae.settings, autoencoder, labels.uri) if labels else {}
    promoted = clearly_promoted(autoencoder, loaded)
    named = [
        name_of(number, given.get(number), promoted.get(number), evidence, detector, settings)
        for number in range(autoencoder.d_sae)
    ]
    if settings.endpoint is not None and diff is not None:
        moved = (
            run.store.open(diff).arrow("features.parquet", columns=["feature", "change", "beyond_noise"]).to_pylist()
        )
        told = asked_names(named, moved, promoted, evidence, detector, settings)
        draft.write_json("summary.json", told)
    table = run.store.open(scores).arrow("features.parquet").add_column(1, "label", [[each.label for each in named]])
    for column, values, kind in (
        ("label_source", [each.source for each in named], pa.string()),
        ("confidence", [each.confidence for each in named], pa.float64()),
        ("tested", [each.tested for each in named], pa.int64()),
    ):
        table = table.append_column(column, pa.array(values, kind))
    draft.write_table("features.parquet", table)


def tangent_changes(
    loaded: Any, autoencoders: Sequence[Any], delta: dict[str, Any], table: Any, settings: FeatureSettings
) -> list[Any]:
    """Mean over label tokens of encode(h + dh) - encode(h), dh the derivative of the residual along `delta`.

    dh is the central difference (h(W + e d) - h(W - e d)) / 2e, two forwards that stop at the last hook. [d_sae] of
    each SAE; the forwards serve all.
    """
    import torch

    base = {name: loaded.weight(name) for name in delta}
    delta = {name: change.to(loaded.device, base[name].dtype) for name, change in delta.items()}
    hooks = [autoencoder.hook_name for autoencoder in autoencoders]
    totals, tokens = [torch.zeros(each.d_sae, dtype=torch.float64) for each in autoencoders], 0
    for minibatch in minibatches(table, settings.batch_tokens, loaded.device):
        _, trained = token_masks(minibatch.batch)
        with torch.no_grad():
            at = []
            for sign in (0.0, 1.0, -1.0):
                weights = {n: w + sign * settings.step * delta[n] for n, w in base.items()}
                read = run_to_hooks(loaded, minibatch.batch, hooks, weights)
                at.append({hook: resid[trained] for hook, resid in read.items()})
            for autoencoder, total in zip(autoencoders, totals, strict=True):
                still, up, down = (read[autoencoder.hook_name] for read in at)
                moved = still + (up - down) / (2 * settings.step)
                change = autoencoder.encode(moved) - autoencoder.encode(still)
                total += change.sum(dim=0, dtype=torch.float64).cpu()
        tokens += int(trained.sum())
    return [(total / max(tokens, 1)).float() for total in totals]
