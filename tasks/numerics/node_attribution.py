"""Which nodes carry the difference of a metric between two runs: attribution patching, by integrated gradients.

Patching all nodes by the same share a, from 0 to 1, leads from a network's own run to one whose stream ends as the
other's does. Along that way the metric grows by sum_n G_n . (other_n - own_n) da, with G_n its gradient at what node n
says, so that the integrals of the terms add up to the whole difference (Sundararajan et al. 2017). With the one point
a = 0 it is attribution patching (Nanda 2023), whose terms need not: what is upstream is counted again downstream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foretune.tasks.numerics.nodes import NodeValues, Parts, Seen, bias_of, patched
from foretune.tasks.numerics.quadrature import gauss_legendre


@dataclass(frozen=True)
class NodeScores:
    """Per node and position [nodes, s] float64, in units of the metric; nodes in `Parts.nodes`' order."""

    total: Tensor  # through everything downstream that still computes
    edges: Tensor | None = None  # [nodes, nodes + 1], from a row's node into a column's, the last being the end


def node_scores(
    parts: Parts, values: NodeValues, metric: Callable[[], Tensor], points: int, edges: bool = False
) -> NodeScores:
    """Attribution of `metric()`, a scalar of one forward pass of one row, to nodes that say what `values` do.

    With `edges` also along every edge (edge attribution patching, Syed et al. 2023, Hanna et al. 2024): a term's
    difference times the gradient at one reader alone. A node's edges add up to its total. For that the network is gone
    through backwards again from every head.
    """
    count = len(parts.nodes())
    total, between = 0.0, 0.0
    for share, weight in gauss_legendre(points):
        gates = torch.full((1, count), share, dtype=torch.float64, device=values.embedding.device)
        with torch.enable_grad(), patched(parts, values, gates, keep=True) as seen:
            value = metric()
            gradients = _gradients(value, seen)
            total = total + weight * _totals(parts, values, seen, gradients)
            if edges:
                differences = _differences(parts, values, seen)
                read = _readers(parts, seen, gradients, share)
                between = between + weight * torch.einsum("nsd,rsd->nr", differences, read).double().cpu()
    assert isinstance(total, Tensor)
    return NodeScores(total, between * upstream(parts) if isinstance(between, Tensor) else None)


def direct_scores(
    parts: Parts, own: NodeValues, other: NodeValues, metric: Callable[[], Tensor], points: int
) -> Tensor:
    """[nodes] in units of the metric: what each node's difference between two runs is worth where it stands in the
    stream's end, nothing computing in between. Integrated from the one end to the other: they add up to what the
    difference of the ends changes.
    """
    gradient, difference, rule = torch.zeros_like(own.end), other.end - own.end, gauss_legendre(max(points, 2))
    for share, weight in rule:
        end = (own.end + share * difference).detach().requires_grad_()

        def put(module: nn.Module, args: tuple[Any, ...], output: Any, end: Tensor = end) -> Any:
            return (end[None], *output[1:]) if isinstance(output, tuple) else end[None]

        handle = parts.blocks[-1].register_forward_hook(put)
        try:
            with torch.enable_grad():
                gradient += weight * torch.autograd.grad(metric(), end)[0]
        finally:
            handle.remove()
    return torch.einsum("nsd,sd->n", _between(parts, own, other, rule), gradient).double().cpu()


def upstream(parts: Parts) -> Tensor:
    """[nodes, nodes + 1] True where the column's node reads what the row's says; the last column is the end."""
    nodes = parts.nodes()
    found = torch.ones(len(nodes), len(nodes) + 1, dtype=torch.bool)
    for reader, node in enumerate(nodes):
        read_before = 0
        if node.kind != "embedding":
            heads_too = node.kind == "mlp" and not parts.parallel
            read_before = parts.place(node.layer) + (parts.heads if heads_too else 0)
        found[read_before:, reader] = False
    return found


def edge_bytes(parts: Parts, tokens: int, width: int) -> int:
    """Of what `node_scores` holds at once for edges, in float32."""
    count = len(parts.nodes())
    return 4 * (2 * count + 1) * tokens * width


def _gradients(value: Tensor, seen: Seen) -> dict[str, Tensor]:
    """[s, d] at what every part says and at the stream's end; the graph stays."""
    names = [*seen.said, "end"]
    tensors = [*seen.said.values(), seen.read["end"]]
    found = torch.autograd.grad(value, tensors, retain_graph=True)
    return {name: gradient[0] for name, gradient in zip(names, found, strict=True)}


def _by_head(tensor: Tensor, heads: int) -> Tensor:
    """[s, heads, width] of [s, heads x width]."""
    return tensor.unflatten(-1, (heads, -1))


