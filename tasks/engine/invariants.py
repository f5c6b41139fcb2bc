"""What every run must satisfy, checked in the code and never switched off."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

NO_TRAINING_LOOP = "no_training_loop"
BASE_WEIGHTS_UNCHANGED = "base_weights_unchanged"
LISSA_WITHIN_BUDGET = "lissa_within_budget"
DELTA_FINITE_AND_CLIPPED = "delta_finite_and_clipped"
CHECKPOINT_VERIFIED = "checkpoint_verified"

INVARIANTS = (
    NO_TRAINING_LOOP,
    BASE_WEIGHTS_UNCHANGED,
    LISSA_WITHIN_BUDGET,
    DELTA_FINITE_AND_CLIPPED,
    CHECKPOINT_VERIFIED,
)


class BrokenInvariant(RuntimeError):
    """A promise about the simulation itself does not hold; nothing that follows from it may be used."""


_first_import = threading.Lock()
"""Two threads that first enter torch through different modules of it see each other's half made."""


@contextlib.contextmanager
def no_optimizer_steps() -> Iterator[bool]:
    """Inside the block, a `torch.optim` step of any optimizer raises: the simulation never trains. Yields True: it
    watches."""
    with _first_import:
        from torch.optim.optimizer import register_optimizer_step_pre_hook

    def refuse(optimizer: object, args: object, kwargs: object) -> None:
        raise BrokenInvariant(
            f"no training loop: {type(optimizer).__name__}.step was called during simulate; "
            "the simulation must not step a parameter"
        )

    handle = register_optimizer_step_pre_hook(refuse)
    try:
        yield True
    finally:
        handle.remove()
