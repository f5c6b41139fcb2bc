"""References: dense autograd and peft on the tiny model, worked out without foretune."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from tests.dag import Simulated

EXACT = ("landscape.gradient_dtype=float32", "sae=null", "dataset.preferences=null", "dataset.probes=null")


def rows_of(simulated: Simulated, role: str = "samples") -> list[dict[str, Any]]:
    return sorted(simulated.table(role, "samples"), key=lambda row: row["sample_id"])


def label_losses(model: Any, ids: list[int], mask: list[bool]) -> torch.Tensor:
    """[n] nats of the label tokens of one row, without padding or batch."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    losses = cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")
    return losses[torch.tensor(mask[1:])]


def adapted(model: Any) -> dict[str, torch.nn.Parameter]:
    named = dict(model.named_parameters())
    return {n: named[n].requires_grad_() for n in named if n.endswith(("q_proj.weight", "v_proj.weight"))}


def mean_gradient(model: Any, losses: Iterator[torch.Tensor]) -> dict[str, torch.Tensor]:
    weights = adapted(model)
    values = torch.cat(list(losses))
    return dict(zip(weights, torch.autograd.grad(values.mean(), list(weights.values())), strict=True))


def lora_start(reference: Any, r: int, alpha: int, seed: int) -> tuple[Any, dict[str, torch.Tensor]]:
    """peft's own model right after its initialisation, and {weight name: A [r, in]}."""
    import copy

    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=r, lora_alpha=alpha, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    model = get_peft_model(copy.deepcopy(reference), config)
    factors = {
        name.removeprefix("base_model.model.").replace("lora_A.default.", ""): p.detach()
        for name, p in model.named_parameters()
        if "lora_A" in name
    }
    return model, factors


def role_rows(done: Simulated, role: str) -> list[dict[str, Any]]:
    """Rows of a role that the result does not name."""
    for task, ref in done.step.steps:
        if task == "samples" and done.store.open(ref).manifest.inputs["role"] == role:
            return done.store.open(ref).arrow("samples.parquet").to_pylist()
    raise LookupError(role)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def moved(model: torch.nn.Module) -> None:
    """Move one weight in place, by less than any result would show."""
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1e-6
