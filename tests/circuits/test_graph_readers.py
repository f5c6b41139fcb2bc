"""A traced graph in the programs that it is written for: circuit-tracer's own models, and Graphviz."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
import subprocess
from typing import Any

import pytest

from foretune.tasks.circuits.graph_file import dot_of, graph_of


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    """Of two layers with two heads, three tokens: foreign text in every place that has text."""
    kinds = [("embedding", -1, -1), *(("head", layer, head) for layer in (0, 1) for head in (0, 1)), ("mlp", 1, -1)]
    nodes = [
        {"kind": kind, "layer": layer, "head": head, "name": f"{kind} {layer} {head}", "score": 0.1 * (at - 2),
         "share": 0.2 * (at - 2), "direct": 0.01, "positions": [0.0, 0.1 * (at - 2), 0.0]}
        for at, (kind, layer, head) in enumerate(kinds)
    ]  # fmt: skip
    edges = [{"source": 1, "target": 3, "score": 0.2, "share": 0.4}, {"source": 3, "target": None, "score": -0.1}]
    found = {"nodes": nodes, "edges": edges, "node_set": {"members": [3, 4]}, "metric": "logit difference"}
    found |= {"base": 0.0, "predicted": 0.5, "difference": 0.5}
    return graph_of(
        {
            "run_id": "r", "model": 'a "model"', "rendered": "<|im_start|>é\n", "tokens": ["<s>", '"\\\n', "\x1b[31m"],
            "input_ids": [0, 1, 2], "heads": 2, "target": {"id": 7, "text": '" }', "probability": 0.25}, "trace": found,
        },
        6,
    )  # fmt: skip


def test_circuit_tracer_reads_it(graph):
    try:
        file = importlib.metadata.distribution("circuit-tracer").locate_file("circuit_tracer/frontend/graph_models.py")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("circuit-tracer is not installed")
    spec = importlib.util.spec_from_file_location("graph_models", str(file))
    assert spec is not None and spec.loader is not None
    models = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(models)
    read = models.Model.model_validate(graph)
    named = {node.node_id: node for node in read.nodes}
    links = [models.Link.model_validate(link) for link in read.links]
    assert len(named) == 7 and {end for link in links for end in (link.source, link.target)} <= named.keys()
    (end,) = (node for node in read.nodes if node.is_target_logit)
    # What its viewer does with a node of the output: `clerp.split('(p=')[1].split(')')[0]`.
    assert float(end.clerp.split("(p=")[1].split(")")[0]) == 0.25 and end.feature_type == "logit"


def test_graphviz_draws_it(graph):
    dot = shutil.which("dot")
    if dot is None:
        pytest.skip("Graphviz is not installed")
    drawn = subprocess.run([dot, "-Tsvg"], input=dot_of(graph).encode(), capture_output=True, check=True, timeout=60)
    picture = drawn.stdout.decode()
    assert not drawn.stderr and picture.count('class="node"') == 7 and picture.count('class="edge"') == 2
    assert "head 1 0" in picture and re.search(r"stroke-dasharray", picture)