def _totals(parts: Parts, values: NodeValues, seen: Seen, gradients: dict[str, Tensor]) -> Tensor:
    """[nodes, s] of gradient times difference, without forming any head's term."""
    rows = [(gradients["embedding"] * (values.embedding - seen.own["embedding"][0])).sum(-1)[None]]
    for layer, module in enumerate(parts.attention):
        gradient = gradients[f"attention {layer}"]
        own = seen.own[f"attention {layer}"][0].detach()
        other, weight, bias = values.inputs[layer], values.weights[layer], values.biases[layer]
        at_heads = (gradient @ weight.to(gradient)) * other.to(gradient) - (gradient @ module.weight) * own
        terms = _by_head(at_heads, parts.heads).sum(-1)  # [s, heads]
        own_bias = bias_of(module)
        if bias is not None and own_bias is not None:
            terms = terms + (gradient @ (bias.to(gradient) - own_bias))[:, None] / parts.heads
        rows.append(terms.T)
        difference = values.mlps[layer] - seen.own[f"mlp {layer}"][0].detach()
        rows.append((gradients[f"mlp {layer}"] * difference).sum(-1)[None])
    return torch.cat(rows).detach().double().cpu()


def _differences(parts: Parts, values: NodeValues, seen: Seen) -> Tensor:
    """[nodes, s, d]: what each node says more than its own, as it reaches the stream."""
    rows = [(values.embedding - seen.own["embedding"][0])[None]]
    for layer, module in enumerate(parts.attention):
        own = _terms(seen.own[f"attention {layer}"][0].detach(), module.weight, module.bias, parts.heads)
        other = _terms(values.inputs[layer], values.weights[layer], values.biases[layer], parts.heads)
        rows.append(_through(_norm(parts.after_attention, layer), seen.said[f"attention {layer}"][0], other - own))
        difference = (values.mlps[layer] - seen.own[f"mlp {layer}"][0].detach())[None]
        rows.append(_through(_norm(parts.after_mlps, layer), seen.said[f"mlp {layer}"][0], difference))
    return torch.cat(rows)


def _between(parts: Parts, own: NodeValues, other: NodeValues, rule: Sequence[tuple[float, float]]) -> Tensor:
    """[nodes, s, d]: what each node adds to the stream in one run more than in another, norms integrated."""

    def added(norms: Sequence[nn.Module] | None, layer: int, start: Tensor, differences: Tensor) -> Tensor:
        norm, whole = _norm(norms, layer), differences.sum(0)
        if norm is None:
            return differences
        return sum((w * _through(norm, start + a * whole, differences) for a, w in rule), torch.zeros_like(differences))

    rows = [(other.embedding - own.embedding)[None]]
    for layer in range(len(parts.blocks)):
        terms, said = (_terms(v.inputs[layer], v.weights[layer], v.biases[layer], parts.heads) for v in (own, other))
        rows.append(added(parts.after_attention, layer, terms.sum(0), said - terms))
        rows.append(added(parts.after_mlps, layer, own.mlps[layer], (other.mlps[layer] - own.mlps[layer])[None]))
    return torch.cat(rows)


def _norm(norms: Sequence[nn.Module] | None, layer: int) -> nn.Module | None:
    return None if norms is None else norms[layer]


def _terms(inputs: Tensor, weight: Tensor, bias: Tensor | None, heads: int) -> Tensor:
    """[heads, s, d]: what every head adds to the output of a linear module."""
    terms = torch.einsum("shw,dhw->hsd", _by_head(inputs, heads), weight.unflatten(1, (heads, -1)).to(inputs))
    return terms if bias is None else terms + bias.to(terms) / heads


def _through(norm: nn.Module | None, at: Tensor, differences: Tensor) -> Tensor:
    """[n, s, d] as a norm passes them on, to first order around `at` [s, d]."""
    if norm is None:
        return differences
    places = at.detach().expand_as(differences)
    with torch.no_grad():
        return torch.func.jvp(norm, (places.contiguous(),), (differences.contiguous(),))[1]


def _readers(parts: Parts, seen: Seen, gradients: dict[str, Tensor], share: float) -> Tensor:
    """[nodes + 1, s, d]: the metric's gradient in the stream, through one reader alone; the last is the end itself."""
    rows = [torch.zeros_like(gradients["end"])]
    for layer, module in enumerate(parts.attention):
        inputs, stream = seen.own[f"attention {layer}"], seen.read[f"block {layer}"]
        back = (1 - share) * (gradients[f"attention {layer}"] @ module.weight)
        width = back.shape[-1] // parts.heads
        for head in range(parts.heads):
            alone = torch.zeros_like(back)
            alone[:, head * width : (head + 1) * width] = back[:, head * width : (head + 1) * width]
            rows.append(torch.autograd.grad(inputs, stream, alone[None], retain_graph=True)[0][0])
        own, stream = seen.own[f"mlp {layer}"], seen.read[f"mlp {layer}"]
        back = (1 - share) * gradients[f"mlp {layer}"]
        rows.append(torch.autograd.grad(own, stream, back[None], retain_graph=True)[0][0])
    return torch.stack([*rows, gradients["end"]]).detach()
