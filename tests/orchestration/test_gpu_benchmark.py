"""The GPU benchmark's script in its tiny size, from its command line to its rows: here without a GPU."""

from __future__ import annotations

import json
import sys

import pytest

from tests.benchmarks import gpu

pytestmark = pytest.mark.slow


def test_it_trains_simulates_and_compares(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--size", "tiny", "--out", str(out)])
    gpu.main()
    written = json.loads(out.read_text())
    assert written["environment"]["device"]
    (row,) = written["rows"]
    assert json.loads(capsys.readouterr().out) == row
    assert (row["rows"], row["epochs"], row["budget"]) == (24, 3, None)
    assert row["cosine"] > 0.99 and row["share"] == pytest.approx(1, abs=0.02)
    assert row["cpu_seconds_real"] > 0 and row["cpu_seconds_simulated"] > 0
    assert row["peak_mb"] > 0 and row["peak_mb_training_step"] > 0 and row["bytes"] > 0


def test_nothing_is_started_that_would_end_too_late(tmp_path, monkeypatch, capsys):
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu", "--size", "tiny", "--seconds", "0", "--out", str(out)])
    gpu.main()
    assert "left out" in capsys.readouterr().out and not out.exists()


def test_rows_are_the_demos_each_pair_once():
    rows = gpu.recombined(500)
    assert len({(row["prompt"], row["completion"]) for row in rows}) == 500
    assert rows[:20] == gpu.recombined(20)
