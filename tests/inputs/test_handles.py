"""A handle takes a slot of a GPU when it opens a model, and only then."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from foretune.tasks.engine.keys import Fingerprint
from foretune.tasks.inputs.handles import ModelHandle
from foretune.tasks.loading import ModelSettings

pytestmark = pytest.mark.slow


def test_stored_work_does_not_wait_for_a_gpu_and_missing_work_does(prefect_server, simulated, tmp_path, monkeypatch):
    from prefect.client.orchestration import get_client
    from prefect.concurrency.sync import concurrency

    monkeypatch.setattr("foretune.tasks.inputs.handles.choose_device", lambda name: torch.device("cuda"))
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("gpu", 1)
    simulated()
    waited = threading.Event()

    def waiting(*names: str, **options: Any) -> Any:
        waited.set()
        raise TimeoutError("the slot is taken")

    with concurrency("gpu", occupy=1):  # another run has the GPU
        assert simulated().computed == []
        monkeypatch.setattr("foretune.tasks.inputs.handles.concurrency", waiting)
        with pytest.raises(TimeoutError, match="the slot is taken"):
            simulated("adapter.lora_alpha=8")
    assert waited.is_set()


@pytest.mark.parametrize(("device", "taken"), [("cpu", 0), ("cuda", 1)])
def test_only_a_model_on_a_gpu_takes_a_slot(prefect_server, monkeypatch, device, taken):
    from prefect.client.orchestration import get_client

    monkeypatch.setattr("foretune.tasks.inputs.handles.choose_device", lambda name: torch.device(device))
    handle = ModelHandle(source=Fingerprint(uri="m", digest="d"), settings=ModelSettings(name_or_path="m"))
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("gpu", 1)
        with handle.slot():
            assert client.read_global_concurrency_limit_by_name("gpu").active_slots == taken
        assert client.read_global_concurrency_limit_by_name("gpu").active_slots == 0
