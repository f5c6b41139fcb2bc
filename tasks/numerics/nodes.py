"""The nodes of a residual network: embeddings, attention heads and MLPs, each a term of one stream, and runs in which
some of them say what another network's say.

A head's node is what it adds to the output of the attention's last linear module, W_h z_h, so that one network's head
differs from another's by its weights there too; a bias of that module is shared out evenly among its heads.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Node:
    """One term of the stream."""

    kind: str  # embedding | head | mlp
    layer: int  # -1 for the embedding
    head: int = -1

    @property
    def name(self) -> str:
        return {
            "embedding": "embedding",
            "head": f"layer {self.layer} head {self.head}",
            "mlp": f"layer {self.layer} MLP",
        }[self.kind]


@dataclass(frozen=True, eq=False)
class Parts:
    """The modules of a network whose blocks add what attention and MLP say to the stream.

    The stream comes into a block as its first argument or as `hidden_states`. `after_*` are norms between a part and
    the stream, None where there is none.
    """

    blocks: Sequence[nn.Module]
    attention: Sequence[nn.Linear]  # [d, heads x width]: the last module of the attention, fed by the heads
    mlps: Sequence[nn.Module]
    before_mlps: Sequence[nn.Module]  # what reads the stream for the MLP
    heads: int
    parallel: bool = False  # whether the MLP reads what the attention of its block reads
    after_attention: Sequence[nn.Module] | None = None
    after_mlps: Sequence[nn.Module] | None = None

    def nodes(self) -> list[Node]:
        """In the order in which they speak."""
        found = [Node("embedding", -1)]
        for layer in range(len(self.blocks)):
            found += [*(Node("head", layer, head) for head in range(self.heads)), Node("mlp", layer)]
        return found

    def place(self, layer: int) -> int:
        """The number of a layer's first head; its MLP's is `heads` further."""
        return 1 + layer * (self.heads + 1)


@dataclass
class NodeValues:
    """What the nodes of one run say, of its first row: embeddings and MLPs [s, d], and the heads' inputs with the
    weights that make terms of them."""

    embedding: Tensor
    inputs: list[Tensor]  # per layer [s, heads x width]
    weights: list[Tensor]  # [d, heads x width]
    biases: list[Tensor | None]  # [d]
    mlps: list[Tensor]  # [s, d]
    end: Tensor  # [s, d] the stream after the last block


@dataclass
class Seen:
    """The tensors of one patched run that gradients are taken at: `own` before a patch, `said` after it."""

    own: dict[str, Tensor] = field(default_factory=dict)
    said: dict[str, Tensor] = field(default_factory=dict)
    read: dict[str, Tensor] = field(default_factory=dict)  # the stream where a part reads it


def bias_of(module: nn.Linear) -> Tensor | None:
    """[d], None for a module without one."""
    return module.bias


def _stream(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def _first(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def _with_first(output: Any, value: Tensor) -> Any:
    return (value, *output[1:]) if isinstance(output, tuple) else value


@contextlib.contextmanager
def recorded(parts: Parts) -> Generator[NodeValues]:
    """Filled by the forward pass inside the block."""
    values = NodeValues(torch.empty(0), [], [], [], [], torch.empty(0))

    def embedding(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        values.embedding = _stream(args, kwargs)[0].detach()

    def attention(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> None:
        values.inputs.append(args[0][0].detach())
        values.weights.append(module.weight.detach())
        values.biases.append(None if (bias := bias_of(module)) is None else bias.detach())

    def mlp(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        values.mlps.append(_first(output)[0].detach())

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        values.end = _first(output)[0].detach()

    handles = [parts.blocks[0].register_forward_pre_hook(embedding, with_kwargs=True)]
    handles += [each.register_forward_hook(attention) for each in parts.attention]  # pyright: ignore[reportArgumentType]
    handles += [each.register_forward_hook(mlp) for each in parts.mlps]
    handles.append(parts.blocks[-1].register_forward_hook(end))
    try:
        yield values
    finally:
        for handle in handles:
            handle.remove()


def missing(parts: Parts, values: NodeValues) -> float:
    """Share of the stream's end that the nodes of a run leave open: rounding, where `parts` are all that speak."""
    total = values.embedding.double()
    for layer in range(len(parts.blocks)):
        attention = nn.functional.linear(values.inputs[layer], values.weights[layer], values.biases[layer])
        for said, norms in ((attention, parts.after_attention), (values.mlps[layer], parts.after_mlps)):
            total = total + (said if norms is None else norms[layer](said)).double()
    return float((total - values.end.double()).norm() / values.end.double().norm())


