"""What every run must satisfy, checked in the code and never switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class BrokenInvariant(RuntimeError):
    """A promise about the simulation itself does not hold; nothing that follows from it may be used."""


@contextlib.contextmanager
def no_optimizer_steps() -> Iterator[None]:
    """Inside the block, a `torch.optim` step of any optimizer raises: the simulation never trains."""
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


def weights_unchanged(before: str, after: str) -> None:
    """The base weights' digest must be the same after the last pass as before the first."""
    if before != after:
        raise BrokenInvariant(
            f"base weights changed during simulate: digest {before[:12]} before, {after[:12]} after; "
            "run again from a fresh process and report this"
        )
