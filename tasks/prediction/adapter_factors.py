"""LoRA's factors at the end of the path, stored as peft names them: what is exported is what the recursion moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact

if TYPE_CHECKING:
    from foretune.tasks.numerics.replay import Factors

ADAPTER = "adapter_model.safetensors"
"""As in a folder of peft's; absent where the weights themselves move."""
PREFIX, WEIGHT = "base_model.model.", ".weight"


def write_factors(draft: Any, factors: Factors) -> None:
    """A [r, in] and B [out, r] of every adapted module, in float32."""
    tensors = {}
    for name, (a, b) in factors.items():
        module = PREFIX + name.removesuffix(WEIGHT)
        tensors[f"{module}.lora_A{WEIGHT}"], tensors[f"{module}.lora_B{WEIGHT}"] = a.float(), b.float()
    draft.write_tensors(ADAPTER, tensors)


def stored_factors(artifact: Artifact) -> Factors:
    """What `write_factors` wrote; empty where there is none."""
    if ADAPTER not in artifact.names():
        return {}
    tensors = artifact.tensors(ADAPTER)
    modules = [name.removesuffix(f".lora_A{WEIGHT}") for name in tensors if name.endswith(f".lora_A{WEIGHT}")]
    return {
        module.removeprefix(PREFIX) + WEIGHT: (tensors[f"{module}.lora_A{WEIGHT}"], tensors[f"{module}.lora_B{WEIGHT}"])
        for module in modules
    }
