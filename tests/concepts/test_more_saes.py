"""Several SAEs: each is read at its own hook, and the first keeps its keys and its numbers."""

from __future__ import annotations

from collections import Counter

import pytest

from foretune.flows.commands.plan import make_plan
from foretune.flows.request import load_request
from foretune.storage.errors import BadInput
from foretune.tasks.report.build import build_report
from foretune.tasks.report.page import gathered
from foretune.tasks.report.publish import concept_blocks
from tests.dag import called

READ = ("sae_base", "feature_scores", "firings", "features", "sae_nulls", "sae_diff", "concepts")


def test_the_same_sae_at_another_name_of_the_same_place_measures_the_same(simulated, first, tiny_sae, tiny_request):
    settings = f"saes=[{{path: {tiny_sae}, hook_name: blocks.0.hook_resid_post}}]"
    planned = make_plan(load_request(str(tiny_request), [settings]))
    done = simulated(settings)
    assert Counter(done.computed) == Counter([*READ, "report"])
    assert all(done.made[name].key == first.made[name].key for name in first.made if name != "report")
    shares = {task["task"]: task["forward_tokens"] for task in planned["tasks"] if task["state"] == "run"}
    assert shares["sae_diff"]  # a hook of its own is told before it runs
    one, two = ({row["feature"]: row for row in done.table(name, "concepts")} for name in ("concepts", "concepts_2"))
    for feature, row in one.items():
        assert two[feature]["change"] == pytest.approx(row["change"], abs=1e-6)
        assert two[feature]["label"] == row["label"] and two[feature]["score"] is None
        assert two[feature]["predicted_change"] == pytest.approx(row["predicted_change"], abs=1e-5)
    wiring = called(load_request(str(tiny_request), [settings]))
    blocks = concept_blocks(done.step.run, done.made, wiring.sources.saes_read, 5)
    assert blocks["concepts"]["sae"] == {"name": tiny_sae.name, "hook": "blocks.1.hook_resid_pre"}
    (more,) = blocks["more_concepts"]
    assert more["sae"] == {"name": tiny_sae.name, "hook": "blocks.0.hook_resid_post"}
    assert more["score_spearman"] is None and more["tangent_spearman"] is not None
    page = build_report(gathered(done.step.run, done.made, wiring.lines()))
    assert f"{tiny_sae.name} at blocks.0.hook_resid_post" in page and planned["sae_line"] in page


def test_more_saes_need_a_first_one(tiny_request, tiny_sae):
    with pytest.raises(BadInput, match=r"saes are read beside sae; give the first of them as sae"):
        load_request(str(tiny_request), ["sae=null", f"saes=[{{path: {tiny_sae}}}]"])
