"""How near the predicted checkpoint comes to a real run: direction, size, loss, layers, concepts.

`make bench-prediction` trains what the bank of real runs lacks, simulates every case, and writes
results/prediction.json. Beside foretune in the same table: the closed form eta T / (K + lambda) x gradient, the
real run's own first step drawn out to its whole length, and the yardstick, the same run with another shuffle.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from foretune.flows.dag.wiring import Wiring
from foretune.flows.request import load_request
from foretune.storage.artifacts import ArtifactStore
from foretune.storage.runs import Run
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.inputs.handles import SaeHandle
from foretune.tasks.inputs.sources import resolve_sources
from foretune.tasks.inspection.sae_diff import sample_activations
from foretune.tasks.numerics.agreement import cosine, module_spearman, norm_ratio, pearson, share, top_sign_accuracy
from foretune.tasks.numerics.schedules import learning_rates
from foretune.tasks.prediction.evaluation import RowsAtWeights
from foretune.tasks.samples.dataset import read_table
from tests.benchmarks.environment import environment, with_earlier, write_results
from tests.benchmarks.real_runs import BANK, RERUN, Case, Truth, cases, missing, stored_run, train_case
from tests.dag import Called

BATCH_TOKENS = 1024
SUBJECT = ("data", "regime", "adapter", "seed", "method", "asked")
CHEAP = {
    "lora": ["curvature.quotients=sampled", "curvature.rows=4", "curvature.power_iterations=1"],
    "full": ["curvature.quotient_rows=1", "curvature.rows=1", "curvature.power_iterations=1"],
}
"""K and the sharpness are only read by the closed form here."""
FASTER = 1.5
"""How much faster a run the case is predicted along."""


@dataclass
class Simulation:
    """The passes that a prediction reads, on one case's request."""

    case: Case
    folder: Path

    def __post_init__(self) -> None:
        self.path = self.folder / "request.yaml"
        self.path.write_text(yaml.safe_dump(self.case.request(self.folder, str(BANK / "root"))))
        self.wiring = self.wired()

    def wired(self, *overrides: str) -> Wiring:
        """The wiring of the request with these settings changed; what is stored is not computed again."""
        cheap = CHEAP[self.case.adapter.get("method", "lora")]
        request = load_request(str(self.path), [*cheap, *overrides])
        run = Run(request.runtime.root, "predictions")
        return Wiring(Called(run), request, resolve_sources(request.dataset, request.model, request.sae))

    def made(self, *overrides: str) -> tuple[ArtifactStore, dict[str, Any]]:
        """The artefacts that a prediction with these settings is made of, and itself."""
        wiring = self.wired(*overrides)
        train, heldout = wiring.landscape("train"), wiring.landscape("heldout")
        made = {"landscape": train.layers, "heldout_landscape": heldout.layers, "curvature": wiring.curvature(train)}
        made |= wiring.prediction(train, heldout, made["curvature"])
        shards = [*train.blocks, *heldout.blocks, train.gradient, heldout.gradient]
        return wiring.step.run.store, {**made, **dict(enumerate(shards))}

    def predicted(self, *overrides: str) -> tuple[dict[str, Any], dict[str, Any], float]:
        """Delta, summary, and the seconds that the passes behind it took when they ran."""
        from foretune.tasks.inputs.adapter_factors import stored_delta

        store, made = self.made(*overrides)
        artifact = store.open(made["prediction"])
        summary = artifact.json("summary.json")
        ran = [ref for name, ref in made.items() if name != "path" or summary["path_of"] == "this run"]
        seconds = sum(store.manifest(ref.task, ref.key).seconds for ref in ran)
        return stored_delta(artifact), summary, seconds

    def predicted_along(self, factor: float) -> tuple[dict[str, Any], dict[str, Any], float]:
        """`predicted` along the path that a run at `factor` times the rate measures."""
        rate = self.wiring.request.training.learning_rate
        _, made = self.made(f"training.learning_rate={factor * rate}")
        faster = Run(self.wiring.step.run.root, f"20260101-000000-{self.case.name}-0001")
        path = {"uri": made["path"].uri, "sha256": made["path"].sha256}
        faster.write_result({"status": "completed", "artifacts": {"path": path}})
        return self.predicted(f"prediction.along={faster.run_id}")

    @cached_property
    def scored(self) -> Scored:
        run, request = self.wiring.step.run, self.wiring.request
        loaded = self.wiring.model.open(run)
        heldout = read_table(run, self.wiring.tables["heldout"])
        return Scored(adapt(loaded, request.adapter, request.training.seed), heldout, self.wiring.sources.sae)


