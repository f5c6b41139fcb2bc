"""What `import foretune` gives: the names, when they are imported, and what an opened run holds."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pandas
import pytest
import yaml
from safetensors.torch import load_file

import foretune
from foretune.runs import StoredRun
from foretune.storage.contents import Artifact
from foretune.storage.errors import BadInput
from foretune.storage.results import artifact_of
from foretune.storage.runs import Run

NAMES = {"Request", "TrainingEvents", "__version__", "open_run", "plan", "simulate"}
HEAVY = ("torch", "prefect", "pandas", "pyarrow", "transformers")


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | variables, timeout=60)


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", "foretune.flows.cli", *words, **variables)


def artifact(stored: StoredRun, name: str) -> Artifact:
    opened = Run(stored.root, stored.run_id)
    return opened.store.open(artifact_of(opened, name))


def test_the_public_names_are_these_and_each_says_what_it_is():
    assert set(foretune.__all__) == NAMES
    assert set(dir(foretune)) >= NAMES
    for name in NAMES - {"__version__"}:
        assert len(inspect.getdoc(getattr(foretune, name)) or "") > 40, name
    members = [name for name in vars(StoredRun) if not name.startswith("_")]
    assert all(inspect.getdoc(getattr(StoredRun, name)) for name in members if name not in ("root", "run_id"))
    with pytest.raises(AttributeError, match="open_run"):
        foretune.nothing  # noqa: B018


@pytest.mark.parametrize("statement", ["import foretune", "from foretune.runs import open_run"])
def test_importing_imports_nothing_heavy(statement: str):
    script = f"import sys\n{statement}\nprint([name for name in {HEAVY} if name in sys.modules])"
    assert run(sys.executable, "-c", script).stdout.strip() == "[]"


@pytest.mark.slow
def test_the_example_of_the_documentation_runs(request_folder: Path, stored: StoredRun, monkeypatch):
    monkeypatch.chdir(request_folder)
    done = doctest.testmod(foretune, optionflags=doctest.REPORT_NDIFF)
    assert done.attempted >= 5 and done.failed == 0


@pytest.mark.slow
def test_simulate_returns_what_the_command_line_finds(stored: StoredRun, request_folder: Path):
    assert stored.status == stored.result["status"] == "completed"
    assert foretune.open_run(stored.run_id, root=request_folder / "root") == stored
    assert foretune.open_run(stored.run_id[:15], root=str(request_folder / "root")) == stored
    listed = command("runs", "--root", stored.root, "--json").stdout.splitlines()[-1]
    assert stored.run_id in [row["run_id"] for row in json.loads(listed)["runs"]]
    assert command("report", stored.run_id, "--root", stored.root).stdout.strip() == stored.report
    assert Path(stored.report).read_text().startswith("<!")


@pytest.mark.slow
def test_a_request_its_mapping_and_its_file_ask_for_the_same(stored: StoredRun, request_folder: Path):
    file = request_folder / "request.yaml"
    planned = foretune.plan(stored.request)
    assert planned == foretune.plan(yaml.safe_load(file.read_text())) == foretune.plan(str(file))
    assert planned["run"] == 0 < planned["cached"]


@pytest.mark.slow
def test_tables_tensors_and_json_are_what_is_stored(stored: StoredRun):
    read = {".parquet": 0, ".safetensors": 0, ".json": 0}
    for name in stored.artifacts:
        opened = artifact(stored, name)
        assert stored.folder(name) == opened.folder()
        for file in opened.names():
            path = opened.folder() / file
            if file.endswith(".parquet"):
                pandas.testing.assert_frame_equal(stored.table(name, file), pandas.read_parquet(path))
            elif file.endswith(".safetensors"):
                given, expected = stored.tensors(name, file.removesuffix(".safetensors")), load_file(path)
                assert given.keys() == expected.keys()
                assert all(given[key].equal(expected[key]) for key in given)
            elif file.endswith(".json"):
                assert stored.json(name, file) == json.loads(path.read_bytes())
            read |= {path.suffix: read.get(path.suffix, 0) + 1}
    assert min(read.values()) > 0
    assert stored.table("influence").equals(stored.table("influence", "influence.parquet"))


@pytest.mark.slow
def test_the_checkpoint_and_the_events_are_the_runs(stored: StoredRun):
    assert any(stored.checkpoint.glob("*.safetensors"))
    events = stored.events()
    assert events[-1]["type"] == "run_finished"
    assert {event["run_id"] for event in events} == {stored.run_id}


@pytest.mark.slow
def test_an_unknown_name_is_one_line_that_says_what_there_is(stored: StoredRun):
    for ask, said in (
        (lambda: foretune.open_run("nobody", root=stored.root), stored.run_id),
        (lambda: stored.table("influences"), "influence"),
        (lambda: stored.table("influence", "nothing"), "influence.parquet"),
        (lambda: stored.tensors("influence"), "influence.parquet"),
        (lambda: foretune.simulate("nowhere.yaml"), "request nowhere.yaml"),
        (lambda: foretune.simulate({"dataset": {}}), "dataset.path is missing"),
    ):
        with pytest.raises(BadInput) as caught:
            ask()
        assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_without_a_result_says_so(tmp_path: Path):
    Run(str(tmp_path), "20260101-000000-cut-0000").write_request("{}")
    opened = foretune.open_run(root=tmp_path)
    assert opened.status == "unfinished"
    for ask in (lambda: opened.result, lambda: opened.artifacts, lambda: opened.report, lambda: opened.table("delta")):
        with pytest.raises(BadInput, match="unfinished"):
            ask()


def test_the_command_tells_its_version():
    assert command("--version").stdout.strip() == foretune.__version__ == version("foretune")


def test_the_command_alone_shows_its_help():
    alone = command()
    assert alone.returncode == 0 and alone.stderr == ""
    assert alone.stdout == command("--help").stdout
    assert "--version" in alone.stdout and "--install-completion" in alone.stdout and "simulate" in alone.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_completes_the_commands(shell: str):
    variables = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = command("--show-completion", shell, **variables)
    assert shown.returncode == 0 and "complete" in shown.stdout, shown.stderr
    named = next(part for part in shown.stdout.replace("=", " ").split() if part.endswith("_COMPLETE"))
    words = {"COMP_WORDS": "foretune sim", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": "foretune sim"}
    asked = command(**{named: f"complete_{shell}", **words, "_TYPER_COMPLETE_FISH_ACTION": "get-args"})
    assert "simulate" in asked.stdout
