"""The promises of every run, each broken on purpose: the run must fail loudly, never rank or write on."""

from __future__ import annotations

import pytest
import torch

from foretune.flows.commands.listing import list_rows
from foretune.flows.request import load_request
from foretune.flows.simulate import simulate
from foretune.storage.runs import Run
from foretune.tasks.engine.invariants import BrokenInvariant, no_optimizer_steps
from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.inputs.handles import ModelHandle
from foretune.tasks.loading import ModelSettings
from foretune.tasks.loading.witnesses import unwatch, watch, weights_digest, weights_unchanged, witness
from foretune.tasks.numerics.bounds import bounded

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


def moved(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6


@pytest.fixture
def during():
    run = Run("root", "during")
    watch(run)
    yield run
    unwatch(run)


def test_a_changed_base_weight_is_noticed(during):
    model = torch.nn.Linear(3, 3)
    assert witness(during, model, weights_digest(model))
    weights_unchanged(during)
    moved(model)
    weights_unchanged(Run("root", "another"))
    with pytest.raises(BrokenInvariant, match="base weights changed during simulate"):
        weights_unchanged(during)


def test_a_model_that_moved_before_the_run_is_read_again(during, tiny_llama):
    handle = ModelHandle(
        source=Fingerprint(uri=str(tiny_llama), digest=""), settings=ModelSettings(name_or_path=str(tiny_llama))
    )
    before = handle.open(Run("root", "before"))
    moved(before.model)
    again = handle.open(during)
    assert weights_digest(again.model) == again.digest == before.digest != weights_digest(before.model)
    weights_unchanged(during)


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
        run_with(tiny_request)
    run = Run(load_request(str(tiny_request)).runtime.root, "broken")
    assert list_rows(run.root) == [{"run_id": "broken", "status": "failed"}]
    assert list(run.store.iterate()) == []
    monkeypatch.undo()
    result = simulate(load_request(str(tiny_request)), run_id="after")
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
        run_with(tiny_request, "influence.solver.scale=1e-3")
    request = load_request(str(tiny_request))
    run = Run(request.runtime.root, "broken")
    assert list_rows(run.root) == [{"run_id": "broken", "status": "failed"}]
    assert not [stored for stored in run.store.iterate() if stored.task == "influence"]


def test_a_delta_that_is_not_finite_is_never_applied():
    with pytest.raises(ValueError, match=r"the predicted delta of w is not finite: lower learning_rate"):
        bounded({"w": torch.tensor([[float("inf")]])}, {"w": torch.ones(1, 1)}, 0.25)


def test_a_delta_is_clipped_to_its_share_of_the_weight():
    applied = bounded({"w": torch.full((2, 2), 3.0)}, {"w": torch.ones(2, 2)}, 0.25)
    assert applied.clipped == ("w",)
    assert float(applied.delta["w"].norm()) == pytest.approx(0.25 * 2.0)


def test_a_large_learning_rate_is_clipped_and_says_so(prefect_server, tiny_request):
    result = run_with(tiny_request, "training.learning_rate=1.0", "prediction.max_relative_change=0.01")
    assert "delta_clipped" in {signal["name"] for signal in result["signals"]}
    assert result["summary"]["answer"] == "Not yet"


def test_a_checkpoint_that_lost_a_tensor_is_refused(tiny_llama, tmp_path):
    import shutil

    from safetensors.torch import load_file, save_file

    from foretune.tasks.loading import verify_checkpoint

    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_llama, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.norm.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Exception, match="model.norm.weight"):
        verify_checkpoint(folder, tiny_llama)
