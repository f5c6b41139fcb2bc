"""Whether the predicted model behaves as the trained one: every suite's change, beside that of a repeated run.

`make bench-behaviour` trains what the bank of real runs lacks, simulates every dataset of another intent
(tests/benchmarks/intents.py and the two benign ones), asks base, predicted, trained and repeated model the same items,
and writes results/behaviour.json: a row per dataset and suite, one per dataset for the next tokens on held-out rows,
one per dataset for what `foretune ship` says of the suites by the predicted and by the trained model, and those over
all. `--stored` summarises what is in the bank and opens no model.
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

from foretune.tasks.behaviour.items import Direction, SuiteItems
from foretune.tasks.behaviour.paired import paired_change
from foretune.tasks.behaviour.scoring import score_items
from foretune.tasks.behaviour.settings import BUNDLED, BehaviourSettings
from foretune.tasks.behaviour.suite_files import chosen_suites
from foretune.tasks.loading import at_weights, label_caller, token_limits
from foretune.tasks.numerics.nulls import null_delta
from foretune.tasks.report.shipping import Measured, ShipEvidence, decide
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.dataset import read_table
from foretune.tasks.samples.minibatches import minibatches
from tests.benchmarks.environment import environment, write_results
from tests.benchmarks.prediction import Simulation
from tests.benchmarks.real_runs import BANK, DATA, RERUN, Case, intended, mild, stored_run, train_intended

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
    rows.append({"data": case.told, "suite": "held-out rows", "metric": "next token as the trained model's", **alike,
                 "n": len(tokens["trained"])})  # fmt: skip
    return rows, base


def predicted_again(
    case: Case, asked: dict[str, SuiteItems], base: Scores | None
) -> tuple[list[dict[str, Any]], Scores]:
    """A case's stored rows with what the predicted model scores now; what the other models said stays."""
    truth, rows = stored_run(case), json.loads(kept(case).read_text())
    assert truth is not None
    with tempfile.TemporaryDirectory() as name:
        simulation = Simulation(case, Path(name))
        delta, _, _ = simulation.predicted("prediction.anchors=auto")
        judged = Judged(simulation)
        base, scores = base or judged.scores({}, asked), judged.scores(delta, asked)
        alike = share_equal(judged.next_tokens(delta), judged.next_tokens(truth.delta))
    for each in rows:
        if each["suite"] in asked:
            change = paired_change(base[each["suite"]], scores[each["suite"]], 0.95, 10_000, 0)
            found = (change.predicted, change.low, change.high)
            each |= {name: round(value, 4) for name, value in zip(("predicted", "low", "high"), found, strict=True)}
        else:
            each["predicted"] = alike
    return rows, base


def kept(case: Case) -> Path:
    """Where the bank has a case's rows."""
    return BANK / "behaviour" / f"{case.name}.json"


def row(case: Case, suite: str, base: list[float], scores: Scores, noise: list[list[float]]) -> dict[str, Any]:
    """One suite's means, the intervals of the predicted and of the real change, and the noise floor of the real one."""
    changes = {name: paired_change(base, found, 0.95, 10_000, 0) for name, found in scores.items()}
    predicted, real = changes["predicted"], changes["trained"]
    floor = max(abs(changes["rerun"].change - real.change), *(abs(np.mean(n) - real.base) for n in noise))
    return {
        "data": case.told,
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


def directions() -> dict[str, Direction]:
    """Which way is better, by suite."""
    bundled: dict[str, Direction] = {s.name: s.direction for s, _ in chosen_suites(BehaviourSettings(items=ITEMS))}
    return bundled | {name: file.get("direction", "higher") for name, file in PUBLIC.items()}  # pyright: ignore[reportReturnType]


def verdicts(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Per dataset what `ship` says of the suites by the predicted model's scores and by the trained one's: the same
    function, the same floors, the same items. Held-out loss, trust and leakage are left out: they are of the prediction
    alone. And over all datasets how often both say the same."""
    better, found = directions(), []
    by_data: dict[str, list[dict[str, Any]]] = {}
    for each in rows:
        if each["metric"] == "mean score":
            by_data.setdefault(each["data"], []).append(each)
    for data, suites_ in by_data.items():
        both = {
            name: decide(
                ShipEvidence([], [figure(each, name, better[each["suite"]]) for each in suites_], True, "", "")
            )
            for name in ("predicted", "trained")
        }
        outcomes = [
            [check.outcome for check in each.checks if check.name.startswith("suite.")] for each in both.values()
        ]
        judged = [pair for pair in zip(*outcomes, strict=True) if pair[0] != "not judged"]
        found.append(
            {
                "data": data,
                "suite": "all",
                "metric": "verdict of ship by the suites",
                **{name: each.verdict for name, each in both.items()},
                "alike": both["predicted"].verdict == both["trained"].verdict,
                "suites_alike": sum(first == second for first, second in judged),
                "failed_by_both": sum(pair == ("fail", "fail") for pair in judged),
                "failed_by_predicted": sum(first == "fail" for first, _ in judged),
                "failed_by_trained": sum(second == "fail" for _, second in judged),
                "n": len(judged),
            }
        )
    counts = ("alike", "suites_alike", "failed_by_both", "failed_by_predicted", "failed_by_trained", "n")
    together = {name: sum(each[name] for each in found) for name in counts}
    return [*found, {"data": "all", "suite": "all", "metric": "verdicts alike", **together, "datasets": len(found)}]


def figure(row: dict[str, Any], name: str, direction: Direction) -> Measured:
    """One suite as `ship` judges it, by the predicted or by the trained model."""
    low, high = ("low", "high") if name == "predicted" else ("real_low", "real_high")
    return Measured(
        row["suite"], row["base"], row[name], row[name] - row["base"], row[low], row[high], row["floor"], direction, "",
        row["n"], "items", "the stored floor",
    )  # fmt: skip


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
    parser.add_argument("--stored", action="store_true", help="only what is in the bank; no model is opened")
    parser.add_argument("--predict", action="store_true", help="ask the predicted models of what is in the bank again")
    chosen = parser.parse_args()
    started = environment()
    if chosen.stored:
        written(started)
        return
    if not chosen.untrained:
        train_intended()
    asked = suites()
    (BANK / "behaviour").mkdir(parents=True, exist_ok=True)
    base: Scores | None = None
    for case in [*intended(), *mild()]:
        if stored_run(case) is None or stored_run(case, case.seed + RERUN) is None:
            print(f"{case.name}: no real run in the bank", flush=True)
            continue
        if not kept(case).exists():
            found, base = measured(case, asked, base)
        elif chosen.predict:
            found, base = predicted_again(case, asked, base)
        else:
            continue
        kept(case).write_text(json.dumps(found))
        print(f"{case.name}: done", flush=True)
    written(started)


def written(started: dict[str, Any]) -> None:
    """The results of all that is in the bank."""
    rows = [row for file in sorted((BANK / "behaviour").glob("*.json")) for row in json.loads(file.read_text())]
    print(write_results("behaviour", [*rows, *overall(rows), *verdicts(rows)], started))


if __name__ == "__main__":
    main()
