"""A run without some of its rows, replayed: against the run's own prediction, and against a request without them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml

from foretune.flows.request import load_request
from foretune.tasks.inputs.adapted import adapt
from foretune.tasks.prediction.without_rows import WithoutRows
from tests.dag import called, run_dag

pytestmark = pytest.mark.slow

ALONE = ("sae=null", "dataset.preferences=null", "dataset.probes=null", "answers.rows=0", "behaviour.enabled=false")


def replays_of(path: Path, *overrides: str):
    """The simulated request, and its runs without rows."""
    request = load_request(str(path), list(overrides))
    done, wiring = run_dag(request), called(request)
    train = wiring.landscape("train")
    adapted = adapt(wiring.model.open(wiring.step.run), request.adapter, request.training.seed)
    replays = WithoutRows(
        wiring.step.run,
        train.blocks,
        done.made["path"],
        adapted,
        request.adapter,
        request.training,
        paired=False,
        max_relative_change=request.prediction.max_relative_change,
    )
    return done, replays


def apart(a, b):
    flat = [torch.cat([side[name].flatten().double() for name in a]) for side in (a, b)]
    return float((flat[0] - flat[1]).norm() / flat[1].norm())


def test_without_no_row_the_end_is_the_predicted_one(tiny_request):
    done, replays = replays_of(tiny_request, *ALONE)
    end = replays.ending(())
    assert end.steps == 10
    assert apart(end.delta, done.tensors("prediction", "delta")) < 1e-3


def test_without_rows_the_end_is_that_of_a_request_without_them(tiny_request):
    """To what the gradients along the path, and outside of A0's row space, know of the rows left out."""
    frozen = "prediction.anchors=1"
    done, replays = replays_of(tiny_request, *ALONE, frozen)
    rows = done.table("samples", "samples")
    gone = {row["sample_id"] for row in rows if row["row"] in (2, 7, 11)}
    end = replays.ending(gone)
    content = yaml.safe_load(tiny_request.read_text())
    dataset = Path(content["dataset"]["path"])
    kept = [line for n, line in enumerate(dataset.read_text().splitlines()) if n not in (2, 7, 11)]
    other = dataset.with_name("fewer.jsonl")
    other.write_text("".join(f"{line}\n" for line in kept))
    fewer = run_dag(tiny_request, *ALONE, frozen, f"dataset.path={json.dumps(str(other))}")
    wanted = fewer.tensors("prediction", "delta")
    assert end.steps == 8
    own = done.tensors("prediction", "delta")
    assert apart(end.delta, wanted) < 0.2 * apart(own, wanted)


def test_as_many_others_are_drawn(tiny_request):
    done, replays = replays_of(tiny_request, *ALONE)
    gone = [row["sample_id"] for row in done.table("samples", "samples")][:3]
    others = replays.others(gone, seed=1)
    assert len(others) == 3 and not set(others) & set(gone)
    assert replays.others(gone, seed=1) == others
    with pytest.raises(ValueError, match="no row is left"):
        replays.ending(replays.ids)
