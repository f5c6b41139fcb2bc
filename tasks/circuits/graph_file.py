"""A traced circuit as a graph: JSON with the fields of circuit-tracer's graph files, and Graphviz text.

The JSON has circuit-tracer's `metadata`, `qParams`, `nodes` and `links` (schema_version 1) with their field names and
types; where a field is about transcoder features it is empty. Nodes are summed over positions: `ctx_idx` is the
position that has most of a node's score, `activation` the score in the metric's unit, `influence` its share of the
change. A link's `weight` is its edge's score, or the direct effect of a node where no edges were traced.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

KINDS = {"embedding": "embedding", "head": "attention head", "mlp": "mlp"}


def shown_nodes(traced: Mapping[str, Any], largest: int) -> list[int]:
    """Nodes that a graph shows: the `largest` by score, those of the smallest set, and those of the edges."""
    nodes = traced["nodes"]
    order = sorted(range(len(nodes)), key=lambda at: -abs(nodes[at]["score"]))
    found = {*order[:largest], *traced["node_set"]["members"]}
    found |= {edge[end] for edge in traced["edges"] for end in ("source", "target") if edge[end] is not None}
    return sorted(found)


def graph_of(told: Mapping[str, Any], largest: int) -> dict[str, Any]:
    """The JSON graph of what `foretune circuit` tells."""
    traced, tokens = told["trace"], told["tokens"]
    shown, nodes = shown_nodes(traced, largest), traced["nodes"]
    members = set(traced["node_set"]["members"])
    depth = max(node["layer"] for node in nodes) + 1
    end = f"{depth + 1}_{told['target']['id']}_{len(tokens) - 1}"
    named = {at: _node(at, nodes[at], at in members, told) for at in shown}
    return {
        "metadata": {
            "slug": told["run_id"],
            "scan": told["model"],
            "transcoder_list": [],
            "prompt_tokens": tokens,
            "prompt": told["rendered"],
            "node_threshold": None,
            "schema_version": 1,
            "info": {
                "generator": "foretune circuit",
                "metric": traced["metric"],
                "base": traced["base"],
                "predicted": traced["predicted"],
                "difference": traced["difference"],
            },
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": [*named.values(), _end(end, depth, told)],
        "links": [
            {"source": named[source]["node_id"], "target": end if target is None else named[target]["node_id"], **rest}
            for source, target, rest in _links(traced, shown)
        ],
    }


def _node(at: int, node: Mapping[str, Any], member: bool, told: Mapping[str, Any]) -> dict[str, Any]:
    positions: Sequence[float] = node["positions"]
    place = max(range(len(positions)), key=lambda position: abs(positions[position]))
    if node["kind"] == "embedding":
        layer, number = "E", told["input_ids"][place]
    else:
        layer, number = str(node["layer"]), node["head"] if node["kind"] == "head" else told["heads"]
    return {
        "node_id": f"{layer}_{number}_{place}",
        "jsNodeId": f"{layer}_{number}-{place}",
        "feature": at,
        "layer": layer,
        "ctx_idx": place,
        "feature_type": KINDS[node["kind"]],
        "token_prob": 0.0,
        "is_target_logit": False,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": f"{node['name']} ({node['share']:+.1%})",
        "influence": node["share"],
        "activation": node["score"],
        "in_smallest_set": member,
    }


def _end(name: str, depth: int, told: Mapping[str, Any]) -> dict[str, Any]:
    target, place = told["target"], len(told["tokens"]) - 1
    return {
        "node_id": name,
        "jsNodeId": f"L_{target['id']}-{place}",
        "feature": target["id"],
        "layer": str(depth + 1),
        "ctx_idx": place,
        "feature_type": "logit",
        "token_prob": target["probability"],
        "is_target_logit": True,
        "run_idx": 0,
        "reverse_ctx_idx": 0,
        "clerp": f'Output "{target["text"]}" (p={target["probability"]:.3f})',
        "influence": None,
        "activation": None,
        "in_smallest_set": False,
    }


def _links(traced: Mapping[str, Any], shown: Sequence[int]) -> list[tuple[int, int | None, dict[str, float]]]:
    """(source, target, weight); a target of None is the logits."""
    if traced["edges"]:
        return [(edge["source"], edge["target"], {"weight": edge["score"]}) for edge in traced["edges"]]
    return [(at, None, {"weight": traced["nodes"][at]["direct"]}) for at in shown]


def dot_of(graph: Mapping[str, Any]) -> str:
    """Graphviz text of a JSON graph: layers upwards, links as wide as their share of the change, dashed against it."""
    change = graph["metadata"]["info"]["difference"]
    lines = ["digraph circuit {", "  rankdir=BT; node [shape=box, fontname=sans];"]
    levels: dict[str, list[str]] = {}
    for node in graph["nodes"]:
        width = 3 if node["in_smallest_set"] else 1
        lines.append(f"  {_quoted(node['node_id'])} [label={_quoted(node['clerp'])}, penwidth={width}];")
        levels.setdefault(node["layer"], []).append(_quoted(node["node_id"]))
    lines += [f"  {{ rank=same; {'; '.join(each)}; }}" for each in levels.values() if len(each) > 1]
    for link in graph["links"]:
        share = link["weight"] / change
        style = "solid" if share > 0 else "dashed"
        lines.append(
            f"  {_quoted(link['source'])} -> {_quoted(link['target'])} "
            f'[label="{share:+.1%}", penwidth={max(0.3, min(8, 20 * abs(share))):.2f}, style={style}];'
        )
    return "\n".join([*lines, "}"]) + "\n"


def _quoted(text: str) -> str:
    """A string of the DOT language; JSON's escapes of what cannot be seen are read as they stand."""
    visible = json.dumps(text, ensure_ascii=False)[1:-1].replace('\\"', '"').replace("\\\\", "\\")
    return '"' + visible.replace("\\", "\\\\").replace('"', '\\"') + '"'
