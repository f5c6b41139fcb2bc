"""The adapter of a what-if's setting, over the modules that its run has measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.tasks.loading import AdapterSettings, lora_init, lora_scale
from foretune.tasks.prediction.outcome import Setting
from foretune.tasks.prediction.stored_gradients import StoredGradients

if TYPE_CHECKING:
    from foretune.tasks.numerics.replay import Adapter


def adapter_of(stored: StoredGradients, setting: Setting) -> Adapter:
    import torch

    from foretune.tasks.numerics.replay import FullAdapter, LoraAdapter

    adapter = setting.adapter
    if adapter.method == "full":
        if setting.training.weight_decay:
            raise BadInput("training.weight_decay of a full fine-tune pulls at the weights; simulate it instead")
        return FullAdapter({name: torch.zeros(shape) for name, shape in stored.shapes.items()})
    shapes = {name: stored.shapes[name] for name in adapted_names(stored.shapes, adapter, stored.everything)}
    outputs = {name: shape[0] for name, shape in shapes.items()}
    initial = lora_init(shapes, adapter, setting.training.seed, getattr(torch, stored.dtype))
    return LoraAdapter(initial, lora_scale(adapter), outputs)


def adapted_names(measured: dict[str, Any], adapter: AdapterSettings, everything: bool) -> list[str]:
    """The measured weights that these target modules name; `everything` says that all-linear was measured.

    BadInput for a target that was not.
    """
    targets = adapter.target_modules
    if isinstance(targets, str):
        if not everything:
            raise BadInput(f"adapter.target_modules: the run did not measure {targets}; simulate it")
        return list(measured)
    modules = {name: f".{name.removesuffix('.weight')}" for name in measured}
    for target in targets:
        if not any(module.endswith(f".{target}") for module in modules.values()):
            kinds = sorted({module.rsplit(".", 1)[-1] for module in modules.values()})
            raise BadInput(
                f"adapter.target_modules: {target} has no stored gradients; the run measured {', '.join(kinds)}"
            )
    return [n for n, module in modules.items() if any(module.endswith(f".{target}") for target in targets)]
