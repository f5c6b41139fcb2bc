"""The mean gradient of a role's rows, reduced from the shards of the landscape.

It is an artefact of its own so that what only words the landscape (row numbers, thresholds) leaves the passes
that read the gradient alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task
from foretune.tasks.inputs.factors import GRADIENTS, RECORD, GradientFile, write_gradients

if TYPE_CHECKING:
    from foretune.tasks.numerics.factored import Factored


@content_task(version=1, libraries=("torch",))
def gradient(draft: Any, run: Run, shards: list[ArtifactRef]) -> None:
    """gradients.safetensors: mean over tokens per adapted weight, and at the SAE's hook; counts.json."""
    opened = [run.store.open(shard) for shard in shards]
    nodes = [artifact.json("shard.json") for artifact in opened]
    modules, tokens = nodes[0]["modules"], [node["tokens"] for node in nodes]
    in_factors = RECORD in nodes[0]
    reduce = reduce_factors if in_factors else reduce_gradients
    mean, norms, node_squares = reduce(opened, modules, tokens)
    write_gradients(draft, GRADIENTS, mean)
    draft.write_json(
        "counts.json",
        {
            "rows": sum(node["rows"] for node in nodes),
            "tokens": sum(tokens),
            "modules": modules,
            "norms": norms,
            **({RECORD: mean_record([node[RECORD] for node in nodes], tokens)} if in_factors else {}),
            **noise_scale(node_squares, sum(norm**2 for norm in norms), tokens),
        },
    )


def reduce_gradients(
    opened: list[Any], modules: list[str], tokens: list[float]
) -> tuple[dict[str, Any], list[float], list[float]]:
    """Mean gradients, their norms, and |mean gradient|^2 of every node; one weight of all nodes in memory at a time."""
    from foretune.tasks.numerics.gradients import mean_gradient

    files = [artifact.read_tensors("gradients.safetensors") for artifact in opened]  # mapped all would be in memory
    mean, norms, node_squares = {}, [], [0.0] * len(opened)
    for name in modules:
        reduced = mean_gradient([file.tensor(name) for file in files], tokens)
        mean[name] = reduced.mean
        norms.append(float(reduced.mean.double().norm()))
        node_squares = [total + square for total, square in zip(node_squares, reduced.node_squares, strict=True)]
    return mean | residual_mean(opened, tokens), norms, node_squares


def reduce_factors(
    opened: list[Any], modules: list[str], tokens: list[float]
) -> tuple[dict[str, Any], list[float], list[float]]:
    """The same of shards in factors; squares are of what these hold."""
    from foretune.tasks.numerics.factored import weighted_sum
    from foretune.tasks.numerics.ranks import SUM_RANKS

    files = [GradientFile(each, GRADIENTS, each.json("shard.json")[RECORD], modules) for each in opened]
    mean, norms, node_squares = {}, [], [0.0] * len(opened)
    for name in modules:
        parts = [cast("Factored", file.read(name)).float() for file in files]
        mean[name] = weighted_sum(parts, SUM_RANKS * max(part.rank for part in parts)) * (1 / sum(tokens))
        norms.append(mean[name].norm())
        squares = [(part.norm() / count) ** 2 if count else 0.0 for part, count in zip(parts, tokens, strict=True)]
        node_squares = [total + square for total, square in zip(node_squares, squares, strict=True)]
    return mean | residual_mean(opened, tokens), norms, node_squares


def mean_record(records: list[dict[str, Any]], tokens: list[float]) -> dict[str, Any]:
    """Of the shards, with the mean of their errors by weight, by tokens."""
    errors = {
        name: [
            sum(record["errors"][name][side] * count for record, count in zip(records, tokens, strict=True))
            / sum(tokens)
            for side in (0, 1)
        ]
        for name in records[0]["errors"]
    }
    return {**records[0], "errors": errors}


def residual_mean(opened: list[Any], tokens: list[float]) -> dict[str, Any]:
    """At the SAE's hook. Empty without an SAE, and for a shard without a trained token."""
    residuals = [part for part in (artifact.tensors("residual.safetensors") for artifact in opened) if part]
    if not residuals:
        return {}
    return {"resid_grad_mean": sum(part["resid_grad_sum"] for part in residuals) / sum(tokens)}


def noise_scale(node_squares: list[float], mean_square: float, tokens: list[float]) -> dict[str, float | None]:
    """Gradient noise scale in tokens and in rows' worth of batch, see numerics.noise."""
    from foretune.tasks.numerics.noise import gradient_noise_scale

    estimate = gradient_noise_scale(node_squares, tokens, mean_square)
    return {"noise_scale_tokens": estimate.noise_scale, "noise_scale_se": estimate.standard_error}
