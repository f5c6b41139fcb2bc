"""The promises of every run, each broken on purpose: the run must fail loudly, never rank or write on."""

from __future__ import annotations

import pytest
import torch

from foretune.flows.commands.listing import list_rows
from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import BrokenInvariant, no_optimizer_steps
from foretune.tasks.inputs.handles import ModelHandle
from tests.dense import moved
from tests.lean import LEAN

pytestmark = pytest.mark.slow


def run_with(request, *overrides: str) -> dict:
    return simulate(load_request(str(request), list(overrides)), run_id="broken")


def test_no_optimizer_may_step_during_a_simulation():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    weight.grad = torch.ones(2)
    with pytest.raises(BrokenInvariant, match="SGD.step was called during simulate"), no_optimizer_steps():
        optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(2))
    optimizer.step()  # outside the block it may


def test_a_weight_that_moves_during_a_run_fails_it_and_deletes_what_it_computed(
    prefect_server, tiny_request, monkeypatch
):
    opened = ModelHandle.open

    def disturbed(handle: ModelHandle, run: Run):
        loaded = opened(handle, run)
        moved(loaded.model)
        return loaded

    monkeypatch.setattr(ModelHandle, "open", disturbed)
    with pytest.raises(BrokenInvariant, match="base weights changed during simulate"):
        run_with(tiny_request, *LEAN)
    run = Run(load_request(str(tiny_request)).runtime.root, "broken")
    assert list_rows(run.root) == [{"run_id": "broken", "status": "failed"}]
    assert list(run.store.iterate()) == []
    monkeypatch.undo()
    result = simulate(load_request(str(tiny_request), list(LEAN)), run_id="after")
    assert result["tasks"]["cached"] == 0 and all(result["invariants"].values())


def test_a_model_whose_layers_wait_on_disk_is_simulated_by_the_flow(
    prefect_server, tiny_request, tmp_path, monkeypatch
):
    """The weights that a fine-tune moves are fetched for good: other places, the same values."""
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path / "cache"))
    result = run_with(tiny_request, "model.device_map=auto", "model.cpu_memory_gb=8e-5")
    assert all(result["invariants"].values())


def test_a_diverging_solve_ends_the_run_and_ranks_nothing(prefect_server, tiny_request):
    with pytest.raises(BrokenInvariant, match="solve diverged, residual .* raise it above"):
        run_with(tiny_request, *LEAN, "influence.solver={when: always, scale: 1e-3}")
    request = load_request(str(tiny_request))
    run = Run(request.runtime.root, "broken")
    assert list_rows(run.root) == [{"run_id": "broken", "status": "failed"}]
    assert not [stored for stored in run.store.iterate() if stored.task == "influence"]


def test_a_large_learning_rate_is_clipped_and_says_so(prefect_server, warm_request):
    result = run_with(warm_request, "training.learning_rate=1.0", "prediction.max_relative_change=0.01")
    assert "delta_clipped" in {signal["name"] for signal in result["signals"]}
    assert result["summary"]["answer"] == "Not yet"
