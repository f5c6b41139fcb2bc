"""Hook points: places in a model where its activations are read, named as in TransformerLens or by module.

`blocks.N.hook_resid_pre | hook_resid_mid | hook_resid_post | hook_attn_out | hook_mlp_out | attn.hook_z`, or
the path of a module, whose output is read; it may leave out the model's prefix (`layers.3`, as in sparsify).
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from foretune.storage.errors import BadInput
from foretune.tasks.loading import model_inputs
from foretune.tasks.loading.models import count_tokens

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel

    from foretune.tasks.loading import LoadedModel
    from foretune.tasks.numerics.batches import Batch

BLOCK_HOOKS = (
    "hook_resid_pre",
    "hook_resid_mid",
    "hook_resid_post",
    "hook_attn_out",
    "hook_mlp_out",
    "attn.hook_z",
)
WIDTH_OF_RESIDUAL = BLOCK_HOOKS[:-1]
"""The hooks whose activations are as wide as the residual stream, whatever the model."""

_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
# What the families call the same part: Llama, Qwen, Gemma | GPT-2 | GPT-NeoX | Falcon, Bloom | OPT.
_ATTENTION = ("self_attn", "attn", "attention", "self_attention")
_MLP = ("mlp", "feed_forward", "block_sparse_moe")
_OUT_PROJECTION = ("o_proj", "c_proj", "dense", "out_proj")
_NORM_BEFORE_MLP = ("pre_feedforward_layernorm", "post_attention_layernorm", "ln_2")


@dataclass(frozen=True, eq=False)
class HookPoint:
    """A module of the model, and whether its input or its output is meant."""

    module: Module
    kind: Literal["input", "output"]


def parse_block_hook(name: str) -> tuple[int, str] | None:
    """(layer, hook) of a name in TransformerLens style, None for another name.

    Raises BadInput with the nearest name for an unknown hook of a block; needs no model.
    """
    found = _BLOCK.fullmatch(name)
    if found is None:
        return None
    layer, hook = int(found[1]), found[2]
    if hook not in BLOCK_HOOKS:
        near = [f"blocks.{layer}.{n}" for n in difflib.get_close_matches(hook, BLOCK_HOOKS, n=2, cutoff=0.0)]
        raise BadInput(f"hook {name}: unknown; the nearest are {', '.join(near)}")
    return layer, hook


def hook_point(model: PreTrainedModel, name: str) -> HookPoint:
    """The module behind a hook name. Raises BadInput, with the nearest names, where this model has none."""
    block = parse_block_hook(name)
    if block is not None:
        return _block_hook(model, name, *block)
    modules = dict(model.named_modules())
    for path in (name, f"{model.base_model_prefix}.{name}"):
        if path and path in modules:
            return HookPoint(modules[path], "output")
    known = [path for path in modules if path]
    known += [f"blocks.{layer}.{hook}" for layer in range(len(decoder_layers(model))) for hook in BLOCK_HOOKS]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.0)
    kind = type(model).__name__
    raise BadInput(f"hook {name}: no such module in {kind}; the nearest are {', '.join(near)}")


def decoder_layers(model: PreTrainedModel) -> Any:
    """The model's list of decoder layers. Raises BadInput for an architecture without one."""
    from torch import nn

    depth = model.config.get_text_config().num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return module
    kind = type(model).__name__
    raise BadInput(f"hook: {kind} has no list of {depth} decoder layers; name a module instead")


def _block_hook(model: PreTrainedModel, name: str, number: int, hook: str) -> HookPoint:
    layers = decoder_layers(model)
    if number >= len(layers):
        raise BadInput(
            f"hook {name}: the model has {len(layers)} layers; the nearest is blocks.{len(layers) - 1}.{hook}"
        )
    place = _places(model, layers[number]).get(hook)
    if place is None:
        kind = type(model).__name__
        raise BadInput(f"hook {name}: {kind} has no such place in its layers; name a module instead")
    return HookPoint(*place)


def _places(model: PreTrainedModel, layer: Module) -> dict[str, tuple[Module, Literal["input", "output"]]]:
    """Where the block hooks lie in this layer; hooks that the architecture lacks are left out."""
    attention, mlp = _child(layer, _ATTENTION), _child(layer, _MLP)
    # Gemma 2 and 3 and Olmo 2 normalise what attention and MLP write, and the residual stream gets that.
    writes_normalised = hasattr(layer, "post_feedforward_layernorm")
    if writes_normalised:
        before_mlp = getattr(layer, "pre_feedforward_layernorm", mlp)
        attention_writes, mlp_writes = layer.post_attention_layernorm, layer.post_feedforward_layernorm
    else:
        before_mlp, attention_writes, mlp_writes = _child(layer, _NORM_BEFORE_MLP), attention, mlp
    if parallel(model):
        before_mlp = None
    found = {
        "hook_resid_pre": (layer, "input"),
        "hook_resid_post": (layer, "output"),
        "hook_resid_mid": (before_mlp, "input"),
        "hook_attn_out": (attention_writes, "output"),
        "hook_mlp_out": (mlp_writes, "output"),
        "attn.hook_z": (_child(attention, _OUT_PROJECTION), "input"),
    }
    return {hook: place for hook, place in found.items() if place[0] is not None}


