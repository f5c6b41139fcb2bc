"""One suite on the way to the predicted weights, at the ends of other orders of the rows, and under noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from foretune.storage.contents import Artifact
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.behaviour.items import SuiteItems
from foretune.tasks.behaviour.settings import ScoringSettings
from foretune.tasks.engine.keys import NUMERICS
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.handles import ModelHandle, device_lock
from foretune.tasks.inputs.variants import deltas
from foretune.tasks.loading import AdapterSettings, at_weights, lora_scale, token_limits
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import TokenizerHandle

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel


class NoiseSettings(BaseModel, frozen=True):
    """Random deltas of the prediction's size."""

    deltas: int
    seed: int


@content_task(version=1, libraries=(*NUMERICS, "tokenizers", "jinja2", "google-re2"))
def path_scores(
    draft: Any,
    run: Run,
    model: ModelHandle,
    adapter: AdapterSettings,
    variants: ArtifactRef,
    prediction: ArtifactRef,
    tokenizer: TokenizerHandle,
    items: SuiteItems,
    noise: NoiseSettings,
    settings: ScoringSettings,
) -> None:
    """scores.parquet: per weights (waypoint, order or null) and item its score; null where an item does not fit.

    A null delta has the norm of the prediction's in every module, and the adapter's rank.
    """
    from foretune.tasks.behaviour.scoring import score_items

    folder, stored = tokenizer.folder(run), run.store.open(variants)
    norms = {
        row["module"]: row["norm"]
        for row in run.store.open(prediction).arrow("layers.parquet", columns=["module", "norm"]).to_pylist()
        if row["norm"]
    }
    if not stored.json("variants.json")["variants"] and not noise.deltas:  # no model is opened
        draft.write_table("scores.parquet", scores_table([]))
        return
    loaded, limits, known, rows = model.open(run), token_limits(folder), load_tokenizer(folder), []
    with device_lock(loaded):
        for kind, step, seed, delta in moved_weights(loaded, stored, norms, adapter, noise):
            with at_weights(loaded, delta) as moved:
                scored = score_items(moved, known, items.items, settings, limits.positions)
            rows += [
                {"kind": kind, "step": step, "seed": seed, "digest": item.digest, "score": each and each.score}
                for item, each in zip(items.items, scored, strict=True)
            ]
    draft.write_table("scores.parquet", scores_table(rows))


def moved_weights(
    loaded: LoadedModel, stored: Artifact, norms: dict[str, float], adapter: AdapterSettings, noise: NoiseSettings
) -> Iterator[tuple[str, int, int, dict[str, Tensor]]]:
    """Kind, step, seed and delta of all weights that are asked, one delta at a time."""
    from foretune.tasks.numerics.nulls import null_delta

    for variant, delta in deltas(stored, lora_scale(adapter), loaded.device):
        yield variant.kind, variant.step, variant.seed, delta
    weights = {name: loaded.weight(name) for name in norms}
    end = stored.json("variants.json")["end"]
    for draw in range(noise.deltas):
        yield "null", end, draw, null_delta(weights, norms, adapter.r, draw, noise.seed)


def scores_table(rows: list[dict[str, Any]]) -> Any:
    """The rows, with columns also where there are none."""
    import pyarrow as pa

    schema = pa.schema(
        {"kind": pa.string(), "step": pa.int64(), "seed": pa.int64(), "digest": pa.string(), "score": pa.float64()}
    )
    return pa.Table.from_pylist(rows, schema=schema)
