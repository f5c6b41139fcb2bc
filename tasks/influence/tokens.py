"""The influence score of one sample, token by token: how much of it each label token accounts for."""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.loading import AdapterSettings
from foretune.tasks.samples.minibatches import minibatches
from foretune.tasks.samples.rows import SubsetRows

BATCH_TOKENS = 1024


@content_task(version=1)
def influence_tokens(
    draft: Any,
    run: Run,
    rows: SubsetRows,
    directions: ArtifactRef,
    model: ModelHandle,
    adapter: AdapterSettings,
    seed: int,
) -> None:
    """tokens.parquet: every token of the sample with `derivative`, that of its loss along the first target's direction.

    Its share of the sample's first-order score: the token's derivative over the sum of all. 0 without a label. Of a
    preference pair, the chosen answer's tokens.
    """
    from foretune.tasks.numerics.scoring import token_derivatives

    table = rows.read(run)
    adapted = adapt(model.open(run), adapter, seed)
    stored = run.store.open(directions).tensor_file("directions.safetensors")
    theta = {name: stored.get_slice(name)[0].to(w.device) for name, w in adapted.weights.items()}
    direction = adapted.space.lift(theta)
    with device_lock(adapted.loaded):
        (minibatch,) = minibatches(table, BATCH_TOKENS, adapted.loaded.device)
        derivatives = token_derivatives(adapted.call, adapted.weights, direction, minibatch.batch)[0].tolist()
    ids, mask = table["input_ids"][0].as_py(), table["loss_mask"][0].as_py()
    total = sum(derivatives)
    draft.write_table(
        "tokens.parquet",
        [
            {
                "position": position,
                "token": adapted.loaded.tokenizer.decode([token]),
                "label": label,
                "derivative": value,
                "share": value / total if total else 0.0,
            }
            for position, (token, label, value) in enumerate(zip(ids, mask, [0.0, *derivatives], strict=False))
        ],
    )
    draft.write_json("summary.json", {"sample_id": table["sample_id"][0].as_py(), "row": table["row"][0].as_py()})
