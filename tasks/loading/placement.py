"""Models larger than a device: which of their layers wait in main memory or on disk, and how one is fetched.

A forward pass holds one fetched layer at a time. A backward pass needs them again, so that its graph holds every
layer that it went through: gradients need room for the layers above the lowest adapted one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from foretune.storage.cache import cache_dir
from foretune.storage.places import local_path

if TYPE_CHECKING:
    import torch
    from torch import nn
    from transformers import PreTrainedModel

    from foretune.tasks.loading.settings import ModelSettings


def placing(settings: ModelSettings, fingerprint: str) -> dict[str, Any]:
    """The arguments of `from_pretrained` that split a model; none without a device map.

    Every GPU is filled first, then `cpu_memory_gb` of main memory, then the offload folder, where each model has a
    folder of its own: the base and its predicted checkpoint hold tensors of the same names.
    """
    if settings.device_map is None:
        return {}
    from accelerate.utils import get_max_memory

    named = settings.offload_folder
    folder = local_path(named, "model.offload_folder") if named else cache_dir() / "offload"
    most = get_max_memory()
    if settings.cpu_memory_gb is not None:
        most["cpu"] = int(settings.cpu_memory_gb * 1e9)
    return {"device_map": settings.device_map, "offload_folder": folder / fingerprint, "max_memory": most}


def offloaded(model: PreTrainedModel) -> list[str]:
    """Names of the parameters that wait elsewhere; accelerate fetches them whenever their module is called."""
    return [name for name, parameter in model.named_parameters() if parameter.is_meta]


def stored_value(model: PreTrainedModel, name: str) -> torch.Tensor:
    """The values of a parameter, fetched where they wait elsewhere."""
    parameter = model.get_parameter(name)
    if not parameter.is_meta:
        return parameter
    module, own_name = _owner(model, name)
    return _fetching(module).weights_map[own_name]


def keep_resident(model: PreTrainedModel, name: str) -> None:
    """Fetch the parameters of this one's module for good: a function of a weight needs a weight to start from."""
    from torch import nn

    module, _ = _owner(model, name)
    hook = _fetching(module)
    for own_name, _ in list(module.named_parameters(recurse=False)):
        value = hook.weights_map[own_name].to(hook.execution_device)
        setattr(module, own_name, nn.Parameter(value, requires_grad=False))
    hook.offload = False


def _owner(model: PreTrainedModel, name: str) -> tuple[nn.Module, str]:
    path, _, own_name = name.rpartition(".")
    return model.get_submodule(path), own_name


def _fetching(module: nn.Module) -> Any:
    """accelerate's hook that fetches this module's parameters before each call."""
    hooks = getattr(module._hf_hook, "hooks", [module._hf_hook])
    return next(hook for hook in hooks if getattr(hook, "offload", False))
