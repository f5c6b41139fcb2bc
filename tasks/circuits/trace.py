"""Which parts of the model carry a predicted change at the end of one prompt: by activations and by weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.errors import BadInput
from foretune.tasks.circuits.metric import Metric, next_logits
from foretune.tasks.circuits.settings import TraceSettings
from foretune.tasks.loading import LoadedModel
from foretune.tasks.loading.residual_parts import residual_parts

if TYPE_CHECKING:
    from torch import Tensor

    from foretune.tasks.numerics.nodes import NodeValues, Parts
    from foretune.tasks.numerics.smallest_sets import SmallestSet

LEAST = 1e-4
"""Nats: a smaller change of the metric is rounding, and nothing carries it."""
MOST_EDGE_BYTES = 2**31
"""Held at once for edges: SmolLM2-135M over 1,500 tokens, a model of seven billion numbers over 60."""
MOST_MISSING = 0.02
"""Share of the stream that parts may leave open: rounding in bfloat16. More is a part that we do not see."""


@dataclass(frozen=True)
class Traced:
    """What one trace reads: both models, the prompt's tokens, and what is measured at their end."""

    base: LoadedModel
    predicted: LoadedModel
    ids: Sequence[int]
    metric: Metric
    settings: TraceSettings
    as_many_as_needed: bool = False  # parts put in place; else the largest that the settings allow

    def value(self, loaded: LoadedModel, rows: int = 1, weights: dict[str, Tensor] | None = None) -> Tensor:
        """[rows] of the metric."""
        return self.metric.of(next_logits(loaded, self.ids, rows, weights))


def trace(traced: Traced, back: bool = True, edges: int | None = 0) -> dict[str, Any]:
    """Nodes and modules with their shares of the metric's change, and the smallest sets that really bring it.

    `back` also attributes the way back, from the predicted model to the base. `edges` is how many of the largest are
    kept; None: 40 where they fit into memory. BadInput where the metric does not change, where the architecture does
    not tell its parts, and where asked-for edges do not fit.
    """
    import torch

    for loaded in (traced.base, traced.predicted):
        if getattr(loaded.model, "hf_device_map", None):
            raise BadInput("circuit: the model is split over devices (model.device_map); set it to null")
    with torch.no_grad():
        before, after = (float(traced.value(each)[0]) for each in (traced.base, traced.predicted))
    difference = after - before
    if abs(difference) < LEAST:
        raise BadInput(
            f"circuit: the {traced.metric.words} changes by {difference:.1g} at the end of this prompt, which is "
            "rounding; nothing carries it: name another --target, or another prompt"
        )
    told = {"metric": traced.metric.words, "base": before, "predicted": after, "difference": difference}
    return {
        **told,
        **_activations(traced, before, difference, back, edges),
        **_weights(traced, before, difference),
    }


def _recorded(traced: Traced, loaded: LoadedModel) -> tuple[Parts, NodeValues]:
    import torch

    from foretune.tasks.numerics.nodes import missing, recorded

    parts = residual_parts(loaded)
    with torch.no_grad():
        with recorded(parts) as values:
            next_logits(loaded, traced.ids)
        open_share = missing(parts, values)
    if not open_share < MOST_MISSING:
        raise BadInput(
            f"circuit: what heads and MLPs of {type(loaded.model).__name__} say leaves {open_share:.0%} of its stream "
            "open; give a model like Llama, Qwen 2, Gemma, GPT-2 or NeoX"
        )
    return parts, values


