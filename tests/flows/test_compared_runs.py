"""Two real runs of the tiny model beside each other: other settings, another SAE, and the same run again."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from foretune.flows.commands.comparison import print_comparison
from foretune.flows.commands.terminal import Terminal
from foretune.flows.compare import compare, comparison_markdown
from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.runs import resolve_run
from tests.conftest import write_sae

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def other_sae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the tiny SAE, with other directions."""
    return write_sae(tmp_path_factory.mktemp("other_sae"), seed=7)


MANY = {
    "training.learning_rate": 2e-3,
    "training.epochs": 1,
    "training.batch_size": 2,
    "training.lr_scheduler_type": "cosine",
    "adapter.r": 4,
    "adapter.target_modules": ["q_proj", "v_proj", "o_proj"],
    "dataset.max_length": 64,
    "quality.near_duplicate_jaccard": 0.5,
    "prediction.tolerance": 0.2,
    "influence.method": "lissa",
}


@pytest.fixture(scope="module")
def runs(prefect_server, write_tiny_request, other_sae, tmp_path_factory) -> dict[str, str]:
    """Run ids by what differs from the first."""
    request = write_tiny_request(tmp_path_factory.mktemp("compared"))

    def made(**changes: Any) -> str:
        given = [f"{name}={value}" for name, value in changes.items()]
        return simulate(load_request(str(request), given))["run_id"]

    return {
        "root": str(request.parent / "root"),
        "first": made(),
        "again": made(),
        "settings": made(**MANY),
        "sae": made(**{"sae.path": str(other_sae)}),
    }


def said(compared: dict[str, Any]) -> str:
    out = io.StringIO()
    print_comparison(Terminal(file=out, width=100), compared)
    return out.getvalue()


@pytest.fixture(scope="module")
def compared(runs) -> dict[str, dict[str, Any]]:
    """What `compare` finds between the first run and each of the others."""
    return {name: compare(runs["first"], runs[name], root=runs["root"]) for name in ("again", "settings", "sae")}


def test_a_run_compared_with_itself_made_again_is_told_to_be_identical(compared):
    text = said(compared["again"])
    assert "The two runs are identical" in text and "Numbers" not in text


def test_every_changed_setting_is_named_and_what_is_no_longer_one_quantity_is_not_compared(compared):
    found, text = compared["settings"], said(compared["settings"])
    assert {each["setting"] for each in found["request"]} == {*MANY}
    assert all(name in text for name in MANY)
    words = " ".join(text.split())
    assert "not of the same tokens: the same held-out rows are encoded differently" in words
    assert "Influence cannot be compared: rows were ranked by" in words and "LiSSA" in words
    assert "flipped between helping and harming: not compared" in words and found["samples"]["flipped"] == []
    assert [name.split(".")[-2] for name in found["tensors"]["added"]] == ["o_proj", "o_proj"]
    assert "only the run after adapts" in words and found["features"]


def test_runs_with_different_saes_differ_in_their_concepts_alone(compared, runs):
    found, text = compared["sae"], said(compared["sae"])
    assert [each["setting"] for each in found["request"]] == ["sae.path"]
    assert [each["input"] for each in found["inputs"]] == ["SAE"] and found["features"] == []
    assert "the runs read different SAEs" in text and "Effective learning rate" not in text
    assert found["losses_apart"] is None and found["influence_apart"] is None
    page = resolve_run(runs["root"], runs["sae"]).read_report()
    assert "Concepts cannot be compared" in page and 'href="#comparison"' in page
    assert "Concepts cannot be compared" in comparison_markdown(found)
