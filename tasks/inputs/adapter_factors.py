"""LoRA's factors at the end of the path, stored as peft names them: what is exported is what the recursion moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.factored import Gradient
    from foretune.tasks.numerics.replay import Factors

ADAPTER = "adapter_model.safetensors"
"""As in a folder of peft's; absent where the weights themselves move."""
DELTA = "delta.safetensors"
"""The change of every moved weight: a tensor, or the two factors of one."""
LEFT, RIGHT = ".left", ".right"
PREFIX, WEIGHT = "base_model.model.", ".weight"


def write_factors(draft: Any, factors: Factors, file: str = ADAPTER) -> None:
    """A [r, in] and B [out, r] of every adapted module, in float32."""
    tensors = {}
    for name, (a, b) in factors.items():
        module = PREFIX + name.removesuffix(WEIGHT)
        tensors[f"{module}.lora_A{WEIGHT}"], tensors[f"{module}.lora_B{WEIGHT}"] = a.float(), b.float()
    draft.write_tensors(file, tensors)


def stored_factors(artifact: Artifact) -> Factors:
    """The factors at the end of the path; empty where there are none."""
    return read_factors(artifact, ADAPTER) if ADAPTER in artifact.names() else {}


def read_factors(artifact: Artifact, file: str) -> Factors:
    """What `write_factors` wrote to this file."""
    tensors = artifact.tensors(file)
    modules = [name.removesuffix(f".lora_A{WEIGHT}") for name in tensors if name.endswith(f".lora_A{WEIGHT}")]
    return {
        module.removeprefix(PREFIX) + WEIGHT: (tensors[f"{module}.lora_A{WEIGHT}"], tensors[f"{module}.lora_B{WEIGHT}"])
        for module in modules
    }


def write_delta(draft: Any, delta: Mapping[str, Gradient]) -> None:
    """Every weight's change as it is held."""
    from foretune.tasks.numerics.factored import Factored

    tensors = {}
    for name, change in delta.items():
        if isinstance(change, Factored):
            tensors[name + LEFT], tensors[name + RIGHT] = change.factors()
        else:
            tensors[name] = change.contiguous()
    draft.write_tensors(DELTA, tensors)


def stored_change(artifact: Artifact) -> dict[str, Gradient]:
    """{name: [out, in]} as `write_delta` wrote it."""
    tensors, found = artifact.tensors(DELTA), dict[str, Any]()
    for name, tensor in tensors.items():
        weight = name.removesuffix(LEFT)
        if weight + RIGHT in tensors:
            from foretune.tasks.numerics.factored import thin

            found[weight] = thin(tensor, tensors[weight + RIGHT])
        elif not (name.endswith(RIGHT) and name.removesuffix(RIGHT) + LEFT in tensors):
            found[name] = tensor
    return found


def stored_delta(artifact: Artifact) -> dict[str, Tensor]:
    """The same, all of it formed."""
    from foretune.tasks.numerics.factored import dense

    return {name: dense(change) for name, change in stored_change(artifact).items()}
