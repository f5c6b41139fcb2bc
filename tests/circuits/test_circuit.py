"""A prompt traced in the tiny run: complete, true when really patched, refused where it cannot be, and written down."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from foretune.flows.commands.ask import base_model
from foretune.flows.commands.circuit import traced
from foretune.storage.errors import BadInput
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run
from foretune.tasks.circuits import trace as tracing
from foretune.tasks.circuits.graph_file import dot_of, graph_of
from foretune.tasks.circuits.metric import Metric
from foretune.tasks.circuits.settings import TraceSettings
from foretune.tasks.circuits.trace import Traced, trace
from foretune.tasks.loading.residual_parts import residual_parts
from foretune.tasks.numerics.smallest_sets import smallest_set
from tests.flows.test_command_line import assert_bad_input, foretune

SETTINGS = TraceSettings(points=32, largest=8, draws=4)


@pytest.fixture(scope="module")
def told(run: Run) -> dict[str, Any]:
    return traced(run, "What is the red lamp?", None, "The", None, 12, SETTINGS)


def test_shares_are_complete_by_weights_and_by_activations(told: Mapping[str, Any]) -> None:
    found = told["trace"]
    difference = found["predicted"] - found["base"]
    assert abs(difference) > 1e-3
    assert found["modules_sum"] == pytest.approx(difference, rel=1e-3)
    assert found["nodes_sum"] + found["readout"] == pytest.approx(difference, rel=1e-3)
    assert found["back_sum"] + found["readout"] == pytest.approx(difference, rel=2e-2)
    assert abs(found["readout"]) < 1e-3 * abs(difference)  # an adapter of q and v moves neither norm nor unembedding
    assert {row["name"].rsplit(".", 1)[-1] for row in found["modules"]} == {"q_proj", "v_proj"}
    assert sum(row["direct"] for row in found["nodes"]) == pytest.approx(difference, rel=1e-3)
    for row in found["nodes"]:
        assert sum(row["positions"]) == pytest.approx(row["score"], abs=1e-6)


def test_a_modules_effect_alone_is_that_of_its_weights_in_the_base(run: Run, told: Mapping[str, Any]) -> None:
    checkpoint = artifact_of(run, "checkpoint")
    model = base_model(run, checkpoint)
    base, predicted = (each.open(run).model for each in (model, model.moved_to(checkpoint)))
    largest = max(told["trace"]["modules"], key=lambda row: abs(row["score"]))
    name = f"{largest['name']}.weight"
    ids, metric = torch.tensor([told["input_ids"]]), Metric(told["target"]["id"], (told["contrast"] or {}).get("id"))

    def value(weights: dict[str, Any]) -> float:
        with torch.no_grad():
            return float(metric.of(torch.func.functional_call(base, weights, (ids,)).logits[:, -1]))

    moved = dict(predicted.named_parameters())[name]
    assert largest["alone"] == pytest.approx(value({name: moved}) - value({}), abs=1e-5)


def test_the_smallest_sets_are_really_patched(told: Mapping[str, Any]) -> None:
    for chosen in (told["trace"]["module_set"], told["trace"]["node_set"]):
        assert len(chosen["members"]) == chosen["size"] and len(chosen["random"]) == 4
        assert chosen["curve"][chosen["size"] - 1] == chosen["recovered"]
        assert chosen["reached"] == (chosen["recovered"] >= 0.7)
        assert all(share < 0.7 for share in chosen["curve"][: chosen["size"] - 1]) or not chosen["reached"]


def test_as_many_parts_are_put_in_place_as_the_share_takes() -> None:
    asked: list[int] = []

    def effect(sets: Any) -> list[float]:
        asked.extend(map(len, sets))
        return [0.1 * len(each) for each in sets]

    found = smallest_set(range(10), 10, effect, 1.0, 0.7, 0, at_once=3)
    assert (found.size, found.reached, len(found.curve)) == (7, True, 9) and asked == list(range(1, 10))
    assert not smallest_set(range(6), 10, effect, 1.0, 0.7, 0, at_once=3).reached


def test_a_graph_has_circuit_tracers_fields_and_its_links_join_its_nodes(told: Mapping[str, Any]) -> None:
    graph = graph_of({"run_id": "r", "model": "tiny", **told}, 3)
    text, named = str, {node["node_id"] for node in graph["nodes"]}
    types: dict[str, Any] = {"node_id": text, "feature": int, "layer": text, "ctx_idx": int, "feature_type": text}
    types |= {"token_prob": float, "is_target_logit": bool, "jsNodeId": text, "clerp": text}
    for node in graph["nodes"]:
        assert {name: type(node[name]) for name in types} == types
    assert len(named) == len(graph["nodes"]) == len({node["jsNodeId"] for node in graph["nodes"]})
    assert len(graph["links"]) == 12 and sum(node["is_target_logit"] for node in graph["nodes"]) == 1
    for link in graph["links"]:
        assert {link["source"], link["target"]} <= named and link["weight"]
    assert {"slug", "scan", "prompt_tokens", "prompt", "schema_version"} <= graph["metadata"].keys()
    assert len(graph["metadata"]["prompt_tokens"]) == len(told["input_ids"])


def test_graphviz_text_is_quoted() -> None:
    node = {"node_id": "1_0_0", "clerp": 'a "b" \\ c\n\x1b[31m', "layer": "1", "in_smallest_set": True}
    link = {"source": "1_0_0", "target": "1_0_0", "weight": -0.5}
    said = dot_of({"metadata": {"info": {"difference": 1.0}}, "nodes": [node], "links": [link]})
    assert r'label="a \"b\" \\ c\\n\\u001b[31m"' in said and 'label="-50.0%"' in said and "dashed" in said


def test_what_cannot_be_traced_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = artifact_of(run, "checkpoint")
    model = base_model(run, checkpoint)
    base, predicted = model.open(run), model.moved_to(checkpoint).open(run)
    with pytest.raises(BadInput, match="changes by 0 at the end of this prompt"):
        trace(Traced(base, base, [1, 2], Metric(3, 4), SETTINGS))
    monkeypatch.setattr(tracing, "MOST_EDGE_BYTES", 1000)
    small = Traced(base, predicted, [10, 20, 30], Metric(3, 4), TraceSettings(points=1, largest=1, draws=0))
    with pytest.raises(BadInput, match=r"--edges 5: 0.0 GiB for 3 tokens, above .*; shorten the prompt"):
        trace(small, edges=5)
    left_out = trace(small, edges=None)
    assert left_out["edges_left_out"] and not left_out["edges"]
    for words, match in ((("What?", ""), "--target has no token"), (("a" * 600, None), "512 positions; shorten it")):
        with pytest.raises(BadInput, match=match):
            traced(run, *words, None, None, 0, SETTINGS)


def test_an_architecture_that_does_not_tell_its_parts_is_refused() -> None:
    import dataclasses
    from types import SimpleNamespace

    from transformers import OPTConfig, OPTForCausalLM

    sizes = {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = OPTForCausalLM(OPTConfig(vocab_size=16, word_embed_proj_dim=16, max_position_embeddings=16, **sizes))
    with pytest.raises(BadInput, match="OPTForCausalLM does not tell the mlp of every layer; give a model like Llama"):
        residual_parts(SimpleNamespace(model=model, config=model.config))  # pyright: ignore[reportArgumentType]
    assert dataclasses.is_dataclass(Traced)


def test_the_command(run: Run, tmp_path: Path) -> None:
    stored = sorted(path.stat().st_mtime_ns for path in Path(run.root).rglob("*"))
    words = ["circuit", run.run_id, "--root", run.root, "--prompt", "What is the \x1b[31mred lamp?"]
    files = ["--graph", tmp_path / "c.json", "--dot", tmp_path / "c.dot"]
    done = foretune(*words, *files, "--target", "e", "--largest", "4", "--points", "2", "--json")
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    told = json.loads(last)
    assert told["target"]["text"] == "e" and "\x1b[31m" not in done.stdout
    said = "\n".join(lines)
    assert re.search(r"all modules: [+-][\d.]+ of [+-][\d.]+ \(\d+\.\d%\)", said) and "really put into the base" in said
    assert json.loads((tmp_path / "c.json").read_text())["metadata"]["schema_version"] == 1
    assert (tmp_path / "c.dot").read_text().startswith("digraph circuit {")
    assert sorted(path.stat().st_mtime_ns for path in Path(run.root).rglob("*")) == stored
    assert_bad_input(foretune(*words, *files), "c.json: exists")
