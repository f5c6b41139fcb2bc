"""LoRA's factors at the end of the path, stored as peft names them: what is exported is what the recursion moved."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.contents import Artifact

if TYPE_CHECKING:
    from foretune.tasks.numerics.replay import Factors

ADAPTER = "adapter_model.safetensors"
"""As in a folder of peft's; absent where the weights themselves move."""
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