@contextlib.contextmanager
def patched(parts: Parts, values: NodeValues, gates: Tensor, keep: bool = False) -> Generator[Seen]:
    """Forwards inside the block in which node n of row b says (1 - g) times its own and g times `values`', g = `gates`
    [b, nodes]. Where nothing is patched upstream, its own is the network's; else it is what the patched stream makes
    of it. With `keep` the tensors are kept, and the embedding requires a gradient, so that all do.
    """
    seen = Seen()
    handles = [parts.blocks[0].register_forward_pre_hook(_embedding(values, gates, seen, keep), with_kwargs=True)]
    for layer in range(len(parts.blocks)):
        start = parts.place(layer)
        of_heads, of_mlp = gates[:, start : start + parts.heads], gates[:, start + parts.heads]
        head = _attention(values, layer, of_heads, seen, keep)
        handles.append(parts.attention[layer].register_forward_hook(head))
        handles.append(parts.mlps[layer].register_forward_hook(_mlp(values, layer, of_mlp, seen, keep)))
        if keep:
            for name, module in (("block", parts.blocks[layer]), ("mlp", parts.before_mlps[layer])):
                hook = _reading(f"{name} {layer}", seen)
                handles.append(module.register_forward_pre_hook(hook, with_kwargs=True, prepend=False))
    if keep:
        handles.append(parts.blocks[-1].register_forward_hook(_end(seen)))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _mixed(own: Tensor, other: Tensor, gate: Tensor) -> Tensor:
    return own + gate[:, None, None].to(own) * (other.to(own) - own)


def _embedding(values: NodeValues, gates: Tensor, seen: Seen, keep: bool) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        own = _stream(args, kwargs)
        said = _mixed(own, values.embedding, gates[:, 0])
        if keep:
            said = said.detach().requires_grad_()
            seen.own["embedding"], seen.said["embedding"] = own.detach(), said
        return ((said, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": said})

    return hook


def _attention(values: NodeValues, layer: int, gates: Tensor, seen: Seen, keep: bool) -> Any:
    def hook(module: nn.Linear, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        own, other = args[0], values.inputs[layer].to(args[0])
        width = own.shape[-1] // gates.shape[1]
        wide = gates.to(own).repeat_interleave(width, dim=1)[:, None, :]  # [b, 1, heads x width]
        linear = nn.functional.linear
        said = output + linear(wide * other, values.weights[layer].to(own)) - linear(wide * own, module.weight)
        bias, own_bias = values.biases[layer], bias_of(module)
        if bias is not None and own_bias is not None:
            said = said + gates.to(own).mean(1)[:, None, None] * (bias.to(own) - own_bias)
        if keep:
            seen.own[f"attention {layer}"], seen.said[f"attention {layer}"] = own, said
        return said

    return hook


def _mlp(values: NodeValues, layer: int, gate: Tensor, seen: Seen, keep: bool) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        own = _first(output)
        said = _mixed(own, values.mlps[layer], gate)
        if keep:
            seen.own[f"mlp {layer}"], seen.said[f"mlp {layer}"] = own, said
        return _with_first(output, said)

    return hook


def _reading(name: str, seen: Seen) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.read[name] = _stream(args, kwargs)

    return hook


def _end(seen: Seen) -> Any:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        seen.read["end"] = _first(output)

    return hook
