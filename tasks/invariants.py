"""What every run must satisfy, checked in the code and never switched off."""

from __future__ import annotations

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


class BrokenInvariant(RuntimeError):
    """A promise about the simulation itself does not hold; nothing that follows from it may be used."""


_first_import = threading.Lock()
"""Two threads that first enter torch through different modules of it see each other's half made."""


@contextlib.contextmanager
def no_optimizer_steps() -> Iterator[None]:
    """Inside the block, a `torch.optim` step of any optimizer raises: the simulation never trains."""
    with _first_import:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

    def refuse(optimizer: object, args: object, kwargs: object) -> None:
        raise BrokenInvariant(
            f"no training loop: {type(optimizer).__name__}.step was called during simulate; "
            "the simulation must not step a parameter"
        )

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True)
class Witness:
    """A model as it was when it was opened."""

    model: Any
    digest: str


_witnesses: dict[int, Witness] = {}
_lock = threading.Lock()


def witness(model: Any) -> None:
    """Remember the digest of a model's weights; modules that share their tensors are one model."""
    first = next(model.parameters()).data_ptr()
    with _lock:
        if first not in _witnesses:
            _witnesses[first] = Witness(model, weights_digest(model))


def weights_unchanged(forget: bool = True) -> None:
    """Every model opened since the last call holds the weights it was opened with. Raises BrokenInvariant.

    With `forget` off the next call compares with the same beginning.
    """
    with _lock:
        held = list(_witnesses.values())
        if forget:
            _witnesses.clear()
    for each in held:
        after = weights_digest(each.model)
        if after != each.digest:
            raise BrokenInvariant(
                f"base weights changed during simulate: digest {each.digest[:12]} before, {after[:12]} after; "
                "nothing of this run may be trusted, run it again in a new process"
            )


def weights_digest(model: Any) -> str:
    """sha256 over the names and bytes of all parameters, 64 hex digits."""
    import torch

    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        if not parameter.is_meta:
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
