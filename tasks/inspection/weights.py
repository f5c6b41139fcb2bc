"""What the prediction does to each tensor: norms, cosine, and the largest singular values of its change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.singular import SingularPart

VALUES = 4
"""Singular values that are kept of a change."""


def weight_changes(base: LoadedModel, new: LoadedModel) -> tuple[list[dict[str, Any]], dict[str, SingularPart]]:
    """A row per tensor, and the largest singular values with their directions of every matrix that moved."""
    from foretune.tasks.numerics.singular import largest_singular

    rows, parts = [], {}
    for name, _ in base.model.named_parameters():
        weight, other = base.values(name).float(), new.values(name).float()
        change = other - weight
        row = _norms(name, weight, other, change)
        if change.ndim == 2 and row["delta_norm"]:
            parts[name] = largest_singular(change, VALUES)
        part = parts.get(name)
        row["stable_rank"] = part.stable_rank if part else None
        row["singular_values"] = part.values.tolist() if part else []
        rows.append(row)
    return rows, parts


def _norms(name: str, weight: Tensor, other: Tensor, change: Tensor) -> dict[str, Any]:
    """Frobenius norms under both models and of the difference; cosine of the new weights to the base."""
    norm, norm_new, moved = (float(tensor.norm()) for tensor in (weight, other, change))
    product = float((weight * other).double().sum())
    return {
        "module": name,
        "norm_base": norm,
        "norm_new": norm_new,
        "delta_norm": moved,
        "relative": moved / norm if norm else 0.0,
        "cosine": min(1.0, product / (norm * norm_new)) if norm and norm_new else None,
    }


def stored_dtypes(loaded: LoadedModel, names: list[str]) -> str:
    """As what a model's folder stores these parameters, in safetensors' words: "F32", or "BF16 and F32"."""
    from foretune.tasks.loading.stored import StoredWeights, stored_names

    layout = StoredWeights(loaded.folder).layout()
    return " and ".join(
        sorted({layout[key].dtype for name in names for key in stored_names(loaded.model, name, layout)})
    )