def block_modules(model: PreTrainedModel, layer: Module) -> dict[str, Module | None]:
    """By what they do in this block: the attention's last linear module, the MLP, what reads the stream for the MLP,
    and the norms between either and the stream. None for what the architecture lacks, or calls by other names."""
    mlp, normalised = _child(layer, _MLP), hasattr(layer, "post_feedforward_layernorm")
    reading = _child(layer, ("pre_feedforward_layernorm",) if normalised else _NORM_BEFORE_MLP)
    return {
        "attention": _child(_child(layer, _ATTENTION), _OUT_PROJECTION),
        "mlp": mlp,
        "before_mlp": reading or (layer if parallel(model) else mlp if normalised else None),
        "after_attention": _child(layer, ("post_attention_layernorm",)) if normalised else None,
        "after_mlp": _child(layer, ("post_feedforward_layernorm",)),
    }


def _child(module: Module | None, names: tuple[str, ...]) -> Module | None:
    return next((getattr(module, name) for name in names if hasattr(module, name)), None)


def parallel(model: PreTrainedModel) -> bool:
    """Whether attention and MLP read the same residual stream, so that there is none between them."""
    config = model.config
    return bool(getattr(config, "use_parallel_residual", False) or getattr(config, "parallel_attn", False))


class _StopForward(Exception):
    pass


def _attach(point: HookPoint, see: Callable[[Tensor], None]) -> Any:
    """Call `see` with the hooked tensor [b, s, d] on every forward; returns the handle that ends it."""
    if point.kind == "input":

        def before(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            see(args[0] if args else kwargs["hidden_states"])

        return point.module.register_forward_pre_hook(before, with_kwargs=True)

    def after(module: Module, args: tuple[Any, ...], output: Any) -> None:
        see(output[0] if isinstance(output, tuple) else output)

    return point.module.register_forward_hook(after)


_LAYER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


def share_to_hook(name: str, depth: int) -> float:
    """Share of a model's layers that a forward to this hook runs; a layer that is begun counts whole."""
    block = parse_block_hook(name)
    if block is not None:
        return min(1.0, (block[0] + (block[1] != "hook_resid_pre")) / depth)
    number = _LAYER.search(name)
    if number is not None:
        return min(1.0, (int(number[1]) + 1) / depth)
    return 0.0 if "emb" in name or "wte" in name else 1.0


def run_to_hook(loaded: LoadedModel, batch: Batch, hook_name: str, weights: dict[str, Tensor] | None = None) -> Tensor:
    """`run_to_hooks` of one hook."""
    return run_to_hooks(loaded, batch, [hook_name], weights)[hook_name]


def run_to_hooks(
    loaded: LoadedModel, batch: Batch, hook_names: Sequence[str], weights: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Activations [b, s, d] at every hook, by its name, of one forward. It ends at the last of them that it reaches, so
    that later layers cost nothing.

    `weights` {parameter name: tensor} stand in for the model's own; differentiable in them, both modes. What ran counts
    as the share of the layers that it is of.
    Raises BadInput for an unknown hook, or one that the forward does not pass.
    """
    from torch.func import functional_call

    points = {name: hook_point(loaded.model, name) for name in hook_names}
    found: dict[str, Tensor] = {}

    def see(name: str, tensor: Tensor) -> None:
        if name in found:
            return  # a module that runs again: its first time is what is meant
        # What runs on may write into the tensor: Falcon adds what attention writes to the MLP's output in place.
        found[name] = tensor.clone() if len(found) + 1 < len(points) else tensor
        if len(found) == len(points):
            raise _StopForward

    handles = [_attach(point, functools.partial(see, name)) for name, point in points.items()]
    try:
        functional_call(loaded.model, weights or {}, (), model_inputs(batch))
    except _StopForward:
        depth = loaded.config.get_text_config().num_hidden_layers
        share = max(share_to_hook(name, depth) for name in points)
        # No hook of the whole model sees a forward that does not end.
        count_tokens(round(batch.input_ids.numel() * share), next(reversed(found.values())))
        return found
    finally:
        for handle in handles:
            handle.remove()
    missed = next(name for name in points if name not in found)
    raise BadInput(f"hook {missed}: the forward pass never reaches it; name another module")


@contextlib.contextmanager
def captured_residuals(loaded: LoadedModel, hook_name: str | None) -> Iterator[Callable[[], list[Tensor]]]:
    """Inside the block, every forward keeps its activations [b, s, d] at the hook, as part of the graph.

    The yielded function returns those since its last call, in order, to differentiate a loss in them. They
    require a gradient even where all weights are frozen. Without a hook name it returns an empty list.
    """
    if hook_name is None:
        yield list
        return
    captured: list[Tensor] = []

    def keep(tensor: Tensor) -> None:
        # Below frozen weights the tensor is outside every graph: it becomes a leaf, in place, so that what
        # follows in the forward pass builds on it.
        captured.append(tensor if tensor.requires_grad else tensor.requires_grad_())

    def taken() -> list[Tensor]:
        tensors = captured.copy()
        captured.clear()
        return tensors

    handle = _attach(hook_point(loaded.model, hook_name), keep)
    try:
        yield taken
    finally:
        handle.remove()


@contextlib.contextmanager
def replaced_residuals(loaded: LoadedModel, hook_name: str, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block, every forward goes on with `change` of its activations [b, s, d] at the hook."""
    point = hook_point(loaded.model, hook_name)
    if point.kind == "input":

        def before(module: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if args:
                return (change(args[0]), *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

        handle = point.module.register_forward_pre_hook(before, with_kwargs=True)
    else:

        def after(module: Module, args: tuple[Any, ...], output: Any) -> Any:
            return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

        handle = point.module.register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()
