"""What the amount of a pass's work follows from beside its own inputs: lengths of rows, and the shape of the model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from foretune.tasks.behaviour.prompt_set import PromptSet
from foretune.tasks.loading import model_config
from foretune.tasks.loading.footprint import Footprint, footprint
from foretune.tasks.loading.hooks import share_to_hook
from foretune.tasks.samples.chat import load_tokenizer
from foretune.tasks.samples.lengths import Lengths
from foretune.tasks.samples.rows import ShardRows, SubsetRows

if TYPE_CHECKING:
    from foretune.flows.dag.wiring import Wiring

Value = TypeVar("Value")


class Unknown(Exception):
    """Nothing tells how much this is, as the layers of a model whose configuration does not say."""


@dataclass(frozen=True, eq=False)
class Sizes:
    """Of one wiring."""

    lengths: Callable[[Any], Lengths]  # of a `samples` artefact
    trained_rows: int  # training rows with a label
    variants: int  # weights on the way, and at the ends of other orders
    shapes: Footprint | None  # of the model; None for pickles
    hook_share: float | None  # of the layers, up to the SAE's hook
    tokenizer: Path | None  # its folder
    depth: int | None = None  # layers
    hook_shares: dict[Any, float] = field(default_factory=dict)  # of the other SAEs, by their handles
    asked: dict[str, PromptSet] = field(default_factory=dict)  # what models are asked, by the key of its artefact

    @property
    def modules(self) -> int | None:
        """Adapted tensors."""
        return self.shapes and self.shapes.modules

    def table(self, samples: Any) -> Lengths:
        if isinstance(samples, SubsetRows):
            return self.rows(samples)
        return self.lengths(samples)

    def rows(self, rows: ShardRows | SubsetRows) -> Lengths:
        return self.table(rows.samples).of(rows)

    @staticmethod
    def known(value: Value | None) -> Value:
        if value is None:
            raise Unknown
        return value

    def text_tokens(self, texts: Sequence[str]) -> int:
        """Of plain texts together; from their characters without a tokenizer."""
        if self.tokenizer is None:
            return sum(map(len, texts)) // CHARACTERS
        return _counted(self.tokenizer, tuple(texts))


CHARACTERS = 4
"""About so many make a token."""


@functools.lru_cache(maxsize=64)
def _counted(tokenizer: Path, texts: tuple[str, ...]) -> int:
    return sum(map(len, _opened(tokenizer).encode_texts(texts)))


@functools.lru_cache(maxsize=2)
def _opened(tokenizer: Path) -> Any:
    return load_tokenizer(tokenizer)


def sizes_of(wiring: Wiring, lengths: Callable[[Any], Lengths]) -> Sizes:
    """Those of a wiring, with the lengths of its `samples` artefacts."""
    request, hook_name, folder = wiring.request, wiring.sources.hook_name, wiring.folder
    depth = model_config(folder).text.depth
    more = wiring.sources.more_saes
    return Sizes(
        lengths,
        trained_rows=len(wiring.rows["train"].index.trained_ids),
        variants=request.behaviour.path.points + request.behaviour.path.orders,
        shapes=footprint(folder, request.adapter.targets),
        hook_share=share_to_hook(hook_name, depth) if hook_name is not None and depth else None,
        tokenizer=folder if (folder / "tokenizer.json").is_file() else None,
        depth=depth,
        hook_shares={each.handle: share_to_hook(each.hook_name, depth) for each in more} if depth else {},
    )
