"""Which published SAE is read for a model, where the request leaves it open: chosen from sae-lens's own directory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from foretune.tasks.loading.folders import ModelOutline
from foretune.tasks.saes.releases import PICKLED
from foretune.tasks.saes.settings import SaeSettings

WIDTH = 16_384
"""Features from which on a smaller SAE is preferred to a larger one: it costs less, more of it is labelled."""
MIDDLING = 70
"""Features active at a time, where a release has SAEs of several sparsities."""
OTHERS = ("transcoder", "temporal", "clt")
"""Parts of the names of what does not rebuild the activations that it reads."""
ALIASES = {"gpt2": "gpt2-small", "mistral-7b-v0.1": "mistral-7b"}
_HOOK = re.compile(r"blocks\.(\d+)\.(hook_resid_(?:pre|mid|post)|hook_attn_out|hook_mlp_out|(?:attn\.)?hook_z)")
_LAYER = re.compile(r"layer_?(\d+)|^l(\d+)[a-z]_")
_PLACES = (("-res", "hook_resid_post"), ("lxr", "hook_resid_post"), ("r1_distill", "hook_resid_post"),
           ("resid_post", "hook_resid_post"), ("-att", "attn.hook_z"), ("-mlp", "hook_mlp_out"))  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """An SAE of the directory, as far as its name tells."""

    release: str
    sae_id: str
    layer: int
    hook: str  # of the layer
    width: int | None
    l0: float

    @property
    def hook_name(self) -> str:
        return f"blocks.{self.layer}.{self.hook}"

    @property
    def words(self) -> str:
        wide = f", {self.width:,} features" if self.width else ""
        return f"{self.release} / {self.sae_id} ({self.hook_name}{wide})"


def chosen_sae(settings: SaeSettings, model: str, outline: ModelOutline | None) -> Candidate | None:
    """The best SAE of `model`, a hub id or a folder; None where the directory has none that can be read.

    At `settings.hook_name` where it is given; else in the residual stream, within the middle third of the layers, the
    smallest of at least `WIDTH` features, the nearest to the middle.
    """
    found = list(candidates(model, outline.d_model if outline else None, settings.allow_pickle))
    if settings.hook_name is not None:
        found = [each for each in found if each.hook_name == settings.hook_name]
    if not found:
        return None
    depth = outline.layers if outline else max(each.layer for each in found) + 1

    def order(each: Candidate) -> tuple[Any, ...]:
        width = each.width or 0
        return (
            "resid" not in each.hook,
            not depth / 3 <= each.layer <= 2 * depth / 3,
            width < WIDTH,
            width,
            "canonical" not in each.sae_id,
            abs(each.layer - depth / 2),
            abs((each.l0 or MIDDLING) - MIDDLING),
            each.release,
            each.sae_id,
        )

    return min(found, key=order)


def candidates(model: str, d_model: int | None, allow_pickle: bool) -> Iterator[Candidate]:
    """What the directory has for a model, without what is pickled or of another kind."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    wanted = model_key(model)
    for release, entry in get_pretrained_saes_directory().items():
        kinds = f"{release} {entry.conversion_func}"
        if model_key(entry.model) != wanted or any(part in kinds for part in OTHERS):
            continue
        if entry.conversion_func in PICKLED and not allow_pickle:
            continue
        for sae_id, path in entry.saes_map.items():
            read = f"{sae_id} {path} {release}"
            layer, hook = _place(sae_id, read)
            if layer is not None and hook is not None:
                width, l0 = _width(read, d_model), float(entry.expected_l0.get(sae_id) or 0.0)
                yield Candidate(release, sae_id, layer, hook, width, l0)


def model_key(name: str) -> str:
    """A model's name as it is compared: of a hub id, of the hub's cache or of a folder, the last part."""
    cached = re.search(r"models--(?:.+?)--([^/]+)", name)
    last = (cached[1] if cached else name.rstrip("/").rsplit("/", 1)[-1]).lower().removeprefix("meta-")
    return ALIASES.get(last, last)


def _place(sae_id: str, read: str) -> tuple[int | None, str | None]:
    """(layer, hook of the layer); (None, None) of what lies before the layers."""
    named = _HOOK.search(sae_id)
    if named is not None:
        return int(named[1]), "attn.hook_z" if named[2] == "hook_z" else named[2]
    layer = _LAYER.search(sae_id)
    hook = next((hook for part, hook in _PLACES if part in read), None)
    return (int(layer[1] or layer[2]), hook) if layer is not None else (None, None)


def _width(read: str, d_model: int | None) -> int | None:
    """Features, as names tell them: width_16k, 2pow14, v5-32k, hook_resid_pre_24576, l16r_8x."""
    if found := re.search(r"2pow(\d+)", read):
        return 2 ** int(found[1])
    if found := re.search(r"(?:width_|v5[-_])(\d+)([km])", read):
        return int(found[1]) * (1024 if found[2] == "k" else 1024**2)
    if found := re.search(r"hook_resid_\w+?_(\d{3,})\b", read):
        return int(found[1])
    times = re.search(r"_(\d+)x\b", read)
    return int(times[1]) * d_model if times and d_model else None
