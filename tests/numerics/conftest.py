"""Toy models small enough for dense Jacobians and Hessians, with references that use no production code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from foretune.tasks.numerics.batches import Batch
from tests.conftest import tiny_config


@dataclass(frozen=True)
class Toy:
    call: Callable[[dict[str, Tensor], Batch], Tensor]
    weights: dict[str, Tensor]
    batch: Batch  # all rows at once
    modules: dict[str, nn.Module]

    def split(self, *sizes: int) -> list[Batch]:
        """The same rows as micro-batches of these sizes, each trimmed to its longest row."""
        parts, start = [], 0
        for size in sizes:
            width = int(self.batch.attention_mask[start : start + size].sum(1).max())
            fields = (self.batch.input_ids, self.batch.attention_mask, self.batch.labels)
            parts.append(Batch(*(f[start : start + size, :width] for f in fields)))
            start += size
        assert start == self.batch.rows
        return parts

    def label_logits(self, weights: dict[str, Tensor]) -> Tensor:
        logits, labels = self.call(weights, self.batch), self.batch.labels
        return torch.stack(
            [logits[r, c - 1] for r in range(labels.shape[0]) for c in range(1, labels.shape[1]) if labels[r, c] >= 0]
        )

    def sample_losses(self, weights: dict[str, Tensor]) -> Tensor:
        """[b] summed cross entropy per row, nats."""
        logits, labels = self.call(weights, self.batch), self.batch.labels
        return nn.functional.cross_entropy(
            logits[:, :-1].transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
        ).sum(1)

    @property
    def tokens(self) -> int:
        return int((self.batch.labels[:, 1:] >= 0).sum())

    def flat(self, vector: dict[str, Tensor]) -> Tensor:
        return torch.cat([vector[name].reshape(-1) for name in self.weights])

    def unflat(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([w.numel() for w in self.weights.values()])
        return {name: part.reshape(w.shape) for (name, w), part in zip(self.weights.items(), parts, strict=True)}

    def random(self, seed: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {n: torch.randn(w.shape, generator=generator, dtype=w.dtype) for n, w in self.weights.items()}

    def dense_gauss_newton(self) -> Tensor:
        """[d, d] mean over label tokens of J^T (diag p - p p^T) J, from the dense Jacobian."""
        jacobian = torch.autograd.functional.jacobian(
            lambda flat: self.label_logits(self.unflat(flat)), self.flat(self.weights)
        )  # [n, V, d]
        p = self.label_logits(self.weights).softmax(-1)
        curvature = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("nud,nuv,nve->de", jacobian, curvature, jacobian) / self.tokens

    def dense_hessian(self) -> Tensor:
        return torch.autograd.functional.hessian(
            lambda flat: self.sample_losses(self.unflat(flat)).sum() / self.tokens, self.flat(self.weights)
        )

    def sample_gradients(self) -> Tensor:
        """[b, d] gradient of each row's summed loss."""
        return torch.autograd.functional.jacobian(
            lambda flat: self.sample_losses(self.unflat(flat)), self.flat(self.weights)
        )


def toy_batch(vocabulary: int, lengths: list[int], prompt: int, seed: int) -> Batch:
    """Right-padded random rows whose first `prompt` tokens carry no label."""
    generator = torch.Generator().manual_seed(seed)
    shape = (len(lengths), max(lengths))
    mask = (torch.arange(shape[1])[None, :] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(vocabulary, shape, generator=generator) * mask
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :prompt] = -100
    return Batch(ids, mask, labels)


class Perceptron(nn.Module):
    def __init__(self, vocabulary: int, width: int, hidden: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.first = nn.Linear(width, hidden, bias=False)
        self.second = nn.Linear(hidden, vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(self.embedding(ids))))


@pytest.fixture(scope="session")
def perceptron() -> Toy:
    """A float64 next-token perceptron with 72 weights in two modules."""
    torch.manual_seed(0)
    model = Perceptron(vocabulary=7, width=5, hidden=6).double().requires_grad_(False)
    modules = {"first.weight": model.first, "second.weight": model.second}

    def call(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        return torch.func.functional_call(model, weights, (batch.input_ids,))

    weights = {name: module.weight.detach() for name, module in modules.items()}
    return Toy(call, weights, toy_batch(7, [8, 7, 7, 5, 4, 3], prompt=2, seed=1), modules)


def make_llama(dtype: torch.dtype, attention: str = "eager") -> Toy:
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    small = {"vocab_size": 13, "hidden_size": 8, "intermediate_size": 12, "bos_token_id": 1, "eos_token_id": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "pad_token_id": None, "initializer_range": 0.4}
    config = tiny_config("llama", **small, **heads, attn_implementation=attention)
    model = LlamaForCausalLM(config).to(dtype).eval().requires_grad_(False)
    modules = {
        f"{name}.weight": module for name, module in model.named_modules() if name.endswith(("q_proj", "v_proj"))
    }

    def call(weights: dict[str, Tensor], batch: Batch) -> Tensor:
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask, "use_cache": False}
        return torch.func.functional_call(model, weights, (), inputs).logits

    weights = {name: module.weight.detach() for name, module in modules.items()}
    return Toy(call, weights, toy_batch(13, [9, 8, 6, 6, 5], prompt=3, seed=2), modules)


@pytest.fixture(scope="session")
def llama() -> Toy:
    """A two-layer float32 Llama, q and v of both layers adapted (192 weights), eager attention."""
    return make_llama(torch.float32)


@pytest.fixture(scope="session")
def half_llama() -> Toy:
    """The same weights in bfloat16."""
    return make_llama(torch.bfloat16)


@pytest.fixture(scope="session")
def sdpa_llama() -> Toy:
    """The same weights in float32 through fused scaled dot-product attention."""
    return make_llama(torch.float32, "sdpa")


def symmetric(eigenvalues: list[float], seed: int) -> Tensor:
    """[d, d] float64 with exactly these eigenvalues in a random orthonormal basis."""
    generator = torch.Generator().manual_seed(seed)
    d = len(eigenvalues)
    basis, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.T


@pytest.fixture
def matrix_with_spectrum() -> Callable[[list[float], int], Tensor]:
    return symmetric
