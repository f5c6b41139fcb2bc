"""Tasks of lm-evaluation-harness as suites: found without the library, asked through it, without a hub."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from foretune.storage.errors import BadInput
from foretune.tasks.behaviour.harness_tasks import harness_suites
from foretune.tasks.behaviour.settings import BehaviourSettings

SUBJECTS = ("red lamp", "blue lamp", "north gate", "south gate", "old pump", "new pump", "left valve", "right valve")
TASK = {
    "task": "Plant.parts",
    "dataset_path": "json",
    "test_split": "test",
    "output_type": "multiple_choice",
    "doc_to_text": "Where is the {{subject}}?",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "metric_list": [{"metric": "acc", "higher_is_better": True}, {"metric": "acc_norm", "higher_is_better": True}],
}


@pytest.fixture
def harness(tmp_path, monkeypatch):
    """The library, with a cache of data sets of the test's own."""
    pytest.importorskip("lm_eval")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


def written(folder: Path, **changes) -> Path:
    """The YAML of eight items, and their file."""
    rows = [
        {"subject": subject, "choices": ["By the river.", "In the hall", "Nobody knows that."], "gold": n % 3}
        for n, subject in enumerate(SUBJECTS)
    ]
    data = folder / "parts.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "parts.yaml"
    file.write_text(yaml.safe_dump({**TASK, "dataset_kwargs": {"data_files": {"test": str(data)}}, **changes}))
    return file


def suites(*tasks, **settings):
    return harness_suites(BehaviourSettings.model_validate({"lm_eval": list(tasks), "suites": [], **settings}))


def test_without_the_library_one_line_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(BadInput, match=r"^behaviour.lm_eval: lm-evaluation-harness is not installed; pip install"):
        suites(str(written(tmp_path)))
    assert suites() == []


@pytest.mark.optional
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset_kwargs": {"data_files": "gone.jsonl"}}, "its data file gone.jsonl is not there"),
        ({"group": "parts", "task": ["a", "b"]}, "is no single task; name those that it is made of: a, b"),
        ({"class": "some.Task"}, "is written in Python"),
        ({"output_type": "loglikelihood_rolling"}, "a suite with scorer loss"),
        ({"include": "gone.yaml"}, "includes gone.yaml, which is not there"),
        ({"include": "parts.yaml"}, "in a circle"),
    ],
)
def test_a_task_that_cannot_be_a_suite_is_refused_in_a_line(harness, tmp_path, changes, said):
    with pytest.raises(BadInput, match=said) as refused:
        suites(str(written(tmp_path, **changes)))
    assert "\n" not in str(refused.value)


@pytest.mark.optional
def test_names_metrics_and_items_are_checked_before_anything_is_asked(harness, tmp_path):
    path = str(written(tmp_path))
    ((suite, task),) = suites(path, items=5)
    assert (suite.name, suite.direction, suite.unit) == ("plant_parts", "higher", "share right")
    assert (task.metric, task.limit) == ("acc_norm", 5)
    assert suites({"task": path, "metric": "acc", "limit": 3})[0][1].limit == 3
    for wrong, said in (
        ({"task": path, "metric": "f1"}, "has no metric f1; it has acc, acc_norm"),
        ("gone.yaml", "no such file"),
        ("../arc", "is no name of a task"),
        ({"task": path, "name": "A b"}, "a name has small letters"),
    ):
        with pytest.raises(BadInput, match=said):
            suites(wrong)
    with pytest.raises(BadInput, match="plant_parts is named twice"):
        suites(path, path)


@pytest.mark.optional
def test_a_task_stands_in_keys_by_what_its_files_say_not_by_where_they_lie(harness, tmp_path):
    def identity(path):
        return suites(str(path))[0][1].identity()

    (tmp_path / "utils.py").write_text("def docs(rows):\n    return rows\n")
    base = {name: value for name, value in TASK.items() if name != "task"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base) + "process_docs: !function utils.docs\n")
    data = {"data_files": str(written(tmp_path).with_suffix(".jsonl"))}
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump({"task": "own", "include": "base.yaml", "dataset_kwargs": data}))
    before = identity(own)
    other = tmp_path / "other"
    other.mkdir()
    for name in ("own.yaml", "base.yaml", "utils.py"):
        (other / name).write_bytes((tmp_path / name).read_bytes())
    assert identity(other / "own.yaml") == before
    for name in ("base.yaml", "utils.py", "parts.jsonl"):
        kept = (tmp_path / name).read_text()
        (tmp_path / name).write_text(kept + "\n")
        assert identity(own) != before, name
        (tmp_path / name).write_text(kept)
    assert identity(own) == before


