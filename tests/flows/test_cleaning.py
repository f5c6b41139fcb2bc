"""The whole loop on planted noise: simulate, drop what ranks worst, simulate again, compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from foretune.flows.commands.cleaned_rows import cleaned_rows, write_rows
from foretune.flows.compare import compare_runs
from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.errors import BadInput
from foretune.storage.runs import resolve_run

pytestmark = pytest.mark.slow

NOISE = ["zq9 #!7 ~~ kx", "0x7f 0x3c ;; 0x11", "^^^ %% @@ qq ^^^", "@@@ 88 || zz 88"]


@pytest.fixture
def noisy_request(tiny_request: Path, tiny_rows: list[dict[str, str]]) -> Path:
    """Every fourth row held out; four of the training rows answer with noise."""
    dataset = yaml.safe_load(tiny_request.read_text())["dataset"]
    train = [row for number, row in enumerate(tiny_rows) if number % 4]
    train = [row | {"output": NOISE[n // 4]} if n % 4 == 0 and n < 16 else row for n, row in enumerate(train)]
    for path, rows in ((dataset["path"], train), (dataset["heldout"]["path"], tiny_rows[::4])):
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tiny_request


def test_dropping_the_worst_rows_drops_the_noise_and_lowers_the_predicted_loss(prefect_server, noisy_request, tmp_path):
    overrides = [
        "training.epochs=4",
        "training.learning_rate=1e-2",
        "training.batch_size=2",
        "dataset.preferences=null",
        "dataset.probes=null",
        "sae=null",
    ]
    request = load_request(str(noisy_request), overrides)
    before = simulate(request)
    root = request.runtime.root
    cleaned = cleaned_rows(resolve_run(root, before["run_id"]), len(NOISE), [])
    assert len({row["row"] for row in cleaned["dropped"]} & {0, 4, 8, 12}) >= 3  # of the four that were planted
    named = cleaned_rows(resolve_run(root, before["run_id"]), 0, [], [9, 3])
    assert [row["row"] for row in named["dropped"]] == [3, 9] and len(named["kept"]) == 16
    with pytest.raises(BadInput, match="--drop-rows 900: run .* has no such training row"):
        cleaned_rows(resolve_run(root, before["run_id"]), 0, [], [3, 900])
    write_rows(cleaned["kept"], str(tmp_path / "clean.jsonl"))
    as_long = "training.epochs=5.14"  # as many steps over fewer rows
    after = simulate(
        load_request(str(noisy_request), [*overrides, as_long, f"dataset.path={tmp_path / 'clean.jsonl'}"])
    )
    assert after["summary"]["heldout_loss_evaluated"] < before["summary"]["heldout_loss_evaluated"]
    compared = compare_runs(*(resolve_run(root, result["run_id"]) for result in (before, after)))
    assert len(compared["samples"]["removed"]) == len(NOISE)
    assert compared["samples"]["added"] == []