def _activations(traced: Traced, before: float, difference: float, back: bool, edges: int | None) -> dict[str, Any]:
    import torch

    from foretune.tasks.numerics.node_attribution import direct_scores, edge_bytes, node_scores
    from foretune.tasks.numerics.nodes import patched

    (parts, own), (other_parts, values) = _recorded(traced, traced.base), _recorded(traced, traced.predicted)
    needed = edge_bytes(parts, len(traced.ids), own.embedding.shape[-1])
    if edges and needed > MOST_EDGE_BYTES:
        raise BadInput(
            f"--edges {edges}: {needed / 2**30:.1f} GiB for {len(traced.ids):,} tokens, above "
            f"{MOST_EDGE_BYTES / 2**30:g}; shorten the prompt, or --edges 0"
        )
    kept = edges if edges is not None else 40 if needed <= MOST_EDGE_BYTES else 0
    scores = node_scores(parts, values, lambda: traced.value(traced.base)[0], traced.settings.points, bool(kept))
    direct = direct_scores(parts, own, values, lambda: traced.value(traced.base)[0], traced.settings.points)
    returned = None
    if back:
        way_back = node_scores(other_parts, own, lambda: traced.value(traced.predicted)[0], traced.settings.points)
        returned = -way_back.total.sum(1)
    nodes, total = parts.nodes(), scores.total.sum(1)

    def effect(sets: Sequence[Sequence[int]]) -> list[float]:
        gates = torch.zeros(len(sets), len(nodes), dtype=torch.float64, device=own.embedding.device)
        for row, chosen in enumerate(sets):
            gates[row, list(chosen)] = 1
        found: list[float] = []
        for part in gates.split(max(1, traced.settings.batch_tokens // len(traced.ids))):
            with torch.no_grad(), patched(parts, values, part):
                found += traced.value(traced.base, len(part)).tolist()
        return [value - before for value in found]

    (everything,) = effect([range(len(nodes))])
    chosen = _smallest(total.tolist(), difference, effect, traced)
    return {
        "nodes": [
            {
                **asdict(node),
                "name": node.name,
                "score": float(total[at]),
                "share": float(total[at]) / difference,
                "direct": float(direct[at]),
                "back": None if returned is None else float(returned[at]),
                "positions": [round(value, 9) for value in scores.total[at].tolist()],
            }
            for at, node in enumerate(nodes)
        ],
        "nodes_sum": float(total.sum()),
        "back_sum": None if returned is None else float(returned.sum()),
        "readout": difference - everything,
        "node_set": chosen,
        "edges": _largest_edges(scores.edges, kept, difference),
        "edges_left_out": edges is None and not kept,
    }


def _smallest(
    scores: Sequence[float],
    difference: float,
    effect: Callable[[Sequence[Sequence[int]]], Sequence[float]],
    traced: Traced,
) -> dict[str, Any]:
    """The smallest beginning of the parts that go along with the change, largest first."""
    from foretune.tasks.numerics.smallest_sets import smallest_set

    settings, most = traced.settings, None if traced.as_many_as_needed else traced.settings.largest
    along = [at for at, score in enumerate(scores) if score / difference > 0]
    order = sorted(along, key=lambda at: -abs(scores[at]))[:most]
    wanted = settings.recovered, settings.draws, settings.seed
    found = smallest_set(order, len(scores), effect, difference, *wanted, at_once=settings.largest)
    return {**_plain(found), "members": order[: found.size], "wanted": settings.recovered}


def _plain(found: SmallestSet) -> dict[str, Any]:
    plain = asdict(found)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}


def _largest_edges(edges: Tensor | None, kept: int, difference: float) -> list[dict[str, Any]]:
    """The `kept` largest: numbers of the node that says and of the one that reads, None for the stream's end."""
    if edges is None:
        return []
    flat = edges.flatten()
    found = []
    for at in flat.abs().topk(min(kept, flat.numel())).indices.tolist():
        source, target = divmod(at, edges.shape[1])
        if not flat[at]:
            break
        end = target == edges.shape[1] - 1
        score = float(flat[at])
        found.append({"source": source, "target": None if end else target, "score": score, "share": score / difference})
    return found


def _weights(traced: Traced, before: float, difference: float) -> dict[str, Any]:
    """Shares of the weights that differ, the effect of the largest by themselves, and the smallest set of them."""
    import torch

    from foretune.tasks.numerics.weight_attribution import weight_scores

    moved = dict(traced.predicted.model.named_parameters())
    base = {
        name: weight
        for name, weight in traced.base.model.named_parameters()
        if not torch.equal(weight, moved[name].to(weight.device))
    }

    def metric(weights: dict[str, Any]) -> Tensor:
        return traced.value(traced.base, weights=weights)[0]

    scores = weight_scores(base, moved, metric, traced.settings.points)
    names = list(scores)

    def effect(sets: Sequence[Sequence[int]]) -> list[float]:
        with torch.no_grad():
            return [float(metric({names[at]: moved[names[at]] for at in chosen})) - before for chosen in sets]

    largest = sorted(range(len(names)), key=lambda at: -abs(scores[names[at]]))[: traced.settings.largest]
    alone = dict(zip(largest, effect([[at] for at in largest]), strict=True))
    return {
        "modules": [
            {
                "name": name.removesuffix(".weight"),
                "score": scores[name],
                "share": scores[name] / difference,
                "alone": alone.get(at),
            }
            for at, name in enumerate(names)
        ],
        "modules_sum": sum(scores.values()),
        "module_set": _smallest(list(scores.values()), difference, effect, traced),
    }
