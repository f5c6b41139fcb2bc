"""The mean gradient of a role's rows, reduced from the shards of the landscape.

It is an artefact of its own so that what only words the landscape (row numbers, thresholds) leaves the passes
that read the gradient alone.
"""

from __future__ import annotations

from typing import Any

from foretune.storage.refs import ArtifactRef
from foretune.storage.runs import Run
from foretune.tasks.engine.passes import content_task


@content_task(version=1, libraries=("torch",))
def gradient(draft: Any, run: Run, shards: list[ArtifactRef]) -> None:
    """gradients.safetensors: mean over tokens per adapted weight, and at the SAE's hook; counts.json."""
    opened = [run.store.open(shard) for shard in shards]
    nodes = [artifact.json("shard.json") for artifact in opened]
    modules, tokens = nodes[0]["modules"], [node["tokens"] for node in nodes]
    mean, norms, node_squares = reduce_gradients(opened, modules, tokens)
    draft.write_tensors("gradients.safetensors", mean)
    draft.write_json(
        "counts.json",
        {
            "rows": sum(node["rows"] for node in nodes),
            "tokens": sum(tokens),
            "modules": modules,
            "norms": norms,
            **noise_scale(node_squares, sum(norm**2 for norm in norms), tokens),
        },
    )


def reduce_gradients(
    opened: list[Any], modules: list[str], tokens: list[float]
) -> tuple[dict[str, Any], list[float], list[float]]:
    """Mean gradients, their norms, and |mean gradient|^2 of every node; one weight of all nodes in memory at a time."""
    from foretune.tasks.numerics.gradients import mean_gradient

    files = [artifact.tensor_file("gradients.safetensors") for artifact in opened]
    mean, norms, node_squares = {}, [], [0.0] * len(opened)
    for name in modules:
        reduced = mean_gradient([file.get_tensor(name) for file in files], tokens)
        mean[name] = reduced.mean
        norms.append(float(reduced.mean.double().norm()))
        node_squares = [total + square for total, square in zip(node_squares, reduced.node_squares, strict=True)]
    # Empty without an SAE, and for a shard without a trained token.
    residuals = [part for part in (artifact.tensors("residual.safetensors") for artifact in opened) if part]
    if residuals:
        mean["resid_grad_mean"] = sum(part["resid_grad_sum"] for part in residuals) / sum(tokens)
    return mean, norms, node_squares


def noise_scale(node_squares: list[float], mean_square: float, tokens: list[float]) -> dict[str, float | None]:
    """Gradient noise scale in tokens and in rows' worth of batch, see numerics.noise."""
    from foretune.tasks.numerics.noise import gradient_noise_scale

    estimate = gradient_noise_scale(node_squares, tokens, mean_square)
    return {"noise_scale_tokens": estimate.noise_scale, "noise_scale_se": estimate.standard_error}
