"""Adapters: which weights of a model a fine-tune moves, and where LoRA starts."""

from __future__ import annotations

import copy
import difflib
import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from foretune.storage.errors import BadInput
from foretune.tasks.loading.models import building
from foretune.tasks.loading.placement import offloaded

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from foretune.tasks.loading.models import LoadedModel

ALL_LINEAR = "all-linear"


class AdapterTargets(BaseModel):
    """Which weights move: all of them, or those of the named modules."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, title="Adapter")

    version: Literal[1] = 1
    method: Literal["lora", "full"] = Field(default="lora", title="Method")
    target_modules: list[str] | Literal["all-linear"] = Field(
        max_length=10_000,
        default=["q_proj", "v_proj"],
        min_length=1,
        title="Target modules",
        description="module names or their last parts, as in peft; all-linear: all linear ones but the head",
    )

    @field_validator("target_modules", mode="before")
    @classmethod
    def _list_or_all_linear(cls, value: Any) -> Any:
        if isinstance(value, str) and value != ALL_LINEAR:
            raise ValueError("give a list, as in [q_proj, v_proj], or all-linear")
        return ALL_LINEAR if value == [ALL_LINEAR] else value


class AdapterSettings(AdapterTargets):
    """What the fine-tune trains, in the names of peft's LoraConfig."""

    r: int = Field(default=8, ge=1, le=65_536, title="Rank")
    lora_alpha: int = Field(
        default=16, ge=1, le=1_000_000, title="Alpha", description="the update is scaled by alpha / r"
    )
    lora_dropout: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        title="Dropout",
        description="in expectation: no value of it moves a prediction; a real run of backtest drops out",
        json_schema_extra={"affects_result": False},
    )
    use_rslora: bool = Field(default=False, title="Rank-stabilised", description="scale by alpha / sqrt(r)")
    bias: Literal["none"] = Field(default="none", title="Trained biases")

    @property
    def targets(self) -> AdapterTargets:
        """The part that decides which weights move; the rank, for one, does not."""
        if self.method == "full":
            return AdapterTargets(method="full")
        return AdapterTargets(target_modules=self.target_modules)


def lora_config(adapter: AdapterSettings) -> LoraConfig:
    """peft's own configuration of the same adapter, for a run that really trains."""
    from peft import LoraConfig

    return LoraConfig(
        r=adapter.r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        bias=adapter.bias,
        target_modules=adapter.target_modules,
        use_rslora=adapter.use_rslora,
        task_type="CAUSAL_LM",
    )


def adapter_config(adapter: AdapterSettings, modules: list[str], base: str) -> dict[str, Any]:
    """adapter_config.json of a folder of peft's: the adapter on just these modules of the model `base`."""
    config = lora_config(adapter.model_copy(update={"target_modules": modules}))
    config.base_model_name_or_path, config.inference_mode = base, True
    return {name: sorted(value) if isinstance(value, set) else value for name, value in config.to_dict().items()}


def lora_scale(adapter: AdapterSettings) -> float:
    """s in W0 + s B A: alpha / r, or alpha / sqrt(r) when rank-stabilised."""
    return adapter.lora_alpha / (math.sqrt(adapter.r) if adapter.use_rslora else adapter.r)


def target_weights(loaded: LoadedModel, targets: AdapterTargets) -> dict[str, Tensor]:
    """{name: weight} of what moves, in the model's order, names as in `model.named_parameters`.

    LoRA: the full weights [out, in] of the modules that peft adapts. Full: every floating-point parameter, a
    tied one once. Raises BadInput when a target matches nothing, is not linear, or is tied to another weight.
    """
    model = loaded.model
    if targets.method == "full" and (away := len(offloaded(model))):
        raise BadInput(
            f"model.device_map: {away} tensors fit on no device, so a full fine-tune cannot be simulated here; "
            "set adapter.method: lora or use more GPUs"
        )
    known, told = loaded.moved_names, targets.model_dump_json()
    if told not in known:
        known[told] = moved_names(model, targets)
    return {name: loaded.weight(name) for name in known[told]}


