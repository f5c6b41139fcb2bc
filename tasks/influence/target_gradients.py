"""Gradients of the influence targets other than held-out loss: the preference margin, or an SAE feature."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.keys import NUMERICS, Fingerprint
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.factors import GRADIENTS, FactorSettings, recorded, value_gradients, write_gradients
from foretune.tasks.inputs.handles import ModelHandle, SaeHandle, device_lock
from foretune.tasks.loading import AdapterTargets, label_caller, target_weights
from foretune.tasks.loading.hooks import run_to_hook
from foretune.tasks.saes import feature_labels
from foretune.tasks.samples.dataset import read_table
from foretune.tasks.samples.minibatches import minibatches, token_masks
from foretune.tasks.samples.rows import SubsetRows

if TYPE_CHECKING:
    from torch import Tensor

BATCH_TOKENS = 1024


@content_task(version=1)
def margin_gradient(
    draft: Any,
    run: Run,
    pairs: ArtifactRef,
    model: ModelHandle,
    targets: AdapterTargets,
    factors: FactorSettings | None = None,
) -> None:
    """Gradient of the mean preference margin, log p(chosen) - log p(rejected) in nats per pair."""
    from foretune.tasks.numerics.losses import sequence_logprobs

    table, loaded = read_table(run, pairs), model.open(run)
    weights = target_weights(loaded, targets)
    call = label_caller(loaded, list(weights))

    def margins() -> Iterator[Any]:
        for minibatch in minibatches(table, BATCH_TOKENS, loaded.device):
            chosen, rejected = minibatch.batch, minibatch.rejected

            def total(w: dict[str, Tensor], chosen: Any = chosen, rejected: Any = rejected) -> Tensor:
                of_chosen, of_rejected = (sequence_logprobs(call(w, side), side.labels) for side in (chosen, rejected))
                return (of_chosen - of_rejected).sum()

            yield total

    with device_lock(loaded):
        gradient = value_gradients(loaded, weights, margins(), factors)
    record = {"name": "preference margin", "unit": "nats per pair", **recorded(factors, loaded.dtype)}
    _write_value(draft, gradient, len(table), record)


@content_task(version=1, libraries=(*NUMERICS, "sae-lens"))
def feature_gradient(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    model: ModelHandle,
    sae: SaeHandle,
    labels: Fingerprint | None,
    feature: int | str,
    targets: AdapterTargets,
    factors: FactorSettings | None = None,
) -> None:
    """Gradient of one SAE feature's mean activation over the label tokens of `rows`."""
    table, loaded, autoencoder = rows.read(run), model.open(run), sae.open()
    names = feature_labels(sae.settings, autoencoder, loaded, labels.uri if labels else None)
    number = feature_number(feature, names)  # pyright: ignore[reportArgumentType]
    gradient, tokens = activation_gradient(loaded, autoencoder, table, number, targets, factors)
    record = {"name": names[number], "feature": number, "unit": "activation per token"}
    _write_value(draft, gradient, tokens, {**record, **recorded(factors, loaded.dtype)})


def activation_gradient(
    loaded: Any,
    autoencoder: Any,
    table: Any,
    number: int,
    targets: AdapterTargets,
    factors: FactorSettings | None = None,
) -> tuple[dict[str, Any], int]:
    """Gradient {module: [out, in]} of a feature's summed activation over a table's label tokens, and their count."""
    weights, tokens = target_weights(loaded, targets), 0

    def activations() -> Iterator[Any]:
        nonlocal tokens
        for minibatch in minibatches(table, BATCH_TOKENS, loaded.device):
            _, trained = token_masks(minibatch.batch)
            tokens += int(trained.sum())

            def total(w: dict[str, Tensor], minibatch: Any = minibatch, trained: Tensor = trained) -> Tensor:
                resid = run_to_hook(loaded, minibatch.batch, autoencoder.hook_name, w)
                return autoencoder.encode(resid[trained])[:, number].sum()

            yield total

    with device_lock(loaded):
        gradient = value_gradients(loaded, weights, activations(), factors)
    return gradient, tokens


def feature_number(feature: int | str, labels: list[str]) -> int:
    """The feature of that number, label, or part of exactly one label, in any case. BadInput for none or several."""
    if isinstance(feature, int) or feature.isdecimal():
        if 0 <= int(feature) < len(labels):
            return int(feature)
        raise BadInput(f"influence.target.feature is {feature}, but the SAE has features 0 to {len(labels) - 1}")
    folded, wanted = [label.casefold() for label in labels], feature.casefold()
    for matches in ([n for n, f in enumerate(folded) if f == wanted], [n for n, f in enumerate(folded) if wanted in f]):
        if len(matches) == 1:
            return matches[0]
        if matches:
            shown = ", ".join(f'{n} "{labels[n]}"' for n in matches[:5])
            raise BadInput(f"influence.target.feature: {len(matches)} labels hold {feature!r} ({shown}); give a number")
    nearest = difflib.get_close_matches(wanted, folded, n=1, cutoff=0.0)
    hint = labels[folded.index(nearest[0])] if nearest else ""
    raise BadInput(f"influence.target.feature: no label holds {feature!r}; the nearest is {hint!r}")


def _write_value(draft: Any, gradient: dict[str, Any], count: int, record: dict[str, Any]) -> None:
    write_gradients(draft, GRADIENTS, {name: g / count for name, g in gradient.items()})
    draft.write_json("target.json", {**record, "modules": list(gradient)})
