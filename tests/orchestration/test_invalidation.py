"""The README's table "What re-runs when", line by line: change one thing, run again, count what was computed."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
import yaml

from foretune.flows.commands.plan import make_plan
from foretune.flows.request import load_request
from tests.dag import run_dag

pytestmark = pytest.mark.slow

SUITES, WATCHED = 3, 1  # of the tiny request
LEAVES, NODES = 4, 4  # shards of the 18 training rows, for a pass by itself and for the gradient field

BEHAVIOUR = {"behaviour": 1, "behaviour_path": 1, "concept_behaviour": 1, "cause_effects": 1, "report": 1}
LEFT_OUT = {"without_rows": 1, "path_scores": WATCHED, "cause_effects": 1, "report": 1}
CAUSES = {"causes": 1, **LEFT_OUT}
AFTER_PREDICTION = {
    "checkpoint": 1,
    "null_deltas": 1,
    "feature_scores": 1,
    "features": 1,
    "sae_nulls": 1,
    "sae_diff": 1,
    "concept_causes": 1,
    "concepts": 1,
    "feature_contexts": 1,
    "model_diff": 1,
    "residual_change": 1,
    "generations": 1,  # the predicted model alone: the base was asked
    "answers": 1,
    "circuits": 1,
    "concept_behaviour": 1,
    "suite_scores": SUITES,  # of the predicted model too
    "path_scores": SUITES + WATCHED,
    **BEHAVIOUR,
}
TRIED = {"concept_causes": 1, "concept_behaviour": 1}
ASKED_AGAIN = {"generations": 2, "answers": 1, "circuits": 1, "concept_behaviour": 1, "report": 1}
PREDICTION = {"path": 1, "variants": 1, "without_rows": 1, "prediction": 1, **AFTER_PREDICTION}
RANKED = {"influence": 1, **CAUSES}
SCORES = {"influence_directions": 1, "influence_shard": NODES, "influence_replays": 1, **RANKED}
REPLAYED = {"influence_replays": 1, **RANKED}
SCORED_AGAIN = {name: count for name, count in SCORES.items() if name != "influence_directions"}
INFLUENCE = {"influence_targets": 1, "influence_solve": 1, **SCORES}
INFLUENCE_ALONE = {name: count for name, count in INFLUENCE.items() if name not in CAUSES}
LANDSCAPES = {"landscape_shard": NODES + 1, "gradient": 2, "landscape": 2, "prompt_gain": 1}
ADAPTER = {"sharpness": 1, "curvature_samples": 1, "curvature": 1, **INFLUENCE, **PREDICTION}
OF_LORA = (
    "influence_replays",
    "curvature_samples",
    "variants",
    "path_scores",
    "behaviour_path",
    "suite_gradient",
    "causes",
    "without_rows",
    "cause_effects",
)
WITHOUT_ROWS = {name: count for name, count in ADAPTER.items() if name not in OF_LORA}
# Rows are kept in the coordinates of A0, which the rank and the seed draw.
START = {**LANDSCAPES, "preference": 1, **ADAPTER}

OTHER_STORAGE = {
    name: count
    for name, count in {**START, "suite_gradient": 1}.items()
    if name not in ("sharpness", "curvature_samples")  # they read no gradient of the landscape
}

SETTINGS = {
    "training.learning_rate=2e-3": {**RANKED, **PREDICTION},
    "training.epochs=3": {**REPLAYED, **PREDICTION},
    "training.lr_scheduler_type=cosine": {**REPLAYED, **PREDICTION},
    "training.warmup_ratio=0.2": {**REPLAYED, **PREDICTION},
    "training.batch_size=8": {**SCORES, **PREDICTION},
    "training.weight_decay=0.1": PREDICTION,
    "training.optimizer=sgd": {"influence_directions": 1, "influence_shard": NODES, **RANKED, **PREDICTION},
    "training.max_grad_norm=0.5": {"landscape": 2, "prompt_gain": 1, **REPLAYED, **PREDICTION},
    "training.dpo_beta=0.2": {"preference": 1, "report": 1},
    "training.seed=7": START,
    "adapter.r=4": START,
    "landscape.storage=factored": OTHER_STORAGE,
    "adapter.lora_alpha=8": ADAPTER,
    "adapter.target_modules=[q_proj, k_proj]": {**LANDSCAPES, **ADAPTER, "preference": 1, "suite_gradient": 1},
    "adapter.method=full": {**LANDSCAPES, **WITHOUT_ROWS, "preference": 1},
    "thresholds.dead_layer_norm=1e-3": {"landscape": 2, "prompt_gain": 1, "report": 1},
    "thresholds.spike_factor=2": {"landscape": 2, "prompt_gain": 1, "report": 1},
    "supervision.rows=3": {"supervision": 1, "report": 1},
    "quality.min_completion_words=4": {"quality_shard": LEAVES, "quality": 1, "report": 1},
    "prompt_gain.mismatch=3.0": {"prompt_gain": 1, "report": 1},
    "influence.neutral=0.5": RANKED,
    "influence.method=preconditioned": RANKED,
    "influence.watch=[]": {**INFLUENCE_ALONE, "report": 1},
    "influence.suite_items=2": {"suite_gradient": 1, **INFLUENCE},
    "influence.replays.runs=16": {**REPLAYED, "report": 1},
    "influence.solver.preset=seed": {**SCORED_AGAIN, "influence_solve": 1, "report": 1},
    "influence.solver.when=ranking": SCORED_AGAIN,
    "influence.target.rows=3": {**INFLUENCE, "report": 1},
    "influence.tokens_of=5": {"influence_tokens": 1, "report": 1},
    "prediction.sharp=5": {"prediction": 1, **AFTER_PREDICTION},
    "prediction.gradient_budget=0.4": PREDICTION,
    "checkpoint.max_shard_size=1GB": {
        name: count
        for name, count in AFTER_PREDICTION.items()
        if name not in ("feature_scores", "features", "sae_nulls", "null_deltas", "path_scores")
    },
    "behaviour.items=5": {  # fewer than influence.suite_items: the watched suite has another item too
        "suite_scores": 2 * SUITES,
        "suite_gradient": 1,
        **INFLUENCE,
        **BEHAVIOUR,
        "path_scores": SUITES + WATCHED,
    },
    "behaviour.answer_tokens=5": {"suite_scores": 2 * SUITES, "path_scores": SUITES + WATCHED, **BEHAVIOUR},
    "behaviour.path.items=2": {"path_scores": SUITES, "behaviour_path": 1, "report": 1},
    "behaviour.path.points=2": {"variants": 1, "path_scores": SUITES, "behaviour_path": 1, "report": 1},
    "behaviour.path.nulls=2": {"path_scores": SUITES, "behaviour_path": 1, "report": 1},
    "behaviour.suites=[refusal]": {"behaviour": 1, "behaviour_path": 1, "concept_behaviour": 1, "report": 1},
    "behaviour.confidence=0.9": BEHAVIOUR,
    "behaviour.enabled=false": {**INFLUENCE_ALONE, "concept_behaviour": 1, "report": 1},  # nothing is watched then
    "features.nulls.draws=4": {"sae_nulls": 1, "sae_diff": 1, "concepts": 1, **TRIED, "report": 1},
    "features.naming.clear=0.9": {"features": 1, "concepts": 1, "report": 1},
    "features.families.cosine=0.9": {"concepts": 1, "report": 1},
    "diff.nulls.deltas=4": {"null_deltas": 1, "model_diff": 1, "report": 1},
    "residual_change.directions=3": {"residual_change": 1, "report": 1},
    "diff.worst_tokens=5": {"model_diff": 1, "report": 1},
    "answers.rows=3": {"prompts": 1, **ASKED_AGAIN},
    "answers.max_new_tokens=8": ASKED_AGAIN,
    "answers.samples=1": ASKED_AGAIN,
    "concept_causes.features=2": {**TRIED, "report": 1},
    "concept_causes.items=4": {"concept_behaviour": 1, "report": 1},
    "circuits.points=3": {"circuits": 1, "report": 1},
    "report.top_rows=5": {"report": 1},
    "name=other": {"report": 1},
}

MAPPED = ("quality_shard", "baseline_shard", "landscape_shard", "prompt_gain_shard")

NO_RESULT = [
    "training.objective=sft",
    "landscape.row_gradients=512",
    "landscape.storage=full",
    "landscape.storage_rank=8",
    "adapter.lora_dropout=0.1",
    "baseline.batch_tokens=64",
    "landscape.batch_tokens=64",
    "landscape.graph_tokens=64",
    "influence.scoring.batch_tokens=64",
    "prompt_gain.batch_tokens=64",
    "prediction.batch_tokens=64",
    "prediction.along=latest",
    "diff.batch_tokens=64",
    "residual_change.batch_tokens=64",
    "behaviour.batch_tokens=64",
    "answers.batch_tokens=64",
    "answers.temperature=2",
    "circuits.batch_tokens=64",
    "concept_causes.batch_tokens=64",
    "answers.seed=3",
    "model.device=cpu",
    "runtime.max_workers=1",
]


def executed(request: Path, *overrides: str) -> dict[str, int]:
    """Tasks that a run computes, with how often; the plan must have said the same."""
    planned = make_plan(load_request(str(request), list(overrides)))
    step, _ = run_dag(request, *overrides)
    counts = Counter(step.computed)
    assert Counter(task["task"] for task in planned["tasks"] if task["state"] == "run") == counts
    return dict(counts)


def read_lines(request: Path, name: str) -> list[str]:
    return (request.parent / name).read_text().splitlines(keepends=True)


def write_lines(request: Path, name: str, lines: list[str]) -> None:
    (request.parent / name).write_text("".join(lines))


def test_nothing_runs_when_nothing_changed(warm_request):
    assert executed(warm_request) == {}


@pytest.mark.parametrize("override", SETTINGS)
def test_a_setting_runs_what_reads_it_and_what_follows(warm_request, override):
    assert executed(warm_request, override) == SETTINGS[override]


def test_settings_that_change_no_result_run_nothing(warm_request):
    assert executed(warm_request, *NO_RESULT) == {}


def test_sae_labels_run_the_naming_and_the_report(warm_request):
    labels = warm_request.parent / "labels.json"
    labels.write_text(json.dumps({"0": "rivers", "1": "pumps"}))
    assert executed(warm_request, f"sae.labels={labels}") == {"features": 1, "concepts": 1, "report": 1}


def test_another_sae_leaves_gradients_influence_and_prediction(warm_request, tiny_sae):
    from safetensors.torch import load_file, save_file

    folder = warm_request.parent / "sae"
    shutil.copytree(tiny_sae, folder)
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({**tensors, "b_dec": tensors["b_dec"] + 0.1}, folder / "sae_weights.safetensors")
    assert executed(warm_request, f"sae.path={folder}") == {
        "baseline_shard": LEAVES,
        "baseline": 1,
        "feature_scores": 1,
        "features": 1,
        "preference": 1,
        "firings": 1,
        "feature_contexts": 1,
        "sae_base": 1,
        "sae_nulls": 1,
        "sae_diff": 1,
        "concept_causes": 1,
        "concept_behaviour": 1,
        "concepts": 1,
        "report": 1,
    }


def test_another_held_out_set_leaves_the_training_landscape_and_the_curvature(warm_request):
    write_lines(warm_request, "heldout.jsonl", read_lines(warm_request, "heldout.jsonl")[:-1])
    assert executed(warm_request) == {
        "samples": 1,
        "leaks": 1,
        "landscape_shard": 1,
        "gradient": 1,
        "landscape": 1,
        "sae_base": 1,
        "firings": 1,
        **INFLUENCE,
        **PREDICTION,
        "prompts": 1,
        "generations": 2,
    }


def test_dropped_rows_run_their_shards_and_the_reductions(warm_request):
    rows = read_lines(warm_request, "train.jsonl")
    write_lines(warm_request, "train.jsonl", rows[:4] + rows[5:9] + rows[10:14] + rows[15:])
    counts = executed(warm_request)
    touched = {name: counts.pop(name, 0) for name in MAPPED}
    assert all(1 <= count <= 3 for count in touched.values())
    assert touched["landscape_shard"] < LEAVES
    shards_now = counts.pop("influence_shard")
    assert shards_now <= LEAVES  # the direction that every row is scored along is made from all rows
    # Only where a row of the curvature sample is gone.
    assert counts.pop("influence_solve", 0) == counts.pop("sharpness", 0) == counts.pop("curvature_samples", 0) <= 1
    assert counts == {
        "samples": 1,
        "supervision": 1,
        "quality": 1,
        "leaks": 1,
        "baseline": 1,
        "gradient": 1,
        "landscape": 1,
        "prompt_gain": 1,
        "curvature": 1,
        "influence_directions": 1,
        "influence_replays": 1,
        **RANKED,
        "preference": 1,
        "firings": 1,
        **PREDICTION,
    }


def test_the_order_of_the_rows_runs_only_what_prints_row_numbers(warm_request):
    write_lines(warm_request, "train.jsonl", read_lines(warm_request, "train.jsonl")[::-1])
    assert executed(warm_request) == {
        "samples": 1,
        "supervision": 1,
        "quality": 1,
        "leaks": 1,
        "landscape": 1,
        "prompt_gain": 1,
        **RANKED,  # nobody is asked again where no row stands out
        "report": 1,
    }


def test_other_pairs_and_probes_run_what_reads_them(warm_request):
    for name in ("preferences.jsonl", "probes.jsonl"):
        write_lines(warm_request, name, read_lines(warm_request, name)[:-1])
    assert executed(warm_request) == {
        "samples": 2,
        "preference": 1,
        "model_diff": 1,
        "prompts": 1,  # the same ones: no model is asked again
        "answers": 1,
        "circuits": 1,
        "concept_behaviour": 1,
        "report": 1,
    }


def test_other_shards_run_every_pass_that_maps_over_them(warm_request):
    counts = executed(warm_request, "shards.max_rows=18")
    assert counts["quality_shard"] == counts["baseline_shard"] == counts["influence_shard"] == 1
    assert counts["landscape_shard"] == 1  # the held-out rows were one shard before


def test_a_moved_root_and_renamed_files_run_nothing(warm_request, tmp_path):
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("heldout.jsonl", "preferences.jsonl", "probes.jsonl", "root"):
        (warm_request.parent / name).rename(moved / name)
    (warm_request.parent / "train.jsonl").rename(moved / "train.jsonl")
    text = warm_request.read_text().replace(str(warm_request.parent), str(moved))
    (moved / "request.yaml").write_text(text)
    assert yaml.safe_load(text)["runtime"]["root"] == str(moved / "root")
    assert executed(moved / "request.yaml") == {}
