"""Several SAEs: one forward serves all, each at its own hook, and each is told what it is told alone."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from foretune.flows.commands.lineage import SAE, outside_inputs
from foretune.flows.commands.plan import make_plan
from foretune.flows.dag.concepts import Measured, measured, named
from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import Request, load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.errors import BadInput
from foretune.storage.refs import ArtifactRef
from foretune.tasks.inputs.sources import SaeSource
from foretune.tasks.report.build import build_report
from foretune.tasks.report.page import gathered
from foretune.tasks.report.publish import concept_blocks
from tests.conftest import request_beside
from tests.dag import Simulated, called, run_dag

FORWARD = ("sae_base", "feature_scores", "firings", "sae_nulls", "sae_diff")
PER_SAE = {"sae_part": 3, "features": 1, "concepts": 1}
READ_FIRST = ("feature_contexts", "concept_causes", "concept_behaviour")
"""What reads the first SAE's measurements, and so their keys."""


class Two(NamedTuple):
    request: Request
    plan: dict[str, Any]
    done: Simulated
    wiring: Wiring


@pytest.fixture(scope="module")
def two(first_run: Path, tiny_sae: Path, tmp_path_factory: pytest.TempPathFactory) -> Two:
    """The tiny request with its SAE once more, at another name of the same place."""
    path = request_beside(first_run, tmp_path_factory.mktemp("two"))
    request = load_request(str(path), [f"saes=[{{path: {tiny_sae}, hook_name: blocks.0.hook_resid_post}}]"])
    plan = make_plan(request)
    return Two(request, plan, run_dag(request), called(request))


def test_the_same_sae_at_another_name_of_the_same_place_measures_the_same(two, first, tiny_sae):
    done, wiring = two.done, two.wiring
    several = {name: 2 * count for name, count in PER_SAE.items()}
    assert Counter(done.computed) == Counter([*FORWARD, *READ_FIRST, "report"]) + Counter(several)
    assert Counter(task["task"] for task in two.plan["tasks"] if task["state"] == "run") == Counter(done.computed)
    assert {task["why"] for task in two.plan["tasks"] if task["task"] == "firings"} == {"SAEs (1 -> 2)"}
    again = {"features", "sae_diff", "concepts", *READ_FIRST, "report"}
    assert all(done.made[name].key == first.made[name].key for name in first.made if name not in again)
    assert all(same_files(done.store, done.made[name], first.made[name]) for name in again - {"report"})
    one, two_ = ({row["feature"]: row for row in done.table(name, "concepts")} for name in ("concepts", "concepts_2"))
    for feature, row in one.items():
        assert two_[feature]["change"] == row["change"]
        assert two_[feature]["label"] == row["label"] and two_[feature]["score"] is None
        assert two_[feature]["predicted_change"] == row["predicted_change"]
    blocks = concept_blocks(done.step.run, done.made, wiring.sources.saes_read, 5)
    assert blocks["concepts"]["sae"] == {"name": tiny_sae.name, "hook": "blocks.1.hook_resid_pre"}
    (more,) = blocks["more_concepts"]
    assert more["sae"] == {"name": tiny_sae.name, "hook": "blocks.0.hook_resid_post"}
    assert more["score_spearman"] is None and more["tangent_spearman"] is not None
    page = build_report(gathered(done.step.run, done.made, wiring.lines()))
    assert f"{tiny_sae.name} at blocks.0.hook_resid_post" in page and two.plan["sae_line"] in page


def test_two_saes_cost_the_forwards_of_one(two, first):
    spent = {task: forward_tokens(two.done.store, made) for task, made in two.done.step.steps if task in FORWARD}
    alone = {task: forward_tokens(first.store, made) for task, made in first.step.steps if task in FORWARD}
    assert spent == alone and all(spent.values())
    assert sum(task == "sae_base" for task, _ in two.done.step.steps) == 1


def test_names_for_one_of_two_saes_run_its_naming_and_no_forward(two, tmp_path):
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({"0": "rivers"}))
    (source,) = two.request.saes
    labelled = two.request.model_copy(update={"saes": [source.model_copy(update={"labels": str(labels)})]})
    waiting = [task["task"] for task in make_plan(labelled)["tasks"] if task["state"] == "run"]
    assert waiting == ["features", "concepts", "report"]


def test_the_lineage_of_a_pass_over_two_saes_names_the_first(two):
    store = two.done.store
    (made,) = [made for task, made in two.done.step.steps if task == "sae_base"]
    found = outside_inputs({"": {"task": made.task, "inputs": store.manifest(made.task, made.key).inputs}})
    assert found[SAE] == two.wiring.sources.sae.source.digest


def test_each_of_several_saes_at_any_hooks_is_told_what_it_is_told_alone(two, first, tiny_sae):
    """Shallower than the first, deeper, and where another one is."""
    hooks = ("blocks.0.hook_resid_pre", "blocks.1.hook_resid_post", "model.layers.0")
    saes = [f"{{path: {tiny_sae}, hook_name: {hook}}}" for hook in hooks]
    path = Path(two.request.runtime.root).parent / "request.yaml"
    request = load_request(str(path), [f"saes=[{', '.join(saes)}]"])
    planned = {task["key"]: task for task in make_plan(request)["tasks"]}
    wiring = called(request)
    gradient = wiring.landscape("train").gradient
    sources = wiring.sources
    own = SaeSource(sources.sae, sources.labels, sources.hook_name, sources.sae_name)
    several = (own, *sources.more_saes)
    together = measured(wiring, first.made, several, gradient)
    joint = {made.task: made for _, made in wiring.step.steps if made.task in FORWARD}
    alone = [measured(wiring, first.made, (each,), None if each is not own else gradient) for each in several]
    store = wiring.step.run.store
    for source, found, (expected,) in zip(several, together, alone, strict=True):
        for name in vars(Measured(None, None, None)):
            assert same_files(store, getattr(found, name), getattr(expected, name)), (source.hook_name, name)
        for name, made in named(wiring, source, found).items():
            assert same_files(store, made, named(wiring, source, expected)[name]), (source.hook_name, name)
    (deepest,) = alone[2]
    assert forward_tokens(store, joint["sae_diff"]) == forward_tokens(store, deepest.diff)
    for made in joint.values():
        told, spent = planned[made.key], forward_tokens(store, made)
        assert spent and (
            told["forward_tokens"] == spent if told["bound"] == "exact" else told["forward_tokens"] >= spent
        )
    assert sum(task["task"] == "sae_part" and task["forward_tokens"] == 0 for task in planned.values()) == 12


def forward_tokens(store: ArtifactStore, made: ArtifactRef) -> int:
    return store.manifest(made.task, made.key).cost["forward_tokens"]


def same_files(store: ArtifactStore, one: ArtifactRef, other: ArtifactRef) -> bool:
    """Bit for bit, under the same names."""
    files = [store.manifest(each.task, each.key).files for each in (one, other)]
    return files[0] == files[1]


def test_more_saes_need_a_first_one(tiny_request, tiny_sae):
    with pytest.raises(BadInput, match=r"saes are read beside sae; give the first of them as sae"):
        load_request(str(tiny_request), ["sae=null", f"saes=[{{path: {tiny_sae}}}]"])
