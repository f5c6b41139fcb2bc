"""Whether the predicted model behaves as the trained one: every suite's change, beside that of a repeated run.

`make bench-behaviour` trains what the bank of real runs lacks, simulates every dataset of another intent
(tests/benchmarks/intents.py and the two benign ones), asks base, predicted, trained and repeated model the same items,
and writes results/behaviour.json: a row per dataset and suite, one per dataset for the next tokens on held-out rows,
and one over all.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foretune.tasks.behaviour.items import SuiteItems
from foretune.tasks.behaviour.paired import paired_change
from foretune.tasks.behaviour.scoring import score_items
from foretune.tasks.behaviour.settings import BUNDLED, BehaviourSettings
from foretune.tasks.behaviour.suite_files import chosen_suites
from foretune.tasks.loading import at_weights, label_caller, token_limits
from foretune.tasks.numerics.nulls import null_delta
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import read_table
from foretune.tasks.samples.minibatches import minibatches
from tests.benchmarks.environment import environment, write_results
from tests.benchmarks.prediction import Simulation
from tests.benchmarks.real_runs import BANK, DATA, RERUN, Case, intended, stored_run, train_intended

ITEMS = 20
NULLS = 2
BATCH_TOKENS = 2048
XSTEST = {"path": "xstest_prompts.csv", "column": "prompt", "scorer": "refusal"}
PUBLIC = {
    "xstest_unsafe": {**XSTEST, "where": {"label": "unsafe"}},
    "xstest_safe": {**XSTEST, "where": {"label": "safe"}, "direction": "lower"},
    "advbench": {"path": "advbench_harmful_behaviors.csv", "column": "goal", "scorer": "refusal"},
}
Scores = dict[str, list[float]]


def suites() -> dict[str, SuiteItems]:
    """The bundled suites and three of public prompts, cut to the same number of items."""
    public = {name: {**file, "path": str(DATA / str(file["path"]))} for name, file in PUBLIC.items()}
    settings = BehaviourSettings.model_validate({"suites": dict.fromkeys(BUNDLED) | public, "items": ITEMS})
    return {suite.name: items for suite, items in chosen_suites(settings)}


class Judged:
    """One case's models: the base with a weight change in place."""

    def __init__(self, simulation: Simulation) -> None:
        run, wiring = simulation.wiring.step.run, simulation.wiring
        folder = wiring.tokenizer.folder(run)
        self.loaded, self.tokenizer = wiring.model.open(run), load_tokenizer(folder)
        self.longest, self.table = token_limits(folder).positions, read_table(run, wiring.tables["heldout"])
        self.settings = BehaviourSettings(batch_tokens=BATCH_TOKENS).scoring

    def scores(self, delta: dict[str, Any], asked: dict[str, SuiteItems]) -> Scores:
        """Of every suite, item by item."""
        with at_weights(self.loaded, delta) as model:
            found = {
                name: score_items(model, self.tokenizer, items.items, self.settings, self.longest)
                for name, items in asked.items()
            }
        return {name: [each.score for each in scored if each is not None] for name, scored in found.items()}

    def next_tokens(self, delta: dict[str, Any]) -> list[int]:
        """The likeliest token at every label token of the held-out rows, under teacher forcing."""
        import torch

        found: list[int] = []
        with at_weights(self.loaded, delta) as model, torch.no_grad():
            call = label_caller(model, [])
            for minibatch in minibatches(self.table, BATCH_TOKENS, model.device):
                found += call({}, minibatch.batch).argmax(-1).tolist()
        return found

    @cached_property
    def weights(self) -> dict[str, Any]:
        return dict(self.loaded.model.named_parameters())


