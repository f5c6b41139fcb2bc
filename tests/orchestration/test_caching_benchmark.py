"""The caching benchmark on the tiny model: the rows that it writes, without its clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benchmarks import caching, environment

pytestmark = pytest.mark.slow


def write_questions(folder: Path, monkeypatch) -> None:
    rows = [{"question": f"How much is {n} and {n}?", "answer": f"It is {2 * n}."} for n in range(70)]
    (folder / "gsm8k_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(caching, "DATA", str(folder))


def test_an_identical_run_computes_and_stores_nothing(prefect_server, tmp_path, tiny_llama, tiny_sae, monkeypatch):
    write_questions(tmp_path, monkeypatch)
    request = caching.write_request(tmp_path, str(tmp_path / "root"), 12, str(tiny_llama), str(tiny_sae))
    cold, identical = (caching.simulated(str(request), caching.scenarios(tmp_path)[n]) for n in ("cold", "identical"))
    assert cold["tasks_run"] == identical["tasks_cached"] > 20
    assert cold["tasks_cached"] == identical["tasks_run"] == identical["bytes_written"] == 0
    artifacts = (tmp_path / "root" / "artifacts").rglob("*")
    sizes = [file.stat().st_size for file in artifacts if file.is_file() and file.name != "manifest.json"]
    assert cold["bytes_written"] == sum(sizes)
    assert 0 < identical["bytes_read"] < cold["bytes_read"]


def test_the_changed_files_differ_as_the_scenarios_say(tmp_path, tiny_llama, monkeypatch):
    write_questions(tmp_path, monkeypatch)
    caching.write_request(tmp_path, str(tmp_path / "root"), 12, str(tiny_llama), None)
    rows = {
        name: (tmp_path / f"{name}.jsonl").read_text().splitlines() for name in ("train", "dropped", "heldout", "other")
    }
    assert len(rows["train"]) == 12
    assert set(rows["dropped"]) < set(rows["train"])
    assert len(rows["dropped"]) == 9
    assert not {*rows["heldout"]} & {*rows["other"], *rows["train"]}


def test_results_are_stored_with_their_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "RESULTS", tmp_path)
    path = environment.write_results("try", [{"scenario": "cold", "seconds": 1.0}])
    stored = json.loads(path.read_text())
    assert stored["rows"] == [{"scenario": "cold", "seconds": 1.0}]
    assert {"cpu", "cores", "versions", "commit", "date"} <= set(stored["environment"])
