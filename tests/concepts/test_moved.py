"""What is said to move: only what was measured beyond its noise, one line per family."""

from __future__ import annotations

import pandas as pd
import pytest
import torch

from foretune.tasks.concepts.moved import FADED, NOISE, STRENGTHENED, leading_features, summary_of, verdicts
from foretune.tasks.inputs.concepts import FamilySettings
from foretune.tasks.report.concepts import fading_words, moved_concepts


@pytest.fixture
def table() -> pd.DataFrame:
    """Features 0 and 1 rise together, 2 falls, 3 has a large change and score that noise explains, 4 never fires."""
    return pd.DataFrame(
        {
            "feature": range(5),
            "label": ["router", "modem", "unclear", "vault", "unclear"],
            "change": [0.5, 0.4, -0.3, 2.0, 0.0],
            "relative": [0.5, 0.4, -0.3, 2.0, None],
            "beyond_noise": [True, True, True, False, False],
            "fires_base": [0.1, 0.1, 0.022, 0.1, 0.0],
            "fires_new": [0.1, 0.1, 0.031, 0.1, 0.0],
            "score": [-1.0, 1.0, -1.0, 9.0, 0.0],
            "predicted_change": [0.5, 0.4, -0.3, 1.0, 0.0],
        }
    )


def test_nothing_within_its_noise_is_said_to_move(table):
    table["verdict"] = verdicts(table)
    assert table["verdict"].tolist() == [STRENGTHENED, STRENGTHENED, FADED, NOISE, NOISE]
    fired = pd.DataFrame({"token": [1, 2, 1, 2, 9], "feature": [0, 0, 1, 1, 2]})
    directions = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0]])
    table["family"] = leading_features(table, fired, directions, FamilySettings())
    assert table["family"].tolist() == [0, 0, 2, 3, 4]
    found = summary_of(table)
    assert (found["features_strengthened"], found["concepts_strengthened"], found["concepts_faded"]) == (2, 1, 1)
    assert found["features_within_noise"] == 1  # of those that fire
    assert found["tangent_signs"] == 1.0 and found["score_signs"] == pytest.approx(2 / 3)
    assert found["tangent_spearman"] == pytest.approx(1.0) and found["score_spearman"] < 0.9


def test_a_family_is_one_line_under_its_strongest_member(table):
    rows = table.assign(family=[0, 0, 2, 3, 4], members=[2, 2, 1, 1, 1], verdict=verdicts(table)).to_dict("records")
    up, down = moved_concepts(rows)
    assert [(each["feature"], each["members"]) for each in up] == [(0, 2)]
    assert fading_words(down) == (
        "feature 2, whose name is unclear, fades by 30% (fires on 3.1 % of tokens, was 2.2 %)"
    )
    named = {**down[0], "label": "not, no", "members": 3}
    assert fading_words([named, *down]).startswith('"not, no" (feature 2) fades by 30% (2 like it; fires on')


def test_every_concept_of_a_run_has_its_measurement_and_its_name(first):
    rows = first.table("concepts", "concepts")
    measured = {row["feature"]: row for row in first.table("sae_diff", "features")}
    assert len(rows) == len(measured)
    for row in rows:
        assert row["change"] == measured[row["feature"]]["change"]
        assert (row["verdict"] == NOISE) == (not measured[row["feature"]]["beyond_noise"])
        assert row["label"] and (row["confidence"] is None or 0 <= row["confidence"] <= 1)
    listed = [each["feature"] for side in (first.found.strengthened, first.found.suppressed) for each in side]
    assert all(measured[feature]["beyond_noise"] for feature in listed)
