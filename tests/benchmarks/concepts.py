"""Whether the concepts that are said to move do move in the really trained model, and whether their names hold.

`make bench-concepts` takes the bank's real runs on two benign datasets and writes results/concepts.json, a row per
dataset: Pearson and signs of the measured changes against the trained model's, beside those of a run in another order;
how often a fresh null delta is marked at a nominal 5 % by the pooled nulls and by rows alone; how many of the concepts
beyond noise come true, of the prediction and of that other run; and how many of the first 40 names pick out their
feature's contexts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import cached_property
from pathlib import Path
from typing import Any

from foretune.tasks.concepts.detector import Detector
from foretune.tasks.concepts.evidence import Evidence
from foretune.tasks.concepts.firings import firings
from foretune.tasks.concepts.naming import Name, name_of
from foretune.tasks.inputs.concepts import NamingSettings
from foretune.tasks.inspection.activations import SampleActivations, sample_activations
from foretune.tasks.inspection.sae_diff import beyond_noise
from foretune.tasks.inspection.settings import DiffSettings
from foretune.tasks.numerics.activations import PairedChange, paired_change, split_half
from foretune.tasks.numerics.agreement import pearson, spearman, top_sign_accuracy
from foretune.tasks.numerics.feature_nulls import pooled_nulls
from foretune.tasks.numerics.nulls import null_delta
from foretune.tasks.samples.dataset import read_table
from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.prediction import Simulation
from tests.benchmarks.real_runs import RERUN, Case, intended, stored_run

BENIGN = ("self_instruct", "gsm8k")
NULLS, FRESH = 8, 4
TOP = 40
LARGEST = 5  # features that make half of the sum of squares, and so decide Pearson's correlation


class Concepts:
    """One case's features on its held-out rows, at the base weights plus a delta."""

    def __init__(self, simulation: Simulation) -> None:
        self.wiring = simulation.wiring
        run = self.wiring.step.run
        self.loaded, self.sae = self.wiring.model.open(run), self.wiring.sources.sae.open()
        self.table = read_table(run, self.wiring.tables["heldout"])
        self.settings = DiffSettings()

    def at(self, delta: dict[str, Any]) -> SampleActivations:
        weights = {n: self.loaded.weight(n) + d.to(self.loaded.weight(n)) for n, d in delta.items()}
        return sample_activations(self.loaded, [self.sae], self.table, self.settings, weights)[0]

    @cached_property
    def base(self) -> SampleActivations:
        return self.at({})

    def change(self, delta: dict[str, Any]) -> PairedChange:
        return paired_change(self.base.sums, self.at(delta).sums, self.base.tokens)

    def names(self, features: list[int]) -> list[Name]:
        """Of these features, from the training and held-out rows."""
        naming, wiring = NamingSettings(), self.wiring
        made = wiring.step(
            firings,
            model=wiring.model,
            sae=wiring.sources.sae,
            rows=wiring.rows["train"].subset(naming.rows, "concepts"),
            heldout=wiring.compared_rows(),
            settings=naming.read,
        )
        stored = wiring.step.run.store.open(made)
        read = (stored.arrow(f"{name}.parquet") for name in ("tokens", "firings"))
        evidence = Evidence(*read, self.loaded.tokenizer)
        detector = Detector(evidence, self.loaded.model.get_input_embeddings().weight)
        return [name_of(feature, None, None, evidence, detector, naming) for feature in features]


def measured(case: Case) -> dict[str, Any] | None:
    """One row; None while the bank has no real run of the case."""
    import torch

    truth, again = stored_run(case), stored_run(case, case.seed + RERUN)
    if truth is None or again is None:
        return None
    with tempfile.TemporaryDirectory() as name:
        simulation = Simulation(case, Path(name))
        delta, _, _ = simulation.predicted("prediction.anchors=auto")
        concepts, started = Concepts(simulation), time.process_time()
        predicted, real, rerun = (concepts.change(each) for each in (delta, truth.delta, again.delta))
        norms = {name: float(change.norm()) for name, change in delta.items() if float(change.norm())}
        weights, rank = {n: concepts.loaded.weight(n) for n in norms}, simulation.wiring.request.adapter.r
        nulls = [concepts.change(null_delta(weights, norms, rank, draw)) for draw in range(NULLS + FRESH)]
        changes, errors = (torch.stack([getattr(each, what) for each in nulls]) for what in ("change", "error"))
        pooled = pooled_nulls(changes[:NULLS], errors[:NULLS])
        fires = errors.square().mean(0) > 0
        marked = [float((pooled.z(change)[fires].abs() > 1.96).double().mean()) for change in changes[NULLS:]]
        by_rows = [float((each.z[fires].abs() > 1.96).double().mean()) for each in nulls[NULLS:]]
        beyond = beyond_noise(predicted.z, pooled.z(predicted.change))
        halves = split_half(concepts.base.sums, concepts.at(delta).sums, concepts.base.tokens)
        assert halves is not None
        top = [int(n) for n in predicted.change.abs().argsort(descending=True) if beyond[n]][:TOP]
        names = concepts.names(top)
        seconds = time.process_time() - started
    stable = beyond & halves.same_sign
    same = predicted.change.sign() == real.change.sign()
    really = beyond_noise(real.z, pooled.z(real.change))
    again_beyond = beyond_noise(rerun.z, pooled.z(rerun.change))
    again_same = rerun.change.sign() == real.change.sign()
    smaller = real.change.abs().argsort(descending=True)[LARGEST:]
    found = {
        "pearson": pearson(predicted.change, real.change),
        "pearson_rerun": pearson(rerun.change, real.change),
        "pearson_of_smaller": pearson(predicted.change[smaller], real.change[smaller]),
        "size": float(predicted.change.norm() / real.change.norm()),
        "sign50": top_sign_accuracy(predicted.change, real.change, 50),
        "sign50_rerun": top_sign_accuracy(rerun.change, real.change, 50),
        "half_spearman": spearman(halves.first[fires], halves.second[fires]),
        "nulls_marked": sum(marked) / FRESH,
        "nulls_marked_by_rows": sum(by_rows) / FRESH,
        "stable_same_sign": _share(same[stable]),
        "stable_come_true": _share((same & really)[stable]),
        "beyond_same_sign_rerun": _share(again_same[again_beyond]),
        "beyond_come_true_rerun": _share((again_same & really)[again_beyond]),
        "within_noise_come_true": _share((same & really)[fires & ~beyond]),
        "names_at_80": sum((each.confidence or 0.0) >= 0.8 for each in names) / max(len(names), 1),
        "names_clear": sum(each.label != "unclear" for each in names) / max(len(names), 1),
    }
    counts = {"features": int(fires.sum()), "beyond_noise": int(beyond.sum()), "stable": int(stable.sum())}
    rounded = {name: round(float(value), 4) for name, value in found.items()}
    return {"data": case.data, **rounded, **counts, "names": len(names), "processor_seconds": round(seconds, 1)}


def _share(true: Any) -> float:
    return float(true.double().mean()) if true.numel() else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of a dataset's name")
    chosen = parser.parse_args()
    started, rows = environment(), []
    for case in intended():
        if case.data in BENIGN and chosen.only in case.data:
            row = measured(case)
            print(row or f"{case.name}: no real run in the bank", flush=True)
            rows += [{**row, "date": started["date"]}] if row else []
            write_results("concepts", with_earlier("concepts", rows, ("data",)), started)


if __name__ == "__main__":
    main()
