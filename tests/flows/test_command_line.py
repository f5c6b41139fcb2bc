"""The `foretune` command as a user types it: exit codes, one line of error, nothing left behind."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_server")]

BINARY = Path(sys.executable).with_name("foretune")
COMMAND = [str(BINARY)] if BINARY.exists() else [sys.executable, "-m", "foretune.flows.cli"]


def foretune(*words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180"}
    return subprocess.run(
        [*COMMAND, *map(str, words)], capture_output=True, text=True, cwd=cwd, env=environment, timeout=400
    )


def changed(request: Path, **sections: dict) -> Path:
    content = yaml.safe_load(request.read_text())
    for section, values in sections.items():
        content[section] = {**content.get(section, {}), **values}
    path = request.with_name("changed.yaml")
    path.write_text(yaml.safe_dump(content))
    return path


def root_of(request: Path) -> Path:
    return request.parent / "root"


def assert_bad_input(done: subprocess.CompletedProcess[str], *fragments: str) -> None:
    # A pass that finds the fault has begun: what was done until then stands above the one line.
    lines = [line for line in done.stderr.strip().splitlines() if not re.match(r"\s*\d+ of \d+", line)]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    for fragment in fragments:
        assert fragment in lines[0]


def test_help_answers_in_under_a_second_of_a_processor():
    foretune("--help")  # compiled files and the disk's cache
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = foretune("--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0
    assert "simulate" in done.stdout
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.0


def test_simulate_prints_the_answer_and_json_then_runs_report_and_export_find_it(tiny_request, tmp_path, monkeypatch):
    monkeypatch.delenv("PREFECT_API_URL")  # with a server of its own, as the command comes
    root = root_of(tiny_request)
    done = foretune("simulate", tiny_request, "--json")
    assert done.returncode == 0, done.stderr
    assert "Should I train?" in done.stdout
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["status"] == "completed"

    planned = json.loads(foretune("plan", tiny_request, "--json").stdout.splitlines()[-1])
    assert planned["run"] == 0
    listed = json.loads(foretune("runs", "--root", root, "--json").stdout.splitlines()[-1])
    assert [run["run_id"] for run in listed["runs"]] == [result["run_id"]]
    said = foretune("report", "latest", "--root", root)
    assert Path(said.stdout.strip()).read_text().startswith("<!")
    exported = foretune("export", result["run_id"], tmp_path / "out", "--merged", "--root", root)
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "out" / "model.safetensors").exists()
    factors = foretune("export", "latest", tmp_path / "adapter", "--adapter", "--root", root)
    assert factors.returncode == 0, factors.stderr
    assert (tmp_path / "adapter" / "adapter_config.json").exists()
    again = foretune("export", result["run_id"], tmp_path / "out", "--root", root)
    assert_bad_input(again, "exists and is not an empty folder")


def test_a_plan_on_an_empty_root_names_every_task_and_stores_nothing(tiny_request):
    planned = json.loads(foretune("plan", tiny_request, "--json").stdout.splitlines()[-1])
    assert planned["cached"] == 0
    assert {"samples", "landscape_shard", "prediction", "report"} <= {task["task"] for task in planned["tasks"]}
    assert not root_of(tiny_request).exists()


@pytest.mark.parametrize(
    ("section", "values", "fragments"),
    [
        ("dataset", {"path": "missing.jsonl"}, ("missing.jsonl",)),
        ("dataset", {"pth": "x"}, ("unknown key dataset.pth", "dataset.path")),
        ("model", {"name_or_path": "./nowhere"}, ("nowhere",)),
        ("adapter", {"target_modules": ["q_prj"]}, ("q_prj", "q_proj")),
        ("sae", {"hook_name": "blocks.1.hook_resid_prae"}, ("hook_resid_prae", "hook_resid_pre")),
        ("sae", {"hook_name": "blocks.7.hook_resid_pre"}, ("2 layers", "blocks.1.hook_resid_pre")),
        ("training", {"learning_rate": -1}, ("training.learning_rate", "greater than 0")),
    ],
)
def test_a_wrong_setting_is_one_line_and_leaves_nothing(tiny_request, section, values, fragments):
    request = changed(tiny_request, **{section: values})
    assert_bad_input(foretune("simulate", request), *fragments)
    assert not list((root_of(request) / "runs").glob("*")) if (root_of(request) / "runs").exists() else True


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("", ("empty",)),
        ('{"prompt": "a", "completion": "b"}\n[1]\n', ("line 2", "a list")),
        ('{"prompt": "a", "completion": "b"}\n{"prompt": \n', ("line 2", "not JSON")),
        ('{"colour": "red"}\n', ("colour",)),
    ],
)
def test_a_wrong_dataset_is_one_line(tiny_request, tmp_path, text, fragments):
    path = tmp_path / "wrong.jsonl"
    path.write_text(text)
    assert_bad_input(foretune("simulate", changed(tiny_request, dataset={"path": str(path)})), *fragments)


def test_a_dataset_without_a_trained_token_is_one_line(tiny_request, tmp_path):
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "word " * 200, "completion": "end"}) + "\n")
    assert_bad_input(foretune("simulate", changed(tiny_request, dataset={"path": str(path)})), "trained token")


def test_a_model_folder_without_weights_and_one_with_nan_are_one_line(tiny_request, tiny_llama, tmp_path):
    from safetensors.torch import load_file, save_file

    bare, broken = tmp_path / "bare", tmp_path / "broken"
    for folder in (bare, broken):
        shutil.copytree(tiny_llama, folder)
    (bare / "model.safetensors").unlink()
    assert_bad_input(foretune("simulate", changed(tiny_request, model={"name_or_path": str(bare)})), "weights")
    tensors = load_file(broken / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    done = foretune("simulate", changed(tiny_request, model={"name_or_path": str(broken)}))
    assert_bad_input(done, "model.layers.0.mlp.up_proj.weight", "NaN")


def test_an_sae_of_another_width_is_one_line_with_both_numbers(tiny_request, tiny_sae, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "narrow"
    shutil.copytree(tiny_sae, folder)
    config = json.loads((folder / "cfg.json").read_text()) | {"d_in": 16}
    (folder / "cfg.json").write_text(json.dumps(config))
    tensors = load_file(folder / "sae_weights.safetensors")
    cut = {"W_enc": tensors["W_enc"][:16], "W_dec": tensors["W_dec"][:, :16], "b_dec": tensors["b_dec"][:16]}
    save_file({name: t.contiguous() for name, t in (tensors | cut).items()}, folder / "sae_weights.safetensors")
    done = foretune("simulate", changed(tiny_request, sae={"path": str(folder)}))
    assert_bad_input(done, "d_in is 16", "32")


def test_an_unknown_run_is_one_line_with_the_nearest(tiny_request):
    assert_bad_input(foretune("report", "nothing", "--root", root_of(tiny_request)), "no runs here")


def test_an_unknown_option_is_one_line():
    done = foretune("simulate", "request.yaml", "--quite")
    assert done.returncode == 2
    assert "--quite" in done.stderr