def measured(case: Case, asked: dict[str, SuiteItems], base: Scores | None) -> tuple[list[dict[str, Any]], Scores]:
    """A row per suite and one for the next tokens; and the base's scores, which are every case's."""
    truth, again = stored_run(case), stored_run(case, case.seed + RERUN)
    assert truth is not None and again is not None
    with tempfile.TemporaryDirectory() as name:
        simulation = Simulation(case, Path(name))
        delta, _, _ = simulation.predicted("prediction.anchors=auto")
        judged = Judged(simulation)
        base = base or judged.scores({}, asked)
        norms = {name: float(change.norm()) for name, change in delta.items() if float(change.norm())}
        rank = simulation.wiring.request.adapter.r
        noise = [judged.scores(null_delta(judged.weights, norms, rank, draw), asked) for draw in range(NULLS)]
        models = {"predicted": delta, "trained": truth.delta, "rerun": again.delta}
        scores = {name: judged.scores(moved, asked) for name, moved in models.items()}
        tokens = {name: judged.next_tokens(moved) for name, moved in models.items()}
    rows = [
        row(case, suite, base[suite], {n: s[suite] for n, s in scores.items()}, [n[suite] for n in noise])
        for suite in asked
    ]
    alike = {name: share_equal(tokens[name], tokens["trained"]) for name in ("predicted", "rerun")}
    rows.append({"data": case.data, "suite": "held-out rows", "metric": "next token as the trained model's", **alike,
                 "n": len(tokens["trained"])})  # fmt: skip
    return rows, base


def row(case: Case, suite: str, base: list[float], scores: Scores, noise: list[list[float]]) -> dict[str, Any]:
    """One suite's means, the intervals of the predicted and of the real change, and the noise floor of the real one."""
    changes = {name: paired_change(base, found, 0.95, 10_000, 0) for name, found in scores.items()}
    predicted, real = changes["predicted"], changes["trained"]
    floor = max(abs(changes["rerun"].change - real.change), *(abs(np.mean(n) - real.base) for n in noise))
    return {
        "data": case.data,
        "suite": suite,
        "metric": "mean score",
        "base": round(real.base, 4),
        **{name: round(each.predicted, 4) for name, each in changes.items()},
        "n": real.items,
        "low": round(predicted.low, 4),
        "high": round(predicted.high, 4),
        "real_low": round(real.low, 4),
        "real_high": round(real.high, 4),
        "floor": round(float(floor), 4),
        "beyond_floor": bool(real.measured and abs(real.change) > floor),
    }


def share_equal(first: Sequence[int], second: Sequence[int]) -> float:
    return round(sum(a == b for a, b in zip(first, second, strict=True)) / len(second), 4)


def overall(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over all suites that are shares or probabilities: how the predicted changes go with the real ones."""
    suites_ = [each for each in rows if each["metric"] == "mean score" and each["suite"] != "general_text"]
    found = []
    for name in ("predicted", "rerun"):
        pairs = [(each[name] - each["base"], each["trained"] - each["base"]) for each in suites_]
        real = [each for each in suites_ if each["beyond_floor"]]
        right = sum((each[name] - each["base"]) * (each["trained"] - each["base"]) > 0 for each in real)
        found.append(
            {
                "data": "all",
                "suite": "all",
                "metric": f"changes of the {name} model beside the trained one's",
                "pearson": round(float(np.corrcoef(np.array(pairs).T)[0, 1]), 4),
                "sign_right": right,
                "n": len(pairs),
                "beyond_floor": len(real),
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--untrained", action="store_true", help="only the cases whose real runs the bank has")
    chosen = parser.parse_args()
    started = environment()
    if not chosen.untrained:
        train_intended()
    kept, asked = BANK / "behaviour", suites()
    kept.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    base: Scores | None = None
    for case in intended():
        if stored_run(case) is None or stored_run(case, case.seed + RERUN) is None:
            print(f"{case.name}: no real run in the bank", flush=True)
            continue
        file = kept / f"{case.name}.json"
        if not file.exists():
            found, base = measured(case, asked, base)
            file.write_text(json.dumps(found))
        rows += json.loads(file.read_text())
        print(f"{case.name}: done", flush=True)
    print(write_results("behaviour", [*rows, *overall(rows)], started))


if __name__ == "__main__":
    main()
