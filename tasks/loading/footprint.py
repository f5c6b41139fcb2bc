"""How large a simulation of a model is, from the shapes of its weights: no tensor is read, no torch imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from foretune.tasks.loading import AdapterTargets, model_config
from foretune.tasks.loading.conversion import gguf_shapes
from foretune.tasks.loading.files import model_files
from foretune.tasks.loading.folders import ModelConfig

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

# A LLaMA block keeps for its backward pass: around attention 9 and around the MLP 5 tensors as wide as the
# residual stream, 4 as wide as the MLP, and the attention's scores and probabilities of one row.
_WIDE_TENSORS, _MLP_TENSORS, _ATTENTION_TENSORS = 14, 4, 2
_LOGIT_TENSORS = 3  # logits, their softmax, their gradient
_TRAINER_LOGITS = 5  # a trainer's loss shifts them into a copy; with it the measured peak is met within a tenth
_ROW_TOKENS = 256  # keys that an average query sees
_PROCESS_BYTES = 700_000_000  # Python with torch, transformers and Prefect


@dataclass(frozen=True)
class Footprint:
    """Sizes of a model, in numbers."""

    parameters: int
    modules: int  # adapted tensors
    adapted: int  # of the full weights of the adapted modules: a gradient's length
    outputs: int  # of the adapted modules together: a row's gradient in LoRA's start coordinates is outputs x rank
    inputs: int  # of the adapted modules together, as outputs
    graph: int  # kept per token for a backward pass
    read: int  # held per token of a forward without a backward
    width: int  # of the residual stream
    layers: int
    vocabulary: int

    @property
    def sum_bytes(self) -> int:
        """Gradient sum and one gradient, in float32."""
        return 2 * self.adapted * BYTES["float32"]

    def peak_bytes(self, dtype: str, graph_tokens: int, sums: int) -> int:
        """Weights of base and predicted checkpoint, `sums` of gradients, graph, process."""
        weights = 2 * self.parameters * BYTES[dtype]
        return weights + sums + graph_tokens * self.graph * BYTES[dtype] + _PROCESS_BYTES

    def pass_bytes(self, dtype: str, models: int, graph_tokens: int, read_tokens: int, sums: int) -> int:
        """The same of one pass: the models that it opens, its gradient sums, its largest micro-batch."""
        numbers = models * self.parameters + graph_tokens * self.graph + read_tokens * self.read
        return numbers * BYTES[dtype] + sums + _PROCESS_BYTES

    def step_bytes(self, dtype: str, step_tokens: int, rank: int | None, moments: int, checkpointing: bool) -> int:
        """One step of the real run: weights, what trains with its gradients and the optimizer's `moments`, and the
        graph of a micro-batch. `rank` is LoRA's, None for all weights. With checkpointing each layer keeps its input,
        and one at a time the rest."""
        trained = self.parameters if rank is None else rank * (self.inputs + self.outputs)
        adapters = trained if rank is not None else 0
        kept = self.graph if not checkpointing else self.read + self.layers * self.width
        kept += (_TRAINER_LOGITS - _LOGIT_TENSORS) * self.vocabulary
        # PEFT keeps adapters in float32, whatever the weights are.
        size = BYTES[dtype] if rank is None else BYTES["float32"]
        held = (self.parameters + step_tokens * kept) * BYTES[dtype] + (adapters + (1 + moments) * trained) * size
        return held + _PROCESS_BYTES


def footprint(folder: Path, targets: AdapterTargets) -> Footprint | None:
    """Sizes of the model in a Hugging Face folder; None for pickles, whose shapes only torch can read."""
    config, shapes = model_config(folder), _shapes(folder)
    if shapes is None:
        return None
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    adapted = [name for name in shapes if _moves(name, shapes[name], targets)]
    return Footprint(
        parameters=sum(sizes.values()),
        modules=len(adapted),
        adapted=sum(sizes[name] for name in adapted),
        outputs=sum(shapes[name][0] for name in adapted),
        inputs=sum(math.prod(shapes[name][1:]) for name in adapted),
        graph=graph_numbers(config),
        read=_block_numbers(config) + _LOGIT_TENSORS * (config.text.vocab_size or 0),
        width=config.text.width or 0,
        layers=config.text.depth or 0,
        vocabulary=config.text.vocab_size or 0,
    )


def _shapes(folder: Path) -> dict[str, tuple[int, ...]] | None:
    """Of its weights; None for pickles."""
    previewed = gguf_shapes(folder)
    if previewed is not None:
        return previewed
    files = model_files(folder, allow_pickle=True)
    return None if files.pickled else {name: form.shape for name, form in files.layout().items()}


def graph_numbers(config: ModelConfig) -> int:
    """Numbers that a forward pass keeps for the backward pass, per token; see the counts above."""
    return (config.text.depth or 0) * _block_numbers(config) + _LOGIT_TENSORS * (config.text.vocab_size or 0)


def _block_numbers(config: ModelConfig) -> int:
    """Of one layer, per token."""
    config = config.text
    width = config.width or 0
    heads = _largest(config.num_attention_heads) or config.n_head or 0
    mlp = _largest(config.intermediate_size) or 4 * width
    return _WIDE_TENSORS * width + _MLP_TENSORS * mlp + _ATTENTION_TENSORS * heads * _ROW_TOKENS


def _largest(sizes: int | list[int] | None) -> int:
    """Some architectures give a size per layer."""
    return max(sizes, default=0) if isinstance(sizes, list) else sizes or 0


def _moves(name: str, shape: tuple[int, ...], targets: AdapterTargets) -> bool:
    if targets.method == "full":
        return True
    module = name.removesuffix(".weight")
    if len(shape) != 2 or module == name:
        return False
    if targets.target_modules == "all-linear":
        return ".layers." in name or ".h." in name
    return any(f".{module}".endswith(f".{target}") for target in targets.target_modules)
