"""The weights that suites are asked at beside the base and the predicted ones: on the way, other orders, noise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from foretune.storage.contents import Artifact
from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.inputs.variants import deltas
from foretune.tasks.loading import AdapterSettings, lora_scale

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel


class NoiseSettings(BaseModel, frozen=True):
    """Random deltas of the prediction's size."""

    deltas: int
    seed: int


def module_norms(run: Run, prediction: ArtifactRef) -> dict[str, float]:
    """Of the predicted delta, by module."""
    return {
        row["module"]: row["norm"]
        for row in run.store.open(prediction).arrow("layers.parquet", columns=["module", "norm"]).to_pylist()
        if row["norm"]
    }


def nothing_to_ask(stored: Artifact, noise: NoiseSettings) -> bool:
    """Whether there are no such weights."""
    return not stored.json("variants.json")["variants"] and not noise.deltas


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