class Scored:
    """Held-out loss and, with an SAE, mean activations at the base weights plus a delta."""

    def __init__(self, adapted: Any, heldout: Any, sae: SaeHandle | None) -> None:
        self.adapted, self.table, self.sae = adapted, heldout, sae.open() if sae else None
        self.rows = RowsAtWeights(adapted, heldout, None, BATCH_TOKENS)
        self.base_loss = self.rows.loss({})

    @cached_property
    def base_features(self) -> Any:
        return self.features({})

    def features(self, delta: dict[str, Any]) -> Any:
        """[d_sae] mean activation on held-out label tokens."""
        from foretune.tasks.inspection.settings import DiffSettings

        assert self.sae is not None
        weights = {name: self.adapted.weights[name].data for name in delta}
        kept = {name: weight.clone() for name, weight in weights.items()}
        try:
            for name, change in delta.items():
                weights[name].add_(change.to(weights[name]))
            (found,) = sample_activations(self.adapted.loaded, [self.sae], self.table, DiffSettings())
        finally:
            for name, weight in kept.items():
                weights[name].copy_(weight)
        return found.sums.sum(0) / found.tokens.sum()

    def axes(self, delta: dict[str, Any], truth: Truth) -> dict[str, float]:
        """The figures of one method against the real run."""
        figures = {
            "cosine": cosine(delta, truth.delta),
            "norm_ratio": norm_ratio(delta, truth.delta),
            "share": share(self.base_loss, self.rows.loss(delta), self.real_loss(truth)),
            "module_spearman": module_spearman(delta, truth.delta),
        }
        if self.sae is not None:
            real = self.features(truth.delta) - self.base_features
            moved = self.features(delta) - self.base_features
            figures |= {"feature_pearson": pearson(moved, real), "feature_sign50": top_sign_accuracy(moved, real, 50)}
        return {name: round(float(value), 4) for name, value in figures.items()}

    def real_loss(self, truth: Truth) -> float:
        """Held-out loss at the trained weights, nats per label token."""
        return self.rows.loss(truth.delta)


def straight_step(case: Case, truth: Truth, request: Any) -> dict[str, Any]:
    """The real run's first step, as long as the learning rates of the whole run together."""
    training, rows = request.training, truth.record["rows"]
    rates = learning_rates(
        training.lr_scheduler_type, training.learning_rate, truth.record["steps"], training.warmup_steps(rows)
    )
    return {name: delta * (sum(rates) / rates[0]) for name, delta in truth.first_step.items()}


def measured(case: Case) -> list[dict[str, Any]]:
    """One row per method; nothing while the bank has no real run of the case."""
    truth = stored_run(case)
    if truth is None:
        return []
    with tempfile.TemporaryDirectory() as name:
        simulation = Simulation(case, Path(name))
        request, scored = simulation.wiring.request, simulation.scored
        losses = {
            "heldout_loss_base": round(scored.base_loss, 4),
            "heldout_loss_trained": round(scored.real_loss(truth), 4),
        }
        common = {"data": case.data, "regime": case.regime, "adapter": case.adapter_name, "seed": case.seed}
        real = {"gradient_samples_real": truth.record["rows"] * request.training.epochs}
        real |= {"seconds_real": truth.record["seconds"], "steps": truth.record["steps"]}
        rows = []

        def add(method: str, delta: dict[str, Any], **more: Any) -> None:
            rows.append({**common, "method": method, **more, **scored.axes(delta, truth), **real, **losses})
            print(rows[-1], flush=True)

        linear = case.regime == "short" and "method" not in case.adapter  # a full fine-tune leaves the base sooner
        for anchors in (1,) if linear else (1, "auto"):
            delta, summary, seconds = simulation.predicted(f"prediction.anchors={anchors}")
            if anchors == "auto" and summary["anchors"] == 1:
                continue  # the base gradients were trusted: this is the run that the first of the two asked for
            add("foretune", delta, anchors=summary["anchors"], asked=anchors, **told(summary, seconds))
        if not linear:
            delta, summary, seconds = simulation.predicted_along(FASTER)
            add(f"foretune along {FASTER:g} x the rate", delta, asked="auto", **told(summary, seconds))
        closed, summary, _ = simulation.predicted("prediction.rule=rayleigh", "prediction.anchors=1")
        add("closed form", closed, anchors=1, gradient_samples_used=summary["gradient_samples_used"])
        add("first step", straight_step(case, truth, request), anchors=1, gradient_samples_used=case_batch(request))
        again = stored_run(case, case.seed + RERUN)
        if again is not None:
            add("re-run", again.delta, gradient_samples_used=real["gradient_samples_real"])
    return rows


def told(summary: dict[str, Any], seconds: float) -> dict[str, Any]:
    """What a prediction says of itself."""
    return {
        "gradient_samples_used": summary["gradient_samples_used"],
        "seconds_simulated": round(seconds, 1),
        "horizon": summary["horizon"],
        "predicted_loss": round(summary["heldout_loss_predicted"], 4),
    }


def case_batch(request: Any) -> int:
    """Rows of one optimizer step."""
    return request.training.rows_per_step


def main() -> None:
    """Train what is missing, then measure every case, or those whose name holds a word."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="a part of a case's name")
    parser.add_argument("--stored", action="store_true", help="measure what the bank holds; train nothing")
    parser.add_argument("--name", default="prediction", help="of the file under results/")
    chosen = parser.parse_args()
    started, rows = environment(), []
    for case, order in [] if chosen.stored else list(missing()):
        train_case(case, order)
    for case in cases():
        if chosen.only in case.name:
            rows += [{**row, "date": started["date"]} for row in measured(case)]
            write_results(chosen.name, with_earlier(chosen.name, rows, SUBJECT), started)


if __name__ == "__main__":
    main()