def moved_names(model: PreTrainedModel, targets: AdapterTargets) -> list[str]:
    """Names of the weights that move, of a model with or without data. BadInput as `target_weights`."""
    if targets.method == "full":
        return [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    modules = _adapted_modules(model, targets)
    own = dict(model.named_parameters(remove_duplicate=False))
    uses: dict[int, int] = {}
    for parameter in own.values():
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    for module in modules:
        if uses[id(own[f"{module}.weight"])] > 1:
            raise BadInput(
                f"adapter.target_modules: {module} shares its weight with the embedding, so "
                "merging would move both; leave it out"
            )
    return [f"{module}.weight" for module in modules]


def undecayed_weights(model: Module) -> frozenset[str]:
    """Names of the parameters that transformers' Trainer leaves out of weight decay: norms and biases."""
    from transformers import Trainer

    no_trainer: Any = None
    decayed = Trainer.get_decay_parameter_names(no_trainer, model)  # reads nothing of a trainer
    return frozenset(name for name, _ in model.named_parameters()) - frozenset(decayed)


def _adapted_modules(model: PreTrainedModel, targets: AdapterTargets) -> list[str]:
    """Names of the modules that peft wraps, found by letting it wrap a copy of the model without data."""
    from torch import nn

    with building:
        from peft import LoraConfig, inject_adapter_in_model
        from peft.tuners.lora import LoraLayer
    empty = {id(p): nn.Parameter(p.to("meta"), requires_grad=False) for p in model.parameters()}
    skeleton = copy.deepcopy(model, empty)
    config = LoraConfig(r=1, target_modules=targets.target_modules)
    try:
        with building:
            inject_adapter_in_model(config, skeleton, low_cpu_mem_usage=True)
    except ValueError as error:
        raise _no_such_target(model, targets, error) from None
    found = {name: module for name, module in skeleton.named_modules() if isinstance(module, LoraLayer)}
    for name, module in found.items():
        if not isinstance(module.get_base_layer(), nn.Linear):
            raise _not_linear(name, module.get_base_layer())
    return list(found)


def _no_such_target(model: PreTrainedModel, targets: AdapterTargets, error: ValueError) -> BadInput:
    named = targets.target_modules if isinstance(targets.target_modules, list) else [targets.target_modules]
    modules = dict(model.named_modules())
    for name, module in modules.items():
        if "not supported" in str(error) and any(f".{name}".endswith(f".{target}") for target in named):
            return _not_linear(name, module)
    # peft speaks in several sentences, the later ones with sets, which print in another order every time.
    reason = re.sub(r"^\[PEFT:[^\]]*\] ", "", str(error)).split(". ")[0].strip()
    if "not found in the base model" not in reason and "No modules were targeted" not in reason:
        return BadInput(
            f"adapter.target_modules: {reason}; leave it out of {targets.target_modules}, "
            f"the linear modules are {', '.join(sorted(_linear_leaves(modules)))}"
        )
    near = sorted(_linear_leaves(modules), key=lambda leaf: (-_likeness(leaf, named), leaf))
    return BadInput(
        f"adapter.target_modules: {', '.join(named)} matches no module of {type(model).__name__}; "
        f"its linear modules are {', '.join(near)}"
    )


def _linear_leaves(modules: Mapping[str, Module]) -> set[str]:
    from torch import nn

    return {name.rsplit(".", 1)[-1] for name, module in modules.items() if isinstance(module, nn.Linear)}


def _not_linear(name: str, module: Module) -> BadInput:
    kind = type(module).__name__
    return BadInput(f"adapter.target_modules: {name} is a {kind}; only linear modules can be simulated")


def _likeness(leaf: str, named: list[str]) -> float:
    return max(difflib.SequenceMatcher(None, leaf, target).ratio() for target in named)


def lora_init(
    shapes: Mapping[str, tuple[int, ...]], adapter: AdapterSettings, seed: int, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """{name: A [r, in]} as peft's `get_peft_model` draws it right after `torch.manual_seed(seed)`; B is zero.

    `shapes` are {name: (out, in)} in the model's order, as `target_weights` gives them. For a model in half
    precision give its `dtype`: peft rounds A to it before it goes on in float32. The process's own random
    state is neither read nor moved.
    """
    import torch
    from torch.nn.init import kaiming_uniform_

    generator = torch.Generator().manual_seed(seed)

    def drawn(rows: int, columns: int) -> Tensor:
        # sqrt(5) is the slope with which nn.Linear and peft both initialise.
        return kaiming_uniform_(torch.empty(rows, columns), a=math.sqrt(5), generator=generator)

    initial = {}
    for name, (outputs, inputs) in shapes.items():
        # Per module peft makes two linear layers, which draw their own weights, and then draws A again.
        drawn(adapter.r, inputs)
        drawn(outputs, adapter.r)
        initial[name] = drawn(adapter.r, inputs).to(dtype or torch.float32).float()
    return initial
