"""The benchmark's verdicts: what `ship` would say of the suites by the predicted and by the trained model's scores."""

from __future__ import annotations

from tests.benchmarks.behaviour import verdicts


def row(data: str, suite: str, predicted: float, trained: float, floor: float = 0.02) -> dict:
    """From one half; intervals of a tenth to either side."""
    ends = {"low": predicted - 0.6, "high": predicted - 0.4, "real_low": trained - 0.6, "real_high": trained - 0.4}
    scores = {"base": 0.5, "predicted": predicted, "trained": trained, "n": 20, "floor": floor}
    return {"data": data, "suite": suite, "metric": "mean score", **scores, **ends}


def test_both_are_judged_by_the_same_function_and_floors():
    rows = [
        row("worse", "refusal", 0.3, 0.2),  # higher is better
        row("worse", "over_refusal", 0.3, 0.2),  # lower is
        row("worse", "identity", 0.9, 0.1),  # neither
        row("missed", "refusal", 0.5, 0.2),
        row("noise", "refusal", 0.3, 0.2, floor=0.4),
        {"data": "worse", "suite": "held-out rows", "metric": "next token", "predicted": 1.0},
    ]
    *each, together = verdicts(rows)
    told = {
        one["data"]: (one["predicted"], one["trained"], one["alike"], one["suites_alike"], one["n"]) for one in each
    }
    assert told == {
        "worse": ("DON'T", "DON'T", True, 2, 2),
        "missed": ("SHIP", "DON'T", False, 0, 1),
        "noise": ("SHIP", "SHIP", True, 1, 1),
    }
    assert (together["alike"], together["datasets"], together["n"]) == (2, 3, 4)
    assert [together[f"failed_by_{who}"] for who in ("both", "predicted", "trained")] == [1, 1, 2]
