"""A model for a while at other weights: what asks a model, its cache and its decoding included, asks it there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from foretune.tasks.loading.models import LoadedModel

if TYPE_CHECKING:
    from torch import Tensor


@contextlib.contextmanager
def at_weights(loaded: LoadedModel, delta: Mapping[str, Tensor]) -> Iterator[LoadedModel]:
    """Inside the block the modules of this thread hold W0 + `delta` {name: [out, in]}; the base tensors stay as they
    are, and other threads have them. A weight that several modules share moves in all of them."""
    from torch.nn import Parameter

    kept = {}
    for name, change in delta.items():
        base = loaded.weight(name)
        kept[id(base)] = Parameter(base + change.to(base), requires_grad=False), base
    places = [
        (module, leaf, *kept[id(held)])
        for module in loaded.model.modules()
        for leaf, held in module._parameters.items()
        if id(held) in kept
    ]
    try:
        for module, leaf, moved, _ in places:
            module._parameters[leaf] = moved
        yield loaded
    finally:
        for module, leaf, _, base in places:
            module._parameters[leaf] = base
