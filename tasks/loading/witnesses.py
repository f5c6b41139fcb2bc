"""The models that a run has opened, and the digest of their weights: what was read must still be there at the end."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from foretune.storage.checks import Check, checked
from foretune.tasks.engine.invariants import BASE_WEIGHTS_UNCHANGED, BrokenInvariant
from foretune.tasks.loading.placement import stored_value

if TYPE_CHECKING:
    from foretune.storage.runs import Run


@dataclass(frozen=True)
class Witness:
    """A model that a run has opened."""

    model: Any
    first: Any  # its first parameter, held so that no other takes its identity
    digest: str  # of the weights as they were read from its folder


_watched: dict[tuple[str, str], dict[int, Witness]] = {}


_lock = threading.Lock()


def watch(run: Run) -> None:
    """From now on `witness` remembers the models that this run opens."""
    with _lock:
        _watched.setdefault((run.root, run.run_id), {})


def unwatch(run: Run) -> None:
    """Forget the run's models, and let go of them."""
    with _lock:
        _watched.pop((run.root, run.run_id), None)


def witness(run: Run, model: Any, digest: str) -> bool:
    """Remember for a watched run a model that was read with this digest. False where it is no longer as it was
    read: something before this run moved it, and it must be read again. Modules that share tensors are one model.
    """
    first = next(model.parameters())
    with _lock:
        held = _watched.get((run.root, run.run_id))
        if held is not None and id(first) not in held:
            if weights_digest(model) != digest:
                return False
            held[id(first)] = Witness(model, first, digest)
    return True


def weights_unchanged(run: Run) -> Check | None:
    """Every model that the run has opened holds the weights that were read from its folder, else BrokenInvariant.
    None where the run opened none."""
    with _lock:
        held = list(_watched.get((run.root, run.run_id), {}).values())
    for each in held:
        after = weights_digest(each.model)
        if after != each.digest:
            raise BrokenInvariant(
                f"base weights changed during simulate: digest {each.digest[:12]} before, {after[:12]} after; "
                "nothing that this run computed may be trusted or is kept, run it again"
            )
    if not held:
        return None
    return checked(
        BASE_WEIGHTS_UNCHANGED,
        "sha256 of all parameters of every opened model at the end with that of when it was read",
        models=len(held),
        tensors=sum(1 for each in held for _ in each.model.parameters()),
        sha256=[each.digest for each in held],
    )


def weights_digest(model: Any) -> str:
    """sha256 over the names and values of all parameters, 64 hex digits; the same wherever the values wait.

    A device map keeps parameters on disk, and those that a fine-tune moves are fetched from there for good.
    """
    import torch

    digest = hashlib.sha256()
    for name, _ in model.named_parameters():
        digest.update(name.encode())
        values = stored_value(model, name).detach().cpu().contiguous()
        digest.update(values.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