@pytest.mark.optional
def test_items_are_scored_as_the_library_scores_the_folder(harness, tmp_path, tiny_llama):
    """Against its own evaluation of the same folder, opened by itself."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from foretune.tasks.behaviour.harness import harness_rows
    from foretune.tasks.loading import ModelSettings, load_model

    path = str(written(tmp_path))
    ((_, task),) = suites(path)
    loaded = load_model(tiny_llama, ModelSettings(name_or_path=str(tiny_llama)))
    rows = harness_rows(loaded, tiny_llama, task, 8, 2048)
    wanted = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tiny_llama), "dtype": "float32"},
        tasks=[path],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
        log_samples=True,
    )
    assert wanted is not None
    theirs = wanted["samples"]["Plant.parts"]
    assert [row["score"] for row in rows] == [each["acc_norm"] for each in theirs]
    for row, each in zip(rows, theirs, strict=True):
        assert row["log_likelihoods"] == pytest.approx([resp[0][0] for resp in each["resps"]], abs=1e-4)
    assert len({row["digest"] for row in rows}) == 8
    assert rows[0]["question"] == "Where is the red lamp?"


@pytest.mark.optional
def test_answers_are_matched_by_the_library(harness, tmp_path, tiny_llama):
    from foretune.tasks.behaviour.harness import harness_rows
    from foretune.tasks.loading import ModelSettings, load_model

    said = {"output_type": "generate_until", "doc_to_target": "{{choices[gold]}}", "doc_to_choice": None}
    own = {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4, "do_sample": False}, "metric_list": None}
    path = written(tmp_path, **said, **own)
    ((_, task),) = suites(str(path))
    assert task.metric == "exact_match"
    loaded = load_model(tiny_llama, ModelSettings(name_or_path=str(tiny_llama)))
    rows = harness_rows(loaded, tiny_llama, task, 3, 2048)
    assert [row["score"] for row in rows] == [0.0, 0.0, 0.0]
    assert all(row["answer"] is not None and row["scorer"] == "match" for row in rows)


@pytest.mark.optional
def test_a_task_of_the_hub_without_a_network_says_what_it_could_not_fetch(harness, tmp_path, tiny_llama):
    from foretune.tasks.behaviour.harness import harness_rows
    from foretune.tasks.loading import ModelSettings, load_model

    ((suite, task),) = suites("arc_easy")
    assert (suite.name, task.metric) == ("arc_easy", "acc_norm")
    loaded = load_model(tiny_llama, ModelSettings(name_or_path=str(tiny_llama)))
    with pytest.raises(BadInput, match=r"task arc_easy: its data set allenai/ai2_arc/ARC-Easy could not be fetched"):
        harness_rows(loaded, tiny_llama, task, 4, 2048)


@pytest.mark.optional
def test_a_run_compares_both_models_on_it_and_computes_it_once(harness, simulated, tmp_path):
    path = written(tmp_path)
    own = f"behaviour.lm_eval=[{path}]"
    done = simulated(own, "behaviour.items=8", "behaviour.suites=[arithmetic]")
    told = {suite["suite"]: suite for suite in done.summary("behaviour")["suites"]}
    along = {suite["suite"]: suite for suite in done.summary("behaviour_path")["suites"]}
    assert told["plant_parts"]["n"] == 8 and told["plant_parts"]["low"] <= told["plant_parts"]["change"]
    assert along["plant_parts"]["n"] == 8 and along["plant_parts"]["band"] is not None
    assert {"harness_scores", "harness_path_scores"} <= set(done.step.computed)
    items = [row for row in done.table("behaviour", "items") if row["suite"] == "plant_parts"]
    assert {row["item"] for row in items} == {f"Plant.parts-{n}" for n in range(8)}
    again = simulated(own, "behaviour.items=8", "behaviour.suites=[arithmetic]")
    assert not again.step.computed
    path.write_text(path.read_text() + "\n# another file\n")
    changed = simulated(own, "behaviour.items=8", "behaviour.suites=[arithmetic]")
    assert changed.step.computed.count("harness_scores") == 2 and "suite_scores" not in changed.step.computed
