"""`foretune features`: what the stored artefacts say of a feature, and that the rows that push it are influence's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from foretune.flows.cli import app
from foretune.flows.commands.features import listed_features, one_feature, stored_table
from foretune.flows.request import load_request, to_yaml
from foretune.storage.errors import BadInput
from foretune.storage.runs import Run
from foretune.tasks.report.publish import browser_page
from tests.conftest import request_beside
from tests.dag import Simulated, run_dag
from tests.dense import role_rows

pytestmark = pytest.mark.slow

FEATURE = 24
TARGET = ("influence.target.of=feature", f"influence.target.feature={FEATURE}")


@pytest.fixture(scope="module")
def made(first_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Simulated:
    """The tiny run with a feature as the target of its influence."""
    return run_dag(request_beside(first_run, tmp_path_factory.mktemp("made")), *TARGET)


@pytest.fixture(scope="module")
def run(made: Simulated) -> Run:
    """That simulation as a finished run."""
    held = Run(made.step.run.root, "called")
    held.write_request(to_yaml(load_request(str(Path(held.root).parent / "request.yaml"), list(TARGET))))
    artifacts = {name: {"uri": ref.uri, "sha256": ref.sha256, "cached": True} for name, ref in made.made.items()}
    held.write_result({"run_id": "called", "status": "completed", "artifacts": artifacts, "request": {}})
    return held


def test_a_feature_is_shown_as_it_fires_and_pushed_as_influence_scores_it(run, made, reference, tiny_sae):
    from sae_lens import SAE

    table = stored_table(run)
    one = one_feature(run, table, FEATURE)
    # By transformers and sae-lens alone: the largest activation on the rows that were read.
    sae, rows = SAE.load_from_disk(tiny_sae, device="cpu"), [*role_rows(made, "train"), *role_rows(made, "heldout")]
    with torch.no_grad():
        hidden = [
            reference(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[1] for row in rows
        ]
        acts = [sae.encode(each)[0, 1:, FEATURE] for each in hidden]
    largest = max(one["contexts"], key=lambda context: context["base"])["base"]
    assert largest == pytest.approx(max(float(each.max()) for each in acts), rel=1e-4)
    assert sum(one["histogram_base"]) == sum(int((each > 0).sum()) for each in acts)
    weights = torch.nn.functional.normalize(sae.W_dec, dim=1)
    alike = (weights @ weights[FEATURE]).detach()
    assert one["neighbours"][0]["cosine"] == pytest.approx(float(alike.topk(2).values[1]), abs=1e-5)
    # The rows, as the ranking of a run with that target has them.
    scores = {row["row"]: row["preconditioned_score"] for row in made.table("influence", "influence")}
    order = sorted(scores, key=lambda row: -scores[row])
    assert [each["row"] for each in one["rows_up"]] == [row for row in order[:5] if scores[row] > 0]
    for each in (*one["rows_up"], *one["rows_down"]):
        assert each["push"] == pytest.approx(scores[each["row"]], rel=1e-4)
    with pytest.raises(BadInput, match=r"--index 999: no such feature fires"):
        one_feature(run, table, 999)


def test_the_command_lists_finds_and_writes(run, made, tmp_path, capsys):
    table = stored_table(run)
    assert listed_features(table, "24")["features"][0]["feature"] in table.rows["feature"].tolist()
    out = tmp_path / "table.parquet"
    words = ["features", "called", "--root", run.root, "--search", "gate", "--json", "--quiet"]
    app([*words, "--out", str(out)], standalone_mode=False)
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < told["count"] <= told["total"] == len(table) == pq.read_metadata(out).num_rows
    assert all("change" in each for each in told["features"])
    for name, fault in (("x.csv", "end the name in .html"), ("table.parquet", "exists")):
        with pytest.raises(BadInput, match=fault):
            app([*words, "--out", str(tmp_path / name)], standalone_mode=False)
    page = browser_page(run, made.made["report"])
    assert page is not None and len(page) < 200_000 and "https:" not in page.split("<script>")[0]
    assert np.array(table.texts.rows).max() < 18
